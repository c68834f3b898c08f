package mirror

import (
	"context"
	"sync"

	"github.com/belay-storage/belay/pkg/volume"
)

// tally is what an engine process has counted since it started. It holds totals, so that a reader who misses some
// misses nothing.
type tally struct {
	Members  int          `json:"members"`
	Replicas int          `json:"replicas"`
	Repaired uint64       `json:"repaired"`
	Scrubbed volume.Bytes `json:"scrubbed"`
}

// counter keeps a tally in the engine process and wakes whoever follows it.
type counter struct {
	mu      sync.Mutex
	now     tally
	changed chan struct{} // closed and replaced at each change
}

func newCounter() *counter { return &counter{changed: make(chan struct{})} }

func (c *counter) change(f func(*tally)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.now)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *counter) read() (tally, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.changed
}

// events are the callbacks of the session in the engine process.
func (c *counter) events() Events {
	return Events{
		Replicas: func(_ volume.ID, members, replicas int) {
			c.change(func(t *tally) { t.Members, t.Replicas = members, replicas })
		},
		Repaired: func(volume.ID) { c.change(func(t *tally) { t.Repaired++ }) },
		Scrubbed: func(_ volume.ID, n volume.Bytes) { c.change(func(t *tally) { t.Scrubbed += n }) },
	}
}

// follow reports each change until ctx ends.
func (c *counter) follow(ctx context.Context, report func(tally)) {
	for {
		now, changed := c.read()
		report(now)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (e Events) difference(id volume.ID, before, now tally) {
	if e.Replicas != nil && now.Replicas > 0 {
		e.Replicas(id, now.Members, now.Replicas)
	}
	for range now.Repaired - before.Repaired {
		if e.Repaired != nil {
			e.Repaired(id)
		}
	}
	if n := now.Scrubbed - before.Scrubbed; n > 0 && e.Scrubbed != nil {
		e.Scrubbed(id, n)
	}
}
