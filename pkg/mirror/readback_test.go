package mirror

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// dropper is a disk that, while it is on, drops writes of checksums on store 0 and reports them as done.
func dropper(mem *vfs.Mem, on *atomic.Bool) vfs.FS {
	return vfs.Faulty(mem, func(op *vfs.Op) error {
		if on.Load() && op.Kind == vfs.OpWrite && strings.HasPrefix(op.Name, "/s0/") && strings.HasSuffix(op.Name, "/data") && op.Offset < blockAt(0) {
			return vfs.ErrSkip
		}
		return nil
	})
}

// matching fails the test where block 0 of a member does not match its own checksum.
func matching(t *testing.T, s *Session) {
	t.Helper()
	want := blockSpan(0, 1)
	for _, r := range s.view.Load().members() {
		m, err := readImage(s.hash, r, 0, &want)
		if err != nil {
			t.Fatal(err)
		}
		if !m.copyOf(0).Match() {
			t.Errorf("store %s: its block does not match its checksum", r.dir.Path())
		}
	}
}

// TestChecksumsPutRightAreDurable: the verification finds that a write of checksums was dropped, puts them right and makes the region clean; then the
// power fails. They are there: of a clean region nobody looks at more than one replica's. (The model calls the other order ENTRIES_UNSYNCED.)
func TestChecksumsPutRightAreDurable(t *testing.T) {
	mem, drops := vfs.NewMem(), &atomic.Bool{}
	l := newLab(t, dropper(mem, drops), "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(12, store.BlockSize), 0)
	drops.Store(true)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	drops.Store(false)
	s.verifyQuiet(t.Context(), 0)
	if dirty := s.regions.list(); len(dirty) > 0 {
		t.Fatalf("not verified: regions %v", dirty)
	}
	l.fs = mem.CrashClone(nil)
	l.openDirs(3)
	matching(t, l.open(ForDevice))
}

// TestReadBackGoesOnWithoutAMember: one member drops its checksums again and again and is excluded; what another has wrong in the same region is mended
// all the same before that is clean.
func TestReadBackGoesOnWithoutAMember(t *testing.T) {
	mem, drops := vfs.NewMem(), &atomic.Bool{}
	l := newLab(t, dropper(mem, drops), "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(13, store.BlockSize), 0)
	drops.Store(true)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	l.flip(1, 0, 1)
	s.verifyQuiet(t.Context(), 0)
	if got := s.Config().Members; got != quorum.SetOf(1, 2) {
		t.Fatalf("members %v", got.Indexes())
	}
	if dirty := s.regions.list(); len(dirty) > 0 {
		t.Fatalf("not verified: regions %v", dirty)
	}
	matching(t, s)
}

// TestMemberThatDidNotTakeARepairIsRebuilt: a block of a clean region has rotted on one member, and the disk drops the repair. The member is excluded, and is
// no member again before it has the block: nothing else would look there once more. (MEND_FORGOTTEN in the model.)
func TestMemberThatDidNotTakeARepairIsRebuilt(t *testing.T) {
	mem, drops := vfs.NewMem(), &atomic.Bool{}
	l := newLab(t, vfs.Faulty(mem, func(op *vfs.Op) error {
		if op.Kind == vfs.OpWrite && strings.HasPrefix(op.Name, "/s1/") && strings.HasSuffix(op.Name, "/data") && op.Offset == blockAt(0) && drops.CompareAndSwap(true, false) {
			return vfs.ErrSkip
		}
		return nil
	}), "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(14, store.BlockSize), 0)
	l.detach(s)
	s = l.open(ForDevice)
	l.flip(1, 0, 1)
	drops.Store(true)
	if _, err := s.ScrubNow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := s.Config().Members; got != quorum.SetOf(0, 2) {
		t.Fatalf("members %v", got.Indexes())
	}
	s.bringBack(t.Context())
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("members %v after the rebuild", got.Indexes())
	}
	matching(t, s)
}
