package mirror

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
)

// blockset is a set of the blocks of one region.
type blockset [store.RegionBlocks / 64]uint64

func (b *blockset) has(i int64) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b *blockset) add(i int64)      { b[i/64] |= 1 << (i % 64) }

func (b *blockset) empty() bool { return *b == blockset{} }

func (b *blockset) fill() {
	for i := range b {
		b[i] = ^uint64(0)
	}
}

// region is what the engine knows of a dirty region: one whose replicas may differ after a crash, or that holds blocks
// which were not read back yet.
type region struct {
	mu      sync.Mutex
	sum     digest.Sum // expected
	written blockset   // since the last verification
	touched atomic.Int64
}

func (r *region) update(h *digest.Hasher, block int64, old, now digest.Hash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h.Sub(&r.sum, old)
	h.Add(&r.sum, now)
	r.written.add(block % store.RegionBlocks)
}

// regions are the dirty regions, and the sum of all clean ones: together the digest that the engine expects.
type regions struct {
	mu    sync.RWMutex
	dirty map[int64]*region
	clean digest.Sum

	marking sync.Mutex // held while regions are being marked on the stores
	waiting map[int64]struct{}
	pending sync.Mutex // guards waiting
}

func newRegions() *regions {
	return &regions{dirty: map[int64]*region{}, waiting: map[int64]struct{}{}}
}

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

// add makes a region dirty whose sum was base.
func (g *regions) add(i int64, base digest.Sum) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirty[i] != nil {
		return
	}
	r := &region{sum: base}
	r.touched.Store(time.Now().UnixNano())
	g.dirty[i] = r
	g.clean = g.clean.Minus(base)
}

// settle makes a region clean again.
func (g *regions) settle(i int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.dirty[i]; r != nil {
		g.clean = g.clean.Plus(r.sum)
		delete(g.dirty, i)
	}
}

// list returns the dirty regions in ascending order.
func (g *regions) list() []int64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return sortedKeys(g.dirty)
}

// total is the digest that the engine expects of every member. Nobody may write meanwhile.
func (g *regions) total() digest.Sum {
	g.mu.RLock()
	defer g.mu.RUnlock()
	sum := g.clean
	for _, r := range g.dirty {
		sum = sum.Plus(r.sum)
	}
	return sum
}
