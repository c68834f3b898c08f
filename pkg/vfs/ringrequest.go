package vfs

import (
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringRequest is a request and, after wait, its outcome.
type ringRequest struct {
	op  uint8
	fd  int
	p   []byte
	off int64

	slot *ringSlot
	code int32 // what the system call would return, or -errno
}

// ringSlot is a request in flight. It keeps the buffer reachable while the kernel uses it; heap memory does not move.
type ringSlot struct {
	index  uint64
	armed  atomic.Bool // in flight; what orders the goroutines' accesses, since Go does not see that the kernel does
	p      []byte
	result int32

	first   *ringSlot     // of the requests made together with this one: the one whose done is signalled
	pending atomic.Int32  // of the first: how many are in flight
	done    chan struct{} // of the first: none is
}

// complete is called by whoever reaps.
func (s *ringSlot) complete(result int32) {
	if !s.armed.Swap(false) {
		panic("vfs: io_uring completed a request that nobody made")
	}
	s.result = result
	if first := s.first; first.pending.Add(-1) == 0 {
		first.done <- struct{}{}
	}
}

// result is what the system call would return. ok is false where the request was not made and a blocking call must do it.
func (q *ringRequest) result() (n int, ok bool, err error) {
	switch errno := syscall.Errno(-q.code); {
	case q.code >= 0:
		return int(q.code), true, nil
	case errno == unix.ECANCELED: // no slot was free, or the thread that submitted it has ended
		return 0, false, nil
	default:
		return 0, true, errno
	}
}

func (q *ringRequest) entry() sqe {
	return sqe{
		opcode:   q.op,
		fd:       int32(q.fd),
		off:      uint64(q.off),
		addr:     uint64(uintptr(unsafe.Pointer(unsafe.SliceData(q.p)))),
		len:      uint32(len(q.p)),
		userData: q.slot.index,
	}
}

// do makes one request. It returns what ringRequest.result does.
func (r *ring) do(op uint8, fd int, p []byte, off int64) (n int, ok bool, err error) {
	q := [1]ringRequest{{op: op, fd: fd, p: p, off: off}}
	r.start(q[:])
	r.wait(q[:], false)
	return q[0].result()
}

// start makes requests; wait must follow.
func (r *ring) start(requests []ringRequest) {
	var first *ringSlot
	n := 0
	for i := range requests {
		slot := r.take()
		if slot == nil {
			break
		}
		if first == nil {
			first = slot
		}
		slot.first, slot.p = first, requests[i].p
		requests[i].slot = slot
		n++
	}
	if n == 0 {
		return
	}
	first.pending.Store(int32(n))
	for i := range n {
		requests[i].slot.armed.Store(true)
	}
	r.queue(requests[:n], n)
}

// take returns a slot, or nil where all are in use.
func (r *ring) take() *ringSlot {
	select {
	case slot := <-r.free:
		return slot
	default:
		return nil
	}
}

// wait returns when the requests that were started together are done. alone is what begin said of them.
func (r *ring) wait(requests []ringRequest, alone bool) {
	if first := requests[0].slot; first != nil {
		if alone {
			r.waitInKernel(first)
		}
		<-first.done
	}
	for i := range requests {
		requests[i].finish(r)
	}
}

func (q *ringRequest) finish(r *ring) {
	slot := q.slot
	if slot == nil {
		q.code = -int32(unix.ECANCELED)
		return
	}
	q.code, q.slot = slot.result, nil
	slot.p, slot.first = nil, nil
	r.free <- slot
}

// waitInKernel blocks the thread until the requests are done. It reaps for everybody meanwhile: requests that others began
// after all may learn of their end only when ours have ended.
func (r *ring) waitInKernel(first *ringSlot) {
	r.reap.Lock()
	defer r.reap.Unlock()
	atomic.StoreUint32(r.cqFlags, ringEventFDDisabled)
	r.reapAll()
	for n := first.pending.Load(); n > 0; n = first.pending.Load() {
		// The queue is empty and stays ours, so that n completions cannot all have been handed out before. An error is
		// EINTR, and asking again is right.
		_, _, _ = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 0, uintptr(n), ringEnterGetEvents, 0, 0)
		r.reapAll()
	}
	atomic.StoreUint32(r.cqFlags, 0)
	r.reapAll() // what came before the kernel saw that it must signal again
}
