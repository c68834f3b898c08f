package mirror

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestRebuildLooksWhereAMendFailed: a block of a region that is clean rots on one disk, which refuses to write it, once. The replica is excluded, and rebuilt: it
// joins again with that block as it should be.
func TestRebuildLooksWhereAMendFailed(t *testing.T) {
	l, trouble, _ := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	s.verifyQuiet(t.Context(), 0)
	l.flip(2, 0, 1)
	trouble.is(once(vfs.OpWrite, "data", syscall.EIO, 2))
	if _, err := s.ScrubNow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	trouble.is()
	if got := s.Config().Members; got != quorum.SetOf(0, 1) {
		t.Fatalf("members %v", got.Indexes())
	}
	s.bringBack(t.Context())
	agreeing(t, l.detach(s), 3)
	l.holds(t, 2, pattern(1, store.BlockSize), 0)
}

// holds wants a store's replica, which nobody has open, to have that content of a block.
func (l *lab) holds(t *testing.T, n int, want []byte, block int64) {
	t.Helper()
	r, err := l.dirs[n].Open(testID, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := vfs.AlignedBuffer(store.BlockSize)
	if err := r.ReadBlocks(got, block); err != nil || string(got) != string(want) {
		t.Errorf("block %d of store %d is not what the receipt says of it (%v)", block, n, err)
	}
}

// TestReadWhereOneDiskFailsAfterTheOther: a read fails, and once its block is mended so does the next one, of the next disk. The third has it.
// (Simulation, seed 10011656: the guest was told EIO.)
func TestReadWhereOneDiskFailsAfterTheOther(t *testing.T) {
	l, trouble, _ := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	reads := 0
	trouble.is(func(op *vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.HasSuffix(op.Name, "/data") {
			if reads++; reads == 1 || reads == 5 { // those between are the mend's, of each disk one
				return syscall.EIO
			}
		}
		return nil
	})
	mustRead(t, s, pattern(1, store.BlockSize), 0)
	if reads < 6 {
		t.Errorf("%d reads: the disks have not failed one after the other", reads)
	}
}

// TestRebuildLooksWhereChecksumsCannotBeRead: a disk cannot read the checksums of a region that is clean before they are written anew. The scrub that finds it excludes the replica,
// and its rebuild writes them anew: it does not stand behind a receipt with what cannot be read.
func TestRebuildLooksWhereChecksumsCannotBeRead(t *testing.T) {
	l, trouble, _ := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	s.verifyQuiet(t.Context(), 0)
	var written atomic.Bool
	trouble.is(func(op *vfs.Op) error {
		switch at := op.Offset < store.DataOffset(0); {
		case at && calls(op, vfs.OpWrite, 2, "data"):
			written.Store(true)
		case at && calls(op, vfs.OpRead, 2, "data") && !written.Load():
			return syscall.EIO
		}
		return nil
	})
	if _, err := s.ScrubNow(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := s.Config().Members; got != quorum.SetOf(0, 1) {
		t.Fatalf("members %v", got.Indexes())
	}
	s.bringBack(t.Context())
	agreeing(t, l.detach(s), 3)
	if !written.Load() {
		t.Error("the receipt is of a replica whose checksums cannot be read")
	}
	l.holds(t, 2, pattern(1, store.BlockSize), 0)
}
