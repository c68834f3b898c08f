package mirror

import (
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// aloneLab is a volume of three replicas and a session in which one is left in sync: the others failed one after the other, and are back.
func aloneLab(t *testing.T) (*lab, *Session) {
	t.Helper()
	var sick atomic.Int32
	sick.Store(-1)
	disk := vfs.Faulty(vfs.NewMem(), func(op *vfs.Op) error {
		if n := sick.Load(); n >= 0 && strings.HasPrefix(op.Name, fmt.Sprintf("/s%d/", n)) && op.Kind.Alters() {
			return syscall.EIO
		}
		return nil
	})
	l := newLab(t, disk, "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	for i, store := range []int32{1, 2} {
		sick.Store(store)
		mustWrite(t, s, pattern(uint64(store), 1<<20), int64(i)<<20)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		sick.Store(-1)
		s.gate.Lock()
		s.reopen(s.Config().Members) // it votes again, and is not rebuilt yet
		s.gate.Unlock()
	}
	if got := s.Config().Members; got != quorum.SetOf(0) {
		t.Fatalf("members %v", got.Indexes())
	}
	return l, s
}

// TestDetachRestoresAMajority: a writer that is stopped, or was shut out, while one replica of three is in sync. Nobody else would rebuild the
// others, and without them no detach could ever prove anything.
func TestDetachRestoresAMajority(t *testing.T) {
	for name, leave := range map[string]func(*lab, *Session) *Session{
		"stopped": func(_ *lab, s *Session) *Session { return s },
		"shut out": func(l *lab, s *Session) *Session {
			s.Close()
			return l.open(ForRecovery)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, s := aloneLab(t)
			s = leave(l, s)
			agreeing(t, l.detach(s), 2)
			if err := s.WriteAt(pattern(9, 4096), 0); err == nil {
				t.Error("a stopped writer could write")
			}
			s = l.open(ForDevice)
			for range 4 {
				mustRead(t, s, pattern(1, 1<<20), 0)
				mustRead(t, s, pattern(2, 1<<20), 1<<20)
			}
		})
	}
}
