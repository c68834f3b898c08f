package mirror

import (
	"context"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// progressEvery is how often a waiting caller is told how far the work is.
const progressEvery = 100 * time.Millisecond

// job is work that goes on when its caller gives up; the next caller joins it. The zero value is ready.
type job[T any] struct {
	mu  sync.Mutex
	run *run[T]
}

type run[T any] struct {
	done     chan struct{}
	value    T
	err      error
	mu       sync.Mutex
	progress engine.Progress
}

// do starts work, or joins what runs, and waits for its result or for ctx. work is given a context that ends with
// nobody's call.
func (j *job[T]) do(ctx context.Context, progress func(engine.Progress), work func(context.Context, func(engine.Progress)) (T, error)) (T, error) {
	r := j.join(work)
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.done:
			return r.value, r.err
		case <-ctx.Done():
			var zero T
			return zero, ctx.Err()
		case <-tick.C:
			if progress != nil {
				progress(r.latest())
			}
		}
	}
}

func (j *job[T]) join(work func(context.Context, func(engine.Progress)) (T, error)) *run[T] {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.run != nil {
		return j.run
	}
	r := &run[T]{done: make(chan struct{})}
	j.run = r
	go func() {
		r.value, r.err = work(context.Background(), r.report)
		j.mu.Lock()
		j.run = nil
		j.mu.Unlock()
		close(r.done)
	}()
	return r
}

func (r *run[T]) report(p engine.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.progress = p
}

func (r *run[T]) latest() engine.Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}
