package mount

import (
	"context"
	"fmt"
	"sync"
)

// joiner runs work that cannot be cancelled (a system call that waits for a device). For each object one run goes at a
// time, in the order of the calls; a call for the very same work as the newest run waits for that one instead.
type joiner struct {
	mu     sync.Mutex
	newest map[string]*run // by object, while it runs
}

type run struct {
	what string
	done chan struct{}
	err  error
}

// do returns the outcome of work, or an error that wraps ctx's where ctx ends first; the work goes on then.
func (j *joiner) do(ctx context.Context, what, object string, work func() error) error {
	r := j.start(what, object, work)
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("%s %s: still waiting for the kernel: %w", what, object, context.Cause(ctx))
	}
}

func (j *joiner) start(what, object string, work func() error) *run {
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.newest[object]
	if before != nil && before.what == what {
		return before
	}
	if j.newest == nil {
		j.newest = map[string]*run{}
	}
	r := &run{what: what, done: make(chan struct{})}
	j.newest[object] = r
	go func() {
		if before != nil {
			<-before.done
		}
		r.err = work()
		j.finish(object, r)
	}()
	return r
}

func (j *joiner) finish(object string, r *run) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.newest[object] == r {
		delete(j.newest, object)
	}
	close(r.done)
}
