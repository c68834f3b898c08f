package mirror

import (
	"context"
	"testing"

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
	f, err := mem.Open("/s1/volumes/"+string(testID)+"/regions", 0)
	if err != nil {
		t.Fatal(err)
	}
	sum := make([]byte, 32)
	if err := f.ReadAt(sum, 32); err != nil {
		t.Fatal(err)
	}
	sum[5] ^= 4
	if err := f.WriteAt(sum, 32); err != nil {
		t.Fatal(err)
	}
	b := l.detach(s)
	agreeing(t, b, 3)
}
