package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// fullFrom has the stores take no block from the given one on.
func fullFrom(block int64, stores ...int) vfs.Hook {
	return func(op *vfs.Op) error {
		for _, i := range stores {
			if calls(op, vfs.OpWrite, i, "data") && op.Offset >= store.DataOffset(block) {
				return syscall.ENOSPC
			}
		}
		return nil
	}
}

// TestRefusedWriteThatGotHalfWay: a write of two blocks is refused, since no store has room for the second. The first had its room, and has been written on none, some or all
// of the stores. It reads as what it was or as what it was to be, what follows is not in doubt, and all replicas hold it.
func TestRefusedWriteThatGotHalfWay(t *testing.T) {
	const last = store.RegionBlocks - 1 // a write of it and the next is cut in two
	for _, replicas := range []int{1, 3} {
		for n := range 2 * (replicas + 1) {
			untaken, hole := n/2, n%2 == 1
			t.Run(fmt.Sprint(replicas, " replicas, untaken by ", untaken, ", a hole before ", hole), func(t *testing.T) {
				l, trouble, _ := troubledLab(t, replicas)
				s := l.open(ForDevice)
				was, now := pattern(1, store.BlockSize), pattern(2, 2*store.BlockSize)
				if hole {
					clear(was)
				} else {
					mustWrite(t, s, was, last*store.BlockSize)
				}
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				trouble.is(fullFrom(last+1, 0, 1, 2), fullFrom(last, []int{0, 1, 2}[:untaken]...))
				if err := s.WriteAt(now, last*store.BlockSize); !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				trouble.is()
				got := vfs.AlignedBuffer(store.BlockSize)
				if err := s.ReadAt(got, last*store.BlockSize); err != nil || !bytes.Equal(got, was) && !bytes.Equal(got, now[:store.BlockSize]) {
					t.Errorf("read: %v", err)
				}
				if s.Config().Members != quorum.All(replicas) {
					t.Errorf("members %v", s.Config().Members.Indexes())
				}
				b := l.detach(s)
				if agreeing(t, b, replicas); len(b.Unresolved) > 0 || len(b.Repairs) > 0 {
					t.Errorf("the barrier is in doubt: %+v", b)
				}
				mustRead(t, l.open(ForDevice), got, last*store.BlockSize)
			})
		}
	}
}

// TestRefusedWriteThatATargetTook: the members have no room for a write and the replica that is being rebuilt has. It does not keep what was refused.
func TestRefusedWriteThatATargetTook(t *testing.T) {
	l, trouble, _ := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	s.verifyQuiet(t.Context(), 0)
	r := s.view.Load().replicas[2]
	if err := s.exclude(failures{{r, errors.New("away")}}); err != nil {
		t.Fatal(err)
	}
	s.gate.Lock()
	s.reopen(s.Config().Members)
	s.gate.Unlock()
	r = s.view.Load().replicas[2]
	if err := s.takeWrites(r); err != nil {
		t.Fatal(err)
	}
	trouble.is(fullFrom(0, 0, 1))
	if err := s.WriteAt(pattern(2, store.BlockSize), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	trouble.is()
	got := vfs.AlignedBuffer(store.BlockSize)
	if err := r.ReadBlocks(got, 0); err != nil || !bytes.Equal(got, pattern(1, store.BlockSize)) {
		t.Errorf("the target has what the members refused (%v)", err)
	}
}
