package mirror

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestSumThatRotsIsCountedAnew: one bit of one replica's table of sums rots while the volume is attached. Its blocks are right, and so say the others: the
// detach mends the table. (Simulation, seed 82080: the volume was quarantined.)
func TestSumThatRotsIsCountedAnew(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, 16<<20)
	s := l.open(ForDevice)
	p := vfs.AlignedBuffer(store.BlockSize)
	p[0] = 1
	if err := s.WriteAt(p, store.RegionSize); err != nil {
		t.Fatal(err)
	}
	s.verifyQuiet(context.Background(), 0)
	rotSum(t, mem, 1, 1)
	b := l.detach(s)
	agreeing(t, b, 3)
}

// rotSum flips one bit of what a store's table says of a region.
func rotSum(t *testing.T, mem *vfs.Mem, n int, region int64) {
	t.Helper()
	f, err := mem.Open(fmt.Sprintf("/s%d/volumes/%s/regions", n, testID), 0)
	if err != nil {
		t.Fatal(err)
	}
	sum := make([]byte, digest.SumSize)
	if err := f.ReadAt(sum, region*digest.SumSize); err != nil {
		t.Fatal(err)
	}
	sum[5] ^= 4
	if err := errors.Join(f.WriteAt(sum, region*digest.SumSize), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestSumThatRotsDoesNotSpread: the bit rots in the first replica's table, of a region that is marked ahead of a stream and in which nobody writes then. The
// receipt has the digest of what is on the disks. (Simulation, seed 8063536: all tables got the rotten sum, and all replicas attested to it.)
func TestSumThatRotsDoesNotSpread(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, 16<<20)
	s := l.open(ForDevice)
	for region := range int64(3) {
		mustWrite(t, s, pattern(uint64(region+1), store.BlockSize), region*store.RegionSize)
	}
	right := l.detach(s)
	s = l.open(ForDevice)
	rotSum(t, mem, 0, 2)
	for region := range int64(2) { // the third is marked with the second
		mustWrite(t, s, pattern(uint64(region+1), store.BlockSize), region*store.RegionSize)
	}
	if s.regions.get(2) == nil {
		t.Fatal("the third region was not marked ahead")
	}
	b := l.detach(s)
	if agreeing(t, b, 3); !b.Expected.Equal(right.Expected) {
		t.Errorf("the receipt says %v, and the same content had %v", b.Expected, right.Expected)
	}
}

// TestSumOfTheOnlyReplicaRots: no other table says so. A detach finds it by the checksums, whether the region was written in since or not, and so does an attach.
func TestSumOfTheOnlyReplicaRots(t *testing.T) {
	for _, since := range []bool{false, true} {
		mem := vfs.NewMem()
		l := newLab(t, mem, "/", 1, 16<<20)
		s := l.open(ForDevice)
		for region := range int64(2) {
			mustWrite(t, s, pattern(uint64(region), store.BlockSize), region*store.RegionSize)
		}
		s.verifyQuiet(context.Background(), 0)
		rotSum(t, mem, 0, 1)
		if since {
			mustWrite(t, s, pattern(2, store.BlockSize), store.RegionSize+store.BlockSize)
		}
		b := l.detach(s)
		if agreeing(t, b, 1); len(b.Unresolved) > 0 {
			t.Errorf("written in since: %t: unresolved %+v", since, b.Unresolved)
		}
		rotSum(t, mem, 0, 1)
		again := l.detach(l.open(ForDevice))
		if agreeing(t, again, 1); !again.Expected.Equal(b.Expected) {
			t.Errorf("written in since: %t: %v was sealed, and it is %v", since, b.Expected, again.Expected)
		}
	}
}

// TestBlockOfTheOnlyReplicaRots: a sum and the block's checksum are right, or neither is: what does not match is never made the content.
func TestBlockOfTheOnlyReplicaRots(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 1, 16<<20)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), store.RegionSize)
	s.verifyQuiet(context.Background(), 0)
	rotSum(t, mem, 0, 1)
	l.flip(0, store.RegionBlocks, 1)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Evidence(t.Context(), nil); err != nil || len(b.Unresolved) != 1 {
		t.Errorf("%+v, %v", b, err)
	}
}
