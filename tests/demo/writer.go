package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/tests/orchestrator"
)

// writer is a pod that overwrites the blocks of a file and waits for each to be durable.
type writer struct {
	longest atomic.Int64 // nanoseconds that a write took at most
	synced  atomic.Int64
	ask     chan struct{} // closed: it shall end
	end     sync.Once
	ended   chan struct{}
	err     error // set when it has ended
}

func startWriter(path string) *writer {
	w := &writer{ask: make(chan struct{}), ended: make(chan struct{})}
	go func() { w.err = w.run(path); close(w.ended) }()
	return w
}

func (w *writer) run(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	const blocks = 256
	for i := int64(0); ; i++ {
		select {
		case <-w.ask:
			return f.Close()
		default:
		}
		began := time.Now()
		if _, err := f.WriteAt(markBlock("busy"), i%blocks*blockSize); err != nil {
			return err
		}
		w.synced.Add(1)
		if took := int64(time.Since(began)); took > w.longest.Load() {
			w.longest.Store(took)
		}
	}
}

// goesOn waits for writes that were begun after the call.
func (w *writer) goesOn(ctx context.Context) error {
	until := w.synced.Load() + 2
	return orchestrator.Until(ctx, "the pod's next write", func() (bool, error) {
		select {
		case <-w.ended:
			return false, errors.Join(errors.New("the pod has ended"), w.err)
		default:
			return w.synced.Load() >= until, nil
		}
	})
}

// stop ends the pod; the error is that of the write that failed.
func (w *writer) stop() error {
	w.end.Do(func() { close(w.ask) })
	<-w.ended
	return w.err
}
