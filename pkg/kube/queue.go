package kube

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// Back-off of work that failed.
const (
	retryFirst = time.Second
	retryMax   = time.Minute
)

// queue does work by name: one name is never worked on twice at the same time, and what fails is done again later.
type queue struct {
	workqueue.TypedRateLimitingInterface[string]
	do  func(ctx context.Context, name string) error
	log *slog.Logger
	of  string // what the names are of, for the log
}

func newQueue(of string, log *slog.Logger, do func(ctx context.Context, name string) error) *queue {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryMax)
	return &queue{workqueue.NewTypedRateLimitingQueue(limiter), do, log, of}
}

// run works until ctx ends.
func (q *queue) run(ctx context.Context, workers int) {
	defer context.AfterFunc(ctx, q.ShutDown)()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for q.next(ctx) {
			}
		})
	}
	all.Wait()
}

func (q *queue) next(ctx context.Context) bool {
	name, over := q.Get()
	if over {
		return false
	}
	defer q.Done(name)
	if err := q.do(ctx, name); err != nil && ctx.Err() == nil {
		q.log.Warn("will be tried again", q.of, name, "error", err)
		q.AddRateLimited(name)
		return true
	}
	q.Forget(name)
	return true
}
