package mirror

import (
	"container/list"
	"slices"
	"sync"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Bounds of the cache of entries. A page is 4 KiB and covers 512 KiB of the volume: pagesMax covers 8 GiB that are
// worked on at random with 64 MiB of memory; pagesIdle is what an idle volume keeps. Of dirty ones there are few more than
// pagesDirtyMax. The more of them wait the fewer are written: blocks beside each other share a page, and neighbouring pages a write.
const (
	pagesMax      = 16384
	pagesDirtyMax = 8192
	pagesIdle     = 256
)

// page holds the entries of 128 blocks as the engine expects them. Its bytes are in the store's format.
type page struct {
	index  int64
	mu     sync.Mutex
	raw    []byte
	dirty  bool // newer than what the stores were given
	loaded chan struct{}
	err    error

	pins  int // guarded by pages.mu, as place
	place *list.Element
}

// pages is what the engine expects of every block, kept in memory for what is worked on and read from a member otherwise.
type pages struct {
	load     func(index int64, raw []byte) (differ bool, err error) // differ: the stores do not all have what was loaded
	max      int
	dirtyMax int

	mu    sync.Mutex
	all   map[int64]*page
	order *list.List // most recently used first
	dirty map[int64]*page
}

func newPages(load func(int64, []byte) (bool, error)) *pages {
	return &pages{load: load, max: pagesMax, dirtyMax: pagesDirtyMax, all: map[int64]*page{}, order: list.New(), dirty: map[int64]*page{}}
}

// get returns the page, loaded and pinned: it stays until put.
func (c *pages) get(index int64) (*page, error) {
	p, fresh := c.pin(index)
	if fresh {
		var differ bool
		if differ, p.err = c.load(index, p.raw); differ && p.err == nil {
			p.dirty = true // nobody else knows of p yet
			c.touch(p)
		}
		close(p.loaded)
	} else {
		<-p.loaded
	}
	if p.err != nil {
		c.forget(p)
		return nil, p.err
	}
	return p, nil
}

func (c *pages) pin(index int64) (p *page, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p = c.all[index]
	if p == nil {
		p = &page{index: index, raw: vfs.AlignedBuffer(store.PageSize), loaded: make(chan struct{})}
		p.place = c.order.PushFront(p)
		c.all[index] = p
		fresh = true
	}
	p.pins++ // before room is made for it: it must not be what goes
	c.order.MoveToFront(p.place)
	if fresh {
		c.evict(c.max)
	}
	return p, fresh
}

// cached returns the pages, loaded and pinned, or nil where one of them is not in memory.
func (c *pages) cached(from, to int64) []*page {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := from; i <= to; i++ {
		if p := c.all[i]; p == nil || !p.ready() {
			return nil
		}
	}
	held := make([]*page, 0, to-from+1)
	for i := from; i <= to; i++ {
		p := c.all[i]
		p.pins++
		c.order.MoveToFront(p.place)
		held = append(held, p)
	}
	return held
}

// ready says that the page was loaded.
func (p *page) ready() bool {
	select {
	case <-p.loaded:
		return p.err == nil
	default:
		return false
	}
}

func (c *pages) put(p *page) {
	c.mu.Lock()
	p.pins--
	c.mu.Unlock()
}

func (c *pages) forget(p *page) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.pins--
	if c.all[p.index] == p {
		delete(c.all, p.index)
		c.order.Remove(p.place)
	}
}

// evict drops the least recently used clean pages until at most keep are left. Dirty ones stay until a flush; they go to the
// front, or every call until then would step over them again.
func (c *pages) evict(keep int) {
	for n := c.order.Len(); n > 0 && len(c.all) > keep; n-- {
		p := c.order.Back().Value.(*page)
		if p.pins > 0 || c.dirty[p.index] != nil {
			c.order.MoveToFront(p.place)
			continue
		}
		delete(c.all, p.index)
		c.order.Remove(p.place)
	}
}

// shrink drops clean pages down to keep.
func (c *pages) shrink(keep int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evict(keep)
}

// dirtyCount is the number of pages a flush has to write.
func (c *pages) dirtyCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.dirty)
}

// set replaces the entry of a block in p, which is pinned, and returns the one it had. sound is false where that could not be read.
func (c *pages) set(p *page, block int64, e digest.Entry) (old digest.Entry, sound bool) {
	at := slot(block)
	p.mu.Lock()
	defer p.mu.Unlock()
	old, sound = digest.Decode(p.raw[at:at+digest.EntrySize], block)
	digest.Encode(p.raw[at:at+digest.EntrySize], block, e)
	if !p.dirty {
		p.dirty = true
		c.touch(p) // before p is let go: whoever finds it dirty relies on the next flush to know of it
	}
	return old, sound
}

// touch has the next flush write p.
func (c *pages) touch(p *page) {
	c.mu.Lock()
	c.dirty[p.index] = p
	c.mu.Unlock()
}

// entry returns what the engine expects of a block in p; sound is false where its record is damaged everywhere.
func (p *page) entry(block int64) (e digest.Entry, sound bool) {
	at := slot(block)
	p.mu.Lock()
	defer p.mu.Unlock()
	return digest.Decode(p.raw[at:at+digest.EntrySize], block)
}

func slot(block int64) int64 { return block % store.EntriesPerPage * digest.EntrySize }

// takenPage is a page that a flush writes. A filler is not dirty; it lies between two that are, so that one write carries all.
type takenPage struct {
	*page
	filler bool
}

// fillMax is how many pages between two dirty ones are written with them: more bytes, and a write less.
const fillMax = 2

// takeDirty returns every page that the stores do not have yet, with fillers, in order and pinned until done.
func (c *pages) takeDirty() []takenPage {
	c.mu.Lock()
	dirty := make([]*page, 0, len(c.dirty))
	for _, p := range c.dirty {
		p.pins++
		dirty = append(dirty, p)
	}
	clear(c.dirty)
	c.mu.Unlock()
	slices.SortFunc(dirty, func(a, b *page) int { return int(a.index - b.index) })
	out := make([]takenPage, 0, len(dirty))
	for i, p := range dirty {
		if i > 0 {
			out = c.fill(out, dirty[i-1].index, p.index)
		}
		out = append(out, takenPage{page: p})
	}
	return out
}

// fill appends the pages between a and b where all of them are in memory and one write can carry them.
func (c *pages) fill(out []takenPage, a, b int64) []takenPage {
	if b-a-1 > fillMax || b-a == 1 || a/store.PagesPerRegion != b/store.PagesPerRegion {
		return out
	}
	for _, p := range c.cached(a+1, b-1) {
		out = append(out, takenPage{page: p, filler: true})
	}
	return out
}

// copyTo copies the page as it is now, and counts it as written. Where that write then fails, done makes it dirty again.
func (t takenPage) copyTo(dst []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	copy(dst, t.raw)
	if !t.filler { // one that has become dirty meanwhile is the next flush's
		t.dirty = false
	}
}

// done gives the pages back after the stores have them; failed makes them dirty again.
func (c *pages) done(taken []takenPage, failed bool) {
	for _, t := range taken {
		if failed && !t.filler {
			t.mu.Lock()
			t.dirty = true
			t.mu.Unlock()
			c.touch(t.page)
		}
		c.put(t.page)
	}
}
