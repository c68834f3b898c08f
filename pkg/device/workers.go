package device

import "sync/atomic"

// idleWorkersMax is how many idle workers are kept; their stacks are 8 KiB each.
const idleWorkersMax = 32

// workers run requests, each on a goroutine of its own, and use the goroutines again: a new one would grow its stack
// several times on the way down to the disk, at a tenth of the CPU of a small request.
type workers struct {
	next chan *request // taken by idle workers
	idle atomic.Int32
}

func newWorkers() workers { return workers{next: make(chan *request)} }

// serve has a worker serve r, and does not wait.
func (w *workers) serve(r *request) {
	select {
	case w.next <- r:
	default:
		go w.work(r)
	}
}

func (w *workers) work(r *request) {
	for ok := true; ok; {
		r.serve()
		if w.idle.Add(1) > idleWorkersMax {
			w.idle.Add(-1)
			return
		}
		r, ok = <-w.next
		w.idle.Add(-1)
	}
}

// end ends the idle workers. No request is served, and none will be.
func (w *workers) end() { close(w.next) }
