package store

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// onDisk is a store on the machine's own file system.
func onDisk(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(vfs.OS(), filepath.Join(t.TempDir(), "a", "store"), installation)
	must(t, err)
	return d
}

// The whole life of a replica with direct I/O on a real disk.
func TestOnDisk(t *testing.T) {
	d := onDisk(t)
	c := configAt(1, 1)
	c.Size = volume.TiB
	must(t, d.Create(superOf(d), c))
	r := openReplica(t, d)
	rng := rand.New(rand.NewPCG(1, 1))
	data, entries := blocksOf(rng, 300), blocksOf(rng, 4)
	const far = 262143 * RegionBlocks // the last region of the volume
	for _, at := range []int64{1000, far} {
		must(t, r.MarkDirty([]int64{at / RegionBlocks, at/RegionBlocks + 1}))
		must(t, r.WriteBlocks(data, at))
		must(t, r.WriteEntries(entries, at/EntriesPerPage))
	}
	must(t, r.PunchBlocks(1010, 5))
	clear(data[10*BlockSize : 15*BlockSize])
	must(t, r.WriteBlocks(data[10*BlockSize:15*BlockSize], far+10))
	must(t, r.Sync())
	must(t, r.WriteSums(map[int64]digest.Sum{0: {1}, 262143: {2}}))
	must(t, r.ClearDirty([]int64{1}))
	must(t, r.Promise(2))
	must(t, d.PutReceipt(testID, 1, []byte("receipt")))
	must(t, r.Present())
	must(t, r.Close())

	again, err := OpenDir(vfs.OS(), d.Path(), installation)
	must(t, err)
	r = openReplica(t, again)
	for _, at := range []int64{1000, far} {
		got := vfs.AlignedBuffer(len(data))
		must(t, r.ReadBlocks(got, at))
		if !bytes.Equal(got, data) {
			t.Errorf("blocks at %d differ", at)
		}
		got = got[:len(entries)]
		must(t, r.ReadEntries(got, at/EntriesPerPage))
		if !bytes.Equal(got, entries) {
			t.Errorf("entries at %d differ", at)
		}
	}
	if got := r.Dirty(); !slices.Equal(got, []int64{0, 262143, 262144}) || r.Record().Promised != 2 {
		t.Errorf("dirty %v, promised %d", got, r.Record().Promised)
	}
	if total, err := r.Total(); err != nil || total != (digest.Sum{3}) {
		t.Errorf("total %s, %v", total, err)
	}
	if next, ok, err := r.NextData(3 * RegionBlocks); err != nil || !ok || next != far {
		t.Errorf("data after a hole of a tebibyte at %d, %v, %v", next, ok, err)
	}
	if n, err := again.Allocated(testID); err != nil || n < 600*BlockSize || n > 4<<20 {
		t.Errorf("allocated %d, %v: the volume is not thin", n, err)
	}
	must(t, r.Close())
	must(t, again.Remove(testID))
}

func TestWritesDoNotAllocate(t *testing.T) {
	d := onDisk(t)
	r := newReplica(t, d)
	p := vfs.AlignedBuffer(BlockSize)
	must(t, r.MarkDirty([]int64{0}))
	regions := []int64{0}
	n := testing.AllocsPerRun(50, func() {
		must(t, r.MarkDirty(regions))
		must(t, r.WriteBlocks(p, 7))
		must(t, r.ReadBlocks(p, 7))
	})
	if n > 0 {
		t.Errorf("%v allocations for each write and read", n)
	}
}

func BenchmarkWriteBlock(b *testing.B) {
	r := newReplica(b, onDisk(b))
	p := vfs.AlignedBuffer(BlockSize)
	b.SetBytes(BlockSize)
	for i := int64(0); b.Loop(); i++ {
		must(b, r.WriteBlocks(p, i%(4*RegionBlocks)))
	}
}

func BenchmarkMarkDirty(b *testing.B) {
	r := newReplica(b, onDisk(b))
	for b.Loop() {
		must(b, r.MarkDirty([]int64{1}))
		must(b, r.ClearDirty([]int64{1}))
	}
}

func BenchmarkAccept(b *testing.B) {
	r := newReplica(b, onDisk(b))
	for i := uint32(2); b.Loop(); i++ {
		must(b, r.Accept(configAt(1, i), Session{}))
	}
}

func BenchmarkOpenTebibyte(b *testing.B) {
	d := onDisk(b)
	c := configAt(1, 1)
	c.Size = volume.TiB
	must(b, d.Create(superOf(d), c))
	for b.Loop() {
		r, err := d.Open(testID, "bench")
		must(b, err)
		must(b, r.Close())
	}
}
