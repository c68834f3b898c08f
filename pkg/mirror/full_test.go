package mirror

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestFullWhileMarking: where no store has room to mark a region nothing has failed: writes are refused, of one and of several at once, and go
// on when there is room. (Simulation, seed 129: the only replica was given up for failed, and every flush answered ENOSPC for ever.)
func TestFullWhileMarking(t *testing.T) {
	full := true
	var mu sync.Mutex
	fsys := vfs.Faulty(vfs.NewMem(), func(op *vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if full && op.Kind == vfs.OpWrite {
			return syscall.ENOSPC
		}
		return nil
	})
	room := func(now bool) { mu.Lock(); full = !now; mu.Unlock() }
	for _, replicas := range []int{1, 3} {
		room(true)
		l := newLab(t, fsys, map[int]string{1: "/one", 3: "/three"}[replicas], replicas, 16<<20)
		s := l.open(ForDevice)
		room(false)
		p := vfs.AlignedBuffer(store.BlockSize)
		p[0] = 1
		var wg sync.WaitGroup
		for region := range int64(4) {
			wg.Go(func() {
				if err := s.WriteAt(p, region*store.RegionSize); !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("a write where no store has room: %v", err)
				}
			})
		}
		wg.Wait()
		room(true)
		for region := range int64(4) {
			if err := s.WriteAt(p, region*store.RegionSize); err != nil {
				t.Errorf("%d replicas, write once there is room again: %v", replicas, err)
			}
		}
		if err := s.Flush(); err != nil || s.Config().Members.Len() != replicas {
			t.Errorf("flush: %v; in sync are %d of %d", err, s.Config().Members.Len(), replicas)
		}
		s.Close()
	}
}

// TestLostOnAFullDiskIsNotAnswered: one member has no room for a block, and none has room for the record that excludes it, so that the session is lost
// with nothing but full disks for causes. The next engine can be asked, and the request waits for it: it is answered when the session is closed, since
// then there is none. (Simulation, seeds 463 and 717: the workload was told EIO.)
func TestLostOnAFullDiskIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, trouble, _ := troubledLab(t, 3)
		s, err := Open(t.Context(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "test", Log: l.log, Suspend: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		trouble.is(func(op *vfs.Op) error {
			if calls(op, vfs.OpWrite, 0, "data") || op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, "/meta") {
				return syscall.ENOSPC
			}
			return nil
		})
		answered := make(chan error, 1)
		go func() { answered <- s.WriteAt(pattern(2, store.BlockSize), 0) }()
		<-s.Lost()
		synctest.Wait()
		select {
		case err := <-answered:
			t.Fatalf("answered: %v", err)
		default:
		}
		s.Close()
		if err := <-answered; !errors.Is(err, syscall.EIO) {
			t.Errorf("answered at the end: %v", err)
		}
	})
}

// TestFullWhileMakingClean: no store has room for the sums of a region that was read back. Nothing has failed: the session goes on, a detach is refused for as long as
// that is so, and goes on to its end when there is room.
func TestFullWhileMakingClean(t *testing.T) {
	for _, replicas := range []int{1, 3} {
		l, trouble, _ := troubledLab(t, replicas)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		trouble.is(func(op *vfs.Op) error {
			if op.Kind == vfs.OpWrite && strings.HasSuffix(op.Name, "/regions") {
				return syscall.ENOSPC
			}
			return nil
		})
		s.verifyQuiet(t.Context(), 0)
		if err := s.LostCause(); err != nil {
			t.Fatalf("%d replicas: the session is over: %v", replicas, err)
		}
		mustWrite(t, s, pattern(2, store.BlockSize), 0)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Evidence(t.Context(), nil); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d replicas: evidence where no store has room for sums: %v", replicas, err)
		}
		trouble.is()
		agreeing(t, l.detach(s), replicas)
	}
}
