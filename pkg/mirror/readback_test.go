package mirror

import (
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

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

// TestRegionIsMadeCleanMeanwhile: the background verification has listed the regions that it will verify, and a detach makes them clean before its turn
// comes. (Simulation, seed 37: the engine crashed.)
func TestRegionIsMadeCleanMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := memLab(t, 3)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(14, store.BlockSize), 0)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		s.evidence.Lock() // whoever comes now waits, and goes on in the order of arrival
		proven, verified := make(chan error, 1), make(chan struct{})
		go func() { _, err := s.Evidence(t.Context(), nil); proven <- err }()
		synctest.Wait()
		time.Sleep(time.Second) // the region is quiet
		go func() { s.verifyQuiet(t.Context(), 0); close(verified) }()
		synctest.Wait()
		s.evidence.Unlock()
		if err := <-proven; err != nil {
			t.Fatal(err)
		}
		<-verified
		if dirty := s.regions.list(); len(dirty) > 0 {
			t.Errorf("dirty regions %v", dirty)
		}
	})
}

// TestRebuildReadsBackWhatItCopies: the disk of a replica that is being rebuilt loses the copied block, or its checksum. It does not become a member
// before it has them. (Simulation, seed 250: a disk that loses writes lost those as well, and the volume was told to have a copy more than it had.)
func TestRebuildReadsBackWhatItCopies(t *testing.T) {
	for what, lost := range map[string][2]int64{"block": {blockAt(0), blockAt(1)}, "checksum": {0, blockAt(0)}} {
		t.Run(what, func(t *testing.T) {
			l, trouble, _ := troubledLab(t, 3)
			s := l.open(ForDevice)
			trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, 1), loses(1, 0, blockAt(1)))
			mustWrite(t, s, pattern(15, store.BlockSize), 0)
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				disk vfs.Hook
				want quorum.Set
			}{{loses(1, lost[0], lost[1]), quorum.SetOf(0, 2)}, {nil, quorum.SetOf(0, 1, 2)}} {
				trouble.is(slices.DeleteFunc([]vfs.Hook{c.disk}, func(h vfs.Hook) bool { return h == nil })...)
				s.bringBack(t.Context())
				if got := s.Config().Members; got != c.want {
					t.Fatalf("members %v, want %v", got.Indexes(), c.want.Indexes())
				}
			}
			matching(t, s)
			agreeing(t, l.detach(s), 3)
		})
	}
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
