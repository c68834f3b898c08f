package store

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
)

func mapBytes(b bitmap) []byte {
	p := make([]byte, len(b)/pageWords*PageSize)
	for g := range int64(len(b) / pageWords) {
		b.encodePage(p[g*PageSize:], g, owner)
	}
	return p
}

func TestDirtyMapRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	regions := int64(2*pageRegions + 5)
	b := bitmap(nil).grown(regions)
	var want []int64
	for i := range regions {
		if rng.IntN(50) == 0 {
			b.set(i)
			want = append(want, i)
		}
	}
	got, damaged := decodeDirty(mapBytes(b), owner, regions, regions)
	if damaged != 0 || !slices.Equal(got.list(), want) {
		t.Errorf("%d units damaged, %d regions of %d", damaged, len(got.list()), len(want))
	}
	if got.has(int64(len(got))*64) || got.has(1<<40) {
		t.Error("a region past the end is dirty")
	}
}

func TestDirtyUnitDamage(t *testing.T) {
	const regions = 3 * unitRegions
	clean := bitmap(nil).grown(regions)
	clean.set(5)
	for _, c := range []struct {
		name             string
		unit             int64
		change           func(p []byte)
		written, covered int64
		want             int // dirty regions
	}{
		{"whole", 1, func([]byte) {}, regions, regions, 1},
		{"flipped", 1, func(p []byte) { p[100] ^= 1 }, regions, regions, 1 + unitRegions},
		{"blank within the volume", 1, func(p []byte) { clear(p) }, regions, regions, 1 + unitRegions},
		{"blank past the volume", 2, func(p []byte) { clear(p) }, 2 * unitRegions, regions, 1},
		{"damaged past all data", 2, func(p []byte) { p[0] ^= 1 }, 2 * unitRegions, 2 * unitRegions, 1},
		{"damaged past the volume, not past the data", 2, func(p []byte) { p[0] ^= 1 }, 2 * unitRegions, 2*unitRegions + 7, 1 + 7},
		{"no magic", 0, func(p []byte) { p[4] = 'd' }, regions, regions, unitRegions},
	} {
		p := mapBytes(clean)
		c.change(p[c.unit*unitSize:][:unitSize])
		got, _ := decodeDirty(p, owner, c.written, c.covered)
		if n := len(got.list()); n != c.want {
			t.Errorf("%s: %d dirty, want %d", c.name, n, c.want)
		}
	}
}

func TestDirtyMapMissingIsAllDirty(t *testing.T) {
	got, damaged := decodeDirty(nil, owner, 10, 12)
	if damaged != 1 || len(got.list()) != 12 {
		t.Errorf("%d damaged, %d dirty", damaged, len(got.list()))
	}
}

func TestDirtyUnitOfAnother(t *testing.T) {
	p := make([]byte, unitSize)
	words := make([]uint64, unitWords)
	encodeUnit(p, 3, owner, words)
	if decodeUnit(p, 3, owner, words) != unitWhole || decodeUnit(p, 4, owner, words) != unitDamaged || decodeUnit(p, 3, quorum.UUID{}, words) != unitDamaged {
		t.Error("a unit passes at another place or in another replica")
	}
}

func FuzzDirtyUnit(f *testing.F) {
	p := make([]byte, unitSize)
	encodeUnit(p, 3, owner, []uint64{0: 1, 62: 2})
	f.Add(p, int64(3))
	f.Add(make([]byte, unitSize), int64(0))
	f.Fuzz(func(t *testing.T, p []byte, u int64) {
		if len(p) != unitSize {
			return
		}
		words := make([]uint64, unitWords)
		p = slices.Clone(p)
		if u%2 == 0 { // otherwise nearly nothing gets past the checksum
			putCheck(p, check(p[4:], owner, uint64(u)))
		}
		if decodeUnit(p, u, owner, words) != unitWhole {
			return
		}
		again := make([]byte, unitSize)
		encodeUnit(again, u, owner, words)
		if !slices.Equal(again, p) {
			t.Errorf("%x encodes as %x", p, again)
		}
	})
}
