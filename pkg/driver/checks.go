package driver

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/volume"
)

// checks runs at most one check of a filesystem for a volume, independently of the calls that wait for it.
type checks struct {
	base context.Context
	stop context.CancelFunc
	all  sync.WaitGroup

	mu      sync.Mutex
	running map[volume.ID]*checking
	failed  map[volume.ID]string // what the newest finished one came to, where the filesystem may not be mounted
}

// checking is one check under way.
type checking struct {
	since  time.Time
	cancel context.CancelFunc
	done   chan struct{}
	err    error  // valid after done
	step   string // how far it is; guarded by checks.mu
}

func newChecks() *checks {
	base, stop := context.WithCancel(context.Background())
	return &checks{base: base, stop: stop, running: map[volume.ID]*checking{}, failed: map[volume.ID]string{}}
}

// do starts work for the volume, or joins what runs, and waits for its end, or answers ABORTED before ctx ends; the work goes on then.
func (c *checks) do(ctx context.Context, id volume.ID, work func(ctx context.Context, progress func(string)) error) error {
	return c.wait(ctx, id, c.start(id, work))
}

// join waits as do does for what runs for the volume; nothing that runs is no error.
func (c *checks) join(ctx context.Context, id volume.ID) error {
	c.mu.Lock()
	run := c.running[id]
	c.mu.Unlock()
	if run == nil {
		return nil
	}
	return c.wait(ctx, id, run)
}

func (c *checks) start(id volume.ID, work func(context.Context, func(string)) error) *checking {
	c.mu.Lock()
	defer c.mu.Unlock()
	if run := c.running[id]; run != nil {
		return run
	}
	if c.base.Err() != nil {
		return ended(answer(codes.Aborted, "this process is about to end; stage it again"))
	}
	ctx, cancel := context.WithCancel(c.base)
	run := &checking{since: time.Now(), cancel: cancel, done: make(chan struct{})}
	c.running[id] = run
	c.all.Go(func() { c.run(ctx, id, run, work) })
	return run
}

// ended is a check that never began.
func ended(err error) *checking {
	done := make(chan struct{})
	close(done)
	return &checking{done: done, err: err}
}

func (c *checks) run(ctx context.Context, id volume.ID, run *checking, work func(context.Context, func(string)) error) {
	err := work(ctx, func(step string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		run.step = step
	})
	if err != nil && ctx.Err() != nil {
		err = answer(codes.Aborted, "the check of its filesystem was called off; stage it again")
	}
	run.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	run.err = err
	delete(c.running, id)
	if delete(c.failed, id); err != nil && codeOf(err) != codes.Aborted {
		c.failed[id] = err.Error()
	}
	close(run.done)
}

func (c *checks) wait(ctx context.Context, id volume.ID, run *checking) error {
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return answer(codes.Aborted, "not mounted yet: %s; ask again", c.status(id))
	}
}

// status says how far the volume's check is, "" where none runs.
func (c *checks) status(id volume.ID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	run := c.running[id]
	if run == nil {
		return ""
	}
	text := fmt.Sprintf("its filesystem is being checked (%s), for %v now", cmp.Or(run.step, "replaying its journal"), time.Since(run.since).Truncate(time.Second))
	if before := c.failed[id]; before != "" {
		text += "; the check before: " + before
	}
	return text
}

// end calls off what runs for the volume and waits until its tool is gone.
func (c *checks) end(ctx context.Context, id volume.ID) error {
	c.mu.Lock()
	run := c.running[id]
	c.mu.Unlock()
	if run == nil {
		return nil
	}
	run.cancel()
	ctx, cancel := early(ctx)
	defer cancel()
	select {
	case <-run.done:
		return nil
	case <-ctx.Done():
		return answer(codes.Aborted, "the check of its filesystem was called off and has not ended yet: its device does not answer")
	}
}

// close calls off everything that runs, and waits for it or for ctx.
func (c *checks) close(ctx context.Context) error {
	c.mu.Lock()
	c.stop() // none begins from here on
	c.mu.Unlock()
	done := make(chan struct{})
	go func() { c.all.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("checks of filesystems do not end: %w", context.Cause(ctx))
	}
}

// early ends a little before ctx does: an answer given at the deadline never reaches the caller, who then sees "deadline exceeded"
// and not how far the work is.
func early(ctx context.Context) (context.Context, context.CancelFunc) {
	const margin = 500 * time.Millisecond
	deadline, bounded := ctx.Deadline()
	if !bounded {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, margin)))
}
