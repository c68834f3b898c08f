package mirror

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
)

// blockset is a set of the blocks of one region.
type blockset [store.RegionBlocks / 64]uint64

func (b *blockset) has(i int64) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b *blockset) add(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b *blockset) remove(i int64)   { b[i/64] &^= 1 << (i % 64) }

// and is what is in both.
func (b *blockset) and(o *blockset) (out blockset) {
	for i := range b {
		out[i] = b[i] & o[i]
	}
	return out
}

// without is b less o.
func (b *blockset) without(o *blockset) (out blockset) {
	for i := range b {
		out[i] = b[i] &^ o[i]
	}
	return out
}

// blockSpan is the set of n blocks from the given one on.
func blockSpan(from, n int64) (b blockset) {
	for i := from; i < from+n; i++ {
		b.add(i)
	}
	return b
}

// bounds returns the first block, and how many there are from it to the last. The set is not empty.
func (b *blockset) bounds() (first, n int64) {
	last := int64(store.RegionBlocks - 1)
	for !b.has(first) {
		first++
	}
	for !b.has(last) {
		last--
	}
	return first, last - first + 1
}

func (b *blockset) empty() bool { return *b == blockset{} }

var allBlocks = func() (b blockset) { b.fill(); return b }()

func (b *blockset) fill() {
	for i := range b {
		b[i] = ^uint64(0)
	}
}

// region is what the engine knows of a dirty region: one whose replicas may differ after a crash, or that holds blocks
// which were not read back yet.
type region struct {
	of      *regions
	touched atomic.Int64

	mu      sync.Mutex
	sum     digest.Sum // expected, of the blocks that are settled
	written blockset   // since the last verification
	found   bool       // sum is what one member's table says: nothing was written since the region was marked
	// unsettled are the blocks of which nobody has decided since the last writer's death what they are; nil: none. A block is settled
	// while its range is held exclusively, and stays so. &allBlocks is shared, and replaced by a copy.
	unsettled *blockset
}

// update makes now the checksum that is expected of a block, and settles it. old was expected before, if it was settled.
func (r *region) update(h *digest.Hasher, block int64, old, now digest.Hash) {
	i := block % store.RegionBlocks
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.settle(i) {
		h.Sub(&r.sum, old)
	}
	h.Add(&r.sum, now)
	r.written.add(i)
	r.found = false
}

// settle takes block i of the region out of the unsettled ones. It is false where it was not one. The caller holds mu.
func (r *region) settle(i int64) bool {
	if r.unsettled == nil || !r.unsettled.has(i) {
		return false
	}
	if r.unsettled == &allBlocks {
		r.unsettled = new(blockset)
		*r.unsettled = allBlocks
	}
	r.unsettled.remove(i)
	if r.unsettled.empty() {
		r.unsettled = nil
		r.of.unsettled.Add(-1)
	}
	return true
}

// untouched says that the region is as it was when it was marked, and its sum nobody's but the tables'.
func (r *region) untouched() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

// unsettledIn is which of the blocks are unsettled.
func (r *region) unsettledIn(want blockset) blockset {
	if r == nil {
		return blockset{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unsettled == nil {
		return blockset{}
	}
	return want.and(r.unsettled)
}

// regions are the dirty regions, and the sum of all clean ones: together the digest that the engine expects.
type regions struct {
	mu      sync.RWMutex
	dirty   map[int64]*region
	clean   digest.Sum
	counted int64 // the clean regions below it are in clean; the others' sums were not looked at yet

	unsettled atomic.Int64 // how many regions have unsettled blocks

	marking locks.Mutex // held while regions are being marked on the stores
	waiting map[int64]struct{}
	pending sync.Mutex // guards waiting
}

func newRegions() *regions {
	return &regions{dirty: map[int64]*region{}, waiting: map[int64]struct{}{}, counted: allCounted}
}

const allCounted = math.MaxInt64

func (g *regions) get(i int64) *region {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.dirty[i]
}

// missing lists those of [first, last] that are clean.
func (g *regions) missing(first, last int64) (out []int64) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for i := first; i <= last; i++ {
		if g.dirty[i] == nil {
			out = append(out, i)
		}
	}
	return out
}

// add makes a region dirty whose sum is base, as one member's table says.
func (g *regions) add(i int64, base digest.Sum) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirty[i] != nil {
		return
	}
	r := &region{of: g, sum: base, found: true}
	r.touched.Store(time.Now().UnixNano())
	g.dirty[i] = r
	if i < g.counted {
		g.clean = g.clean.Minus(base)
	}
}

// begin is what a session finds: regions of which nothing is known yet, and the others, which were not counted.
func (g *regions) begin(dirty []int64) {
	g.mu.Lock()
	g.counted = 0
	g.mu.Unlock()
	g.doubt(dirty)
}

// doubt makes regions dirty and unsettled that are neither. None of them is counted.
func (g *regions) doubt(list []int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, i := range list {
		if g.dirty[i] != nil {
			continue
		}
		r := &region{of: g, unsettled: &allBlocks, written: allBlocks}
		r.touched.Store(time.Now().UnixNano())
		g.dirty[i] = r
		g.unsettled.Add(1)
	}
}

// recount forgets the sums of all clean regions. The caller counts them again, and keeps others from making any clean.
func (g *regions) recount() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clean, g.counted = digest.Sum{}, 0
}

// next is the first region that is not counted; allCounted where there is none.
func (g *regions) next() int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.counted
}

// count counts the next regions, of which these are the sums: those that are clean still. The caller keeps others from making any clean.
func (g *regions) count(sums []digest.Sum, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, sum := range sums {
		if g.dirty[g.counted+int64(k)] == nil {
			g.clean = g.clean.Plus(sum)
		}
	}
	if g.counted += int64(len(sums)); !more {
		g.counted = allCounted
	}
}

// settled says that nothing is left to be decided.
func (g *regions) settled() bool { return g.unsettled.Load() == 0 }

// unsettledIn is which of the blocks of a region are unsettled.
func (g *regions) unsettledIn(region int64, want blockset) blockset {
	if g.settled() {
		return blockset{}
	}
	return g.get(region).unsettledIn(want)
}

// cleaned makes a region clean again.
func (g *regions) cleaned(i int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.dirty[i]
	if r == nil {
		return
	}
	if delete(g.dirty, i); i < g.counted {
		g.clean = g.clean.Plus(r.sum)
	}
}

// list returns the dirty regions in ascending order.
func (g *regions) list() []int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return sortedKeys(g.dirty)
}

// total is the digest that the engine expects of every member, where all is settled and counted. Nobody may write meanwhile.
func (g *regions) total() digest.Sum {
	g.mu.RLock()
	defer g.mu.RUnlock()
	sum := g.clean
	for _, r := range g.dirty {
		sum = sum.Plus(r.sum)
	}
	return sum
}
