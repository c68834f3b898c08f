package mirror

import (
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
)

// cacheOf holds the pages in memory, clean.
func cacheOf(t *testing.T, indexes ...int64) (*pages, map[int64]*page) {
	t.Helper()
	c := newPages(func(int64, []byte) (bool, error) { return false, nil })
	all := map[int64]*page{}
	for _, i := range indexes {
		p, err := c.get(i)
		if err != nil {
			t.Fatal(err)
		}
		c.put(p)
		all[i] = p
	}
	return c, all
}

func (c *pages) soil(all map[int64]*page, indexes ...int64) {
	for _, i := range indexes {
		c.set(all[i], i*store.EntriesPerPage, digest.Entry{Version: digest.Version{Epoch: 1, Sequence: 1}})
	}
}

// TestRunsOfAFlush: neighbours share a write within their region, and a short row of clean pages between them is written too.
func TestRunsOfAFlush(t *testing.T) {
	const next = store.PagesPerRegion
	c, all := cacheOf(t, 0, 1, 2, 3, 7, next, next+1, next+2, next+6, next+7, 3*next, 3*next+2)
	c.soil(all, 0, 3, 7, next, next+1, next+6, 3*next, 3*next+2)
	taken := c.takeDirty()
	var got [][]int64
	for _, run := range joinPages(taken) {
		var row []int64
		for _, t := range run {
			row = append(row, t.index)
		}
		got = append(got, row)
	}
	want := [][]int64{{0, 1, 2, 3}, {7}, {next, next + 1}, {next + 6}, {3 * next}, {3*next + 2}} // page 3*next+1 is not in memory
	if !slices.EqualFunc(got, want, slices.Equal[[]int64]) {
		t.Errorf("runs %v, want %v", got, want)
	}
	c.done(taken, false)
	if n := c.dirtyCount(); n != 0 {
		t.Errorf("%d pages are dirty after the flush", n)
	}
	for i, p := range all {
		if p.pins != 0 {
			t.Errorf("page %d is still pinned", i)
		}
	}
}

// TestPageDirtiedDuringAFlush: what a flush had not copied yet it takes along, what comes later is the next one's, a filler too.
func TestPageDirtiedDuringAFlush(t *testing.T) {
	c, all := cacheOf(t, 0, 1, 2)
	c.soil(all, 0, 2)
	taken := c.takeDirty() // 1 is a filler
	c.soil(all, 1, 2)
	buf := make([]byte, store.PageSize)
	for _, t := range taken {
		t.copyTo(buf)
	}
	c.soil(all, 0)
	c.done(taken, false)
	var left []int64
	for _, t := range c.takeDirty() {
		if !t.filler {
			left = append(left, t.index)
		}
	}
	if !slices.Equal(left, []int64{0, 1}) {
		t.Errorf("left for the next flush: %v, want [0 1]", left)
	}
}

// TestFailedFlushLeavesPagesDirty, and no filler with them.
func TestFailedFlushLeavesPagesDirty(t *testing.T) {
	c, all := cacheOf(t, 0, 1, 2)
	c.soil(all, 0, 2)
	taken := c.takeDirty()
	buf := make([]byte, store.PageSize)
	for _, t := range taken {
		t.copyTo(buf)
	}
	c.done(taken, true)
	if n := c.dirtyCount(); n != 2 || !all[0].dirty || all[1].dirty {
		t.Errorf("%d pages are dirty, want 2", n)
	}
}

// TestEvictionStepsOverDirtyPagesOnce: pages that wait for a flush stay, and do not make every eviction look at them again.
func TestEvictionStepsOverDirtyPagesOnce(t *testing.T) {
	c, all := cacheOf(t, 0, 1, 2, 3)
	c.max = 4
	c.soil(all, 0, 1)
	p, err := c.get(4)
	if err != nil {
		t.Fatal(err)
	}
	c.put(p)
	if len(c.all) != 4 || c.all[2] != nil {
		t.Errorf("%d pages are left; the oldest clean one should have gone", len(c.all))
	}
	if oldest := c.order.Back().Value.(*page).index; c.dirty[oldest] != nil {
		t.Errorf("dirty page %d is the first that the next eviction meets", oldest)
	}
}
