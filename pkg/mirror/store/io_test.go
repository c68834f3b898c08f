package store

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Blocks against a plain array, at random places, over frame borders.
func TestBlocksAgainstAnArray(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	r := newReplica(t, openStore(t, vfs.NewMem()))
	const blocks = 3 * RegionBlocks
	want := make([]byte, blocks*BlockSize)
	for range 300 {
		n := 1 + rng.IntN(300)
		at := rng.IntN(blocks - n)
		part := want[at*BlockSize : (at+n)*BlockSize]
		switch rng.IntN(3) {
		case 0:
			p := blocksOf(rng, n)
			must(t, r.WriteBlocks(p, int64(at)))
			copy(part, p)
		case 1:
			must(t, r.PunchBlocks(int64(at), int64(n)))
			clear(part)
		case 2:
			p := vfs.AlignedBuffer(n * BlockSize)
			must(t, r.ReadBlocks(p, int64(at)))
			if !bytes.Equal(p, part) {
				t.Fatalf("%d blocks from %d differ", n, at)
			}
		}
	}
}

func TestEntriesAreBesideBlocks(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	entries, data := blocksOf(rng, 3*PagesPerRegion), blocksOf(rng, 3*RegionBlocks)
	must(t, r.WriteEntries(entries[:5*PageSize], 0))
	must(t, r.WriteBlocks(data, 0))
	must(t, r.WriteEntries(entries[5*PageSize:], 5))
	must(t, r.Sync())
	must(t, r.Close())
	r = openReplica(t, openStore(t, m.CrashClone(nil)))
	gotEntries, gotData := vfs.AlignedBuffer(len(entries)), vfs.AlignedBuffer(len(data))
	must(t, r.ReadEntries(gotEntries, 0))
	must(t, r.ReadBlocks(gotData, 0))
	if !bytes.Equal(gotEntries, entries) || !bytes.Equal(gotData, data) {
		t.Error("entries and blocks overwrite each other")
	}
}

// Where the format says that a block and its entry are.
func TestFrameLayout(t *testing.T) {
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	p := vfs.AlignedBuffer(PageSize)
	p[0] = 1
	must(t, r.WriteBlocks(p, 2*RegionBlocks+3))
	p[0] = 2
	must(t, r.WriteEntries(p, 2*PagesPerRegion+1))
	f, err := m.Open("/disk/store/volumes/pvc-1/data", vfs.ReadOnly)
	must(t, err)
	defer f.Close()
	const frame = 32<<10 + 4<<20
	for off, want := range map[int64]byte{2*frame + 4096: 2, 2*frame + 32<<10 + 3*4096: 1} {
		must(t, f.ReadAt(p, off))
		if p[0] != want {
			t.Errorf("at %d: %d, want %d", off, p[0], want)
		}
	}
}

func TestRangesOutside(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	p := vfs.AlignedBuffer(BlockSize)
	const last = RegionsMax * RegionBlocks
	for name, err := range map[string]error{
		"negative":    r.ReadBlocks(p, -1),
		"past":        r.WriteBlocks(p, last),
		"half block":  r.WriteBlocks(p[:512], 0),
		"punch":       r.PunchBlocks(last-1, 2),
		"punch less":  r.PunchBlocks(0, -1),
		"entries":     r.WriteEntries(p, RegionsMax*PagesPerRegion),
		"mark":        r.MarkDirty([]int64{0, RegionsMax}),
		"clear":       r.ClearDirty([]int64{-1}),
		"sums":        r.WriteSums(map[int64]digest.Sum{-1: {}}),
		"read sums":   r.ReadSums(make([]digest.Sum, 2), RegionsMax-1),
		"before data": func() error { _, _, err := r.NextData(-1); return err }(),
	} {
		wantError(t, name, err, volume.ErrInvalid)
	}
	must(t, r.Failed())
}

func TestFullDiskIsNotAFailure(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	r := newReplica(t, d)
	s, err := d.Space()
	must(t, err)
	m.SetCapacity(s.Total - s.Available)
	for _, name := range []string{"WriteBlocks", "WriteEntries", "WriteSums"} {
		wantError(t, name, changes[name](r), syscall.ENOSPC)
	}
	must(t, r.MarkDirty([]int64{1, 63})) // their pages were written when the replica was made
	must(t, r.Promise(50))
	must(t, r.Sync())
	must(t, r.Failed())
	m.SetCapacity(1 << 40)
	must(t, changes["WriteBlocks"](r))
}

func TestNextData(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	next := func(from, want int64, wantOK bool) {
		t.Helper()
		if got, ok, err := r.NextData(from); got != want || ok != wantOK || err != nil {
			t.Errorf("from %d: %d, %v, %v, want %d, %v", from, got, ok, err, want, wantOK)
		}
	}
	next(0, 0, false)
	must(t, r.WriteBlocks(vfs.AlignedBuffer(BlockSize), 5*RegionBlocks+9))
	must(t, r.WriteEntries(vfs.AlignedBuffer(PageSize), 9*PagesPerRegion))
	next(0, 5*RegionBlocks, true)
	next(5*RegionBlocks+7, 5*RegionBlocks+7, true)
	next(6*RegionBlocks, 9*RegionBlocks, true)
	next(9*RegionBlocks+1000, 9*RegionBlocks+1000, true)
	next(10*RegionBlocks, 0, false)
}

func TestMarks(t *testing.T) {
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	far := int64(3*pageRegions + 17) // past the volume, as while it grows
	marks := []int64{0, 63, 64, unitRegions, far}
	must(t, r.MarkDirty(slices.Clone(marks)))
	must(t, r.MarkDirty(nil))
	must(t, r.ClearDirty([]int64{63, 5, 12345678}))
	must(t, r.ClearDirty(nil))
	want := []int64{0, 64, unitRegions, far}
	if got := r.Dirty(); !slices.Equal(got, want) || r.IsDirty(63) || !r.IsDirty(far) || r.IsDirty(RegionsMax-1) {
		t.Errorf("dirty %v", got)
	}
	again := openReplica(t, openStore(t, m.CrashClone(nil)))
	if got := again.Dirty(); !slices.Equal(got, want) {
		t.Errorf("dirty after a power cut %v", got)
	}
}

func TestMarksShareASync(t *testing.T) {
	m := newMem(t)
	var syncs, writes int
	r := openReplica(t, openStore(t, vfs.Faulty(m, func(op *vfs.Op) error {
		if op.Kind == vfs.OpDatasync {
			syncs++
		}
		if op.Kind == vfs.OpWrite {
			writes++
		}
		return nil
	})))
	syncs, writes = 0, 0
	must(t, r.MarkDirty([]int64{1, 2, 3, 40, 60}))
	must(t, r.MarkDirty([]int64{2, 40}))
	if syncs != 1 || writes != 1 {
		t.Errorf("%d writes, %d syncs", writes, syncs)
	}
}

func TestGrow(t *testing.T) {
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	c := configAt(1, 2)
	c.Size = 3 * pageRegions * RegionSize
	must(t, r.Accept(c, Session{}))
	must(t, r.MarkDirty([]int64{7}))
	clone := m.CrashClone(nil)
	again := openReplica(t, openStore(t, clone))
	if got := again.Dirty(); !slices.Equal(got, []int64{7}) || len(again.Damage()) != 0 {
		t.Errorf("dirty %d regions, damage %q", len(got), again.Damage())
	}
	must(t, again.Close())
	// A unit of the new part that is lost counts as all dirty.
	alter(t, clone, "/disk/store/volumes/pvc-1/meta", dirtyOffset+2*PageSize, func(p []byte) { clear(p) })
	lost := openReplica(t, openStore(t, clone))
	if got := lost.Dirty(); len(got) != 1+unitRegions || len(lost.Damage()) != 1 {
		t.Errorf("dirty %d regions, damage %q", len(got), lost.Damage())
	}
}

func TestSums(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	const regions = 40000 // several chunks of Total
	want := make([]digest.Sum, regions)
	var total digest.Sum
	for range 20 {
		sums := map[int64]digest.Sum{}
		for range 1 + rng.IntN(50) {
			i := rng.Int64N(regions)
			sums[i] = digest.Sum{rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64()}
		}
		must(t, r.WriteSums(sums))
		for i, s := range sums {
			total = total.Plus(s).Minus(want[i])
			want[i] = s
		}
	}
	again := openReplica(t, openStore(t, m.CrashClone(nil)))
	if got, err := again.Total(); got != total || err != nil {
		t.Errorf("total %s, %v, want %s", got, err, total)
	}
	for range 100 {
		first := rng.IntN(regions)
		got := make([]digest.Sum, 1+rng.IntN(regions-first))
		must(t, again.ReadSums(got, int64(first)))
		if !slices.Equal(got, want[first:first+len(got)]) {
			t.Fatalf("%d sums from %d differ", len(got), first)
		}
	}
	must(t, again.ReadSums(make([]digest.Sum, 3), 1<<20)) // never written: zeros
}

// 1 TiB costs a bit for each region, twice, and the time to mark does not depend on the size.
func TestMemoryOfALargeVolume(t *testing.T) {
	d := openStore(t, vfs.NewMem())
	c := configAt(1, 1)
	c.Size = volume.TiB
	must(t, d.Create(superOf(d), c))
	r := openReplica(t, d)
	if n := 8 * (len(r.dirty) + len(r.written)); n > 80<<10 {
		t.Errorf("%d bytes of marks for 1 TiB", n)
	}
	must(t, r.MarkDirty([]int64{262143}))
	if _, ok, err := r.NextData(0); ok || err != nil {
		t.Errorf("an empty volume has data: %v", err)
	}
}
