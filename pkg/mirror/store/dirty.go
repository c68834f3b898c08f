package store

import (
	"encoding/binary"
	"math/bits"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
)

// The dirty map is cut into units of one sector, so that a power cut leaves each old or new.
const (
	unitSize     = sectorSize
	unitMagic    = "DRTY"
	unitWords    = (unitSize - 8) / 8
	unitRegions  = unitWords * 64
	unitsPerPage = PageSize / unitSize
	pageWords    = unitsPerPage * unitWords
	pageRegions  = unitsPerPage * unitRegions
)

// encodeUnit writes unitWords of bits to p, which holds unitSize bytes of the unit u.
func encodeUnit(p []byte, u int64, owner quorum.UUID, words []uint64) {
	copy(p[4:8], unitMagic)
	for i, w := range words[:unitWords] {
		binary.LittleEndian.PutUint64(p[8+8*i:], w)
	}
	binary.LittleEndian.PutUint32(p, check(p[4:unitSize], owner, uint64(u)))
}

// unitState is what a unit of the dirty map turned out to be.
type unitState int

const (
	unitWhole unitState = iota
	unitBlank           // all zeros: never written, or lost
	unitDamaged
)

// decodeUnit fills unitWords of words from p, unitSize bytes of the unit u. They are untouched where it is not whole.
func decodeUnit(p []byte, u int64, owner quorum.UUID, words []uint64) unitState {
	if digest.IsZero(p[:unitSize]) {
		return unitBlank
	}
	if string(p[4:8]) != unitMagic || binary.LittleEndian.Uint32(p) != check(p[4:unitSize], owner, uint64(u)) {
		return unitDamaged
	}
	for i := range words[:unitWords] {
		words[i] = binary.LittleEndian.Uint64(p[8+8*i:])
	}
	return unitWhole
}

// bitmap has one bit for each region, in whole pages of the dirty map.
type bitmap []uint64

// has says whether the bit is set; bits past the end are not.
func (b bitmap) has(region int64) bool {
	w := region / 64
	return w < int64(len(b)) && b[w]&(1<<(region%64)) != 0
}

func (b bitmap) set(region int64)   { b[region/64] |= 1 << (region % 64) }
func (b bitmap) unset(region int64) { b[region/64] &^= 1 << (region % 64) }

// grown returns b with room for the regions below n.
func (b bitmap) grown(n int64) bitmap {
	if more := pagesFor(n)*pageWords - int64(len(b)); more > 0 {
		return append(b, make(bitmap, more)...)
	}
	return b
}

// pagesFor is the number of pages that hold the regions below n.
func pagesFor(n int64) int64 { return (n + pageRegions - 1) / pageRegions }

// list returns the set bits in ascending order.
func (b bitmap) list() []int64 {
	var out []int64
	for i, w := range b {
		for ; w != 0; w &= w - 1 {
			out = append(out, int64(i)*64+int64(bits.TrailingZeros64(w)))
		}
	}
	return out
}

// encodePage writes the page g of b to p, which holds PageSize bytes.
func (b bitmap) encodePage(p []byte, g int64, owner quorum.UUID) {
	for i := range int64(unitsPerPage) {
		u := g*unitsPerPage + i
		encodeUnit(p[i*unitSize:], u, owner, b[u*unitWords:])
	}
}

// decodeDirty reads a dirty map from p, of whole pages. Every region below written has a unit that was written once:
// where it does not check or is blank, all its regions below covered count as dirty. damaged counts such units.
func decodeDirty(p []byte, owner quorum.UUID, written, covered int64) (b bitmap, damaged int) {
	b = bitmap(nil).grown(max(int64(len(p))/unitSize*unitRegions, written, covered))
	units := int64(len(b)) / unitWords
	for u := range units {
		state := unitBlank
		if off := u * unitSize; off+unitSize <= int64(len(p)) {
			state = decodeUnit(p[off:], u, owner, b[u*unitWords:])
		}
		if state == unitDamaged || state == unitBlank && u*unitRegions < written {
			damaged++
			b.setRange(u*unitRegions, min((u+1)*unitRegions, covered))
		}
	}
	return b, damaged
}

func (b bitmap) setRange(from, to int64) {
	for r := from; r < to; r++ {
		b.set(r)
	}
}
