package mirror

import (
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestOwnRecordIsNotANewerWriters: a voter writes the record of an exclusion and fails its sync, once, so that there is no majority for it. It is opened again,
// and holds a record of which this session does not know whether it is in force. That is nobody else's: the session goes on.
func TestOwnRecordIsNotANewerWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, trouble, _ := troubledLab(t, 3)
		s := l.open(ForDevice)
		p := pattern(1, store.BlockSize)
		trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, 1))
		mustWrite(t, s, p, 0)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		s.gate.Lock()
		s.reopen(s.Config().Members) // it votes, and is not rebuilt yet
		s.gate.Unlock()
		trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, 2), once(vfs.OpDatasync, "meta", syscall.EIO, 1))
		mustWrite(t, s, p, store.BlockSize)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := s.Config().Members; got != quorum.SetOf(0) {
			t.Errorf("members %v", got.Indexes())
		}
		s.bringBack(t.Context())
		agreeing(t, l.detach(s), 3)
	})
}
