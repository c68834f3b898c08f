package mount

import (
	"context"
	"fmt"
	"sync"
)

// joiner runs work that cannot be cancelled (a system call that waits for a device), once for each key at a time.
// Callers with the same key wait for the same run.
type joiner struct {
	mu   sync.Mutex
	runs map[string]*run
}

type run struct {
	done chan struct{}
	err  error
}

// do returns the outcome of work, or an error that wraps ctx's where ctx ends first.
func (j *joiner) do(ctx context.Context, key string, work func() error) error {
	r := j.start(key, work)
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("%s: still waiting for the kernel: %w", key, context.Cause(ctx))
	}
}

func (j *joiner) start(key string, work func() error) *run {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r := j.runs[key]; r != nil {
		return r
	}
	if j.runs == nil {
		j.runs = map[string]*run{}
	}
	r := &run{done: make(chan struct{})}
	j.runs[key] = r
	go func() {
		r.err = work()
		j.mu.Lock()
		delete(j.runs, key)
		j.mu.Unlock()
		close(r.done)
	}()
	return r
}
