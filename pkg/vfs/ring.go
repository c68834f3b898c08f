package vfs

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringSlots is how many requests are in flight at most; further ones are made by blocking calls. It is also the length of
// the submission queue, which therefore never fills up, and half that of the completion queue, which never overflows.
const ringSlots = 512

// aloneAfter is how many requests in a row must find no other in flight before blocking calls take over.
const aloneAfter = 32

// The io_uring operations in use, of linux/io_uring.h.
const (
	ringNop   uint8 = 0
	ringRead  uint8 = 22
	ringWrite uint8 = 23
)

// ring is an io_uring. Any goroutine submits; one waits in the runtime's poller for completions and wakes the others, so
// that no thread is blocked for a request. It lives as long as the process.
type ring struct {
	fd   int
	free chan *ringSlot

	inflight atomic.Int32 // requests between begin and end
	solo     atomic.Int32 // of the latest of them, how many in a row found no other

	mu         sync.Mutex
	sq         ringQueue
	sqes       []sqe
	queued     int  // entries the kernel was not told of
	submitting bool // somebody tells the kernel, and will tell of later entries too

	cq   ringQueue
	cqes []cqe

	slots [ringSlots]ringSlot
}

// ringSlot is a request in flight. It keeps the buffer reachable while the kernel uses it; heap memory does not move.
type ringSlot struct {
	index  uint64
	armed  atomic.Bool // in flight; what orders the goroutines' accesses, since Go does not see that the kernel does
	p      []byte
	result int32
	done   chan struct{}
}

// theRing is the ring of the process, or why there is none.
var theRing = sync.OnceValues(newRing)

func newRing() (*ring, error) {
	params := ringParams{flags: ringSetupFlags, cqEntries: 2 * ringSlots}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringSlots, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd), free: make(chan *ringSlot, ringSlots)}
	err := r.mapQueues(&params)
	if err == nil {
		err = r.try()
	}
	if err == nil {
		err = r.startReaper()
	}
	if err != nil {
		_ = unix.Close(r.fd)
		return nil, err
	}
	for i := range r.slots {
		r.slots[i].index = uint64(i)
		r.slots[i].done = make(chan struct{}, 1)
		r.free <- &r.slots[i]
	}
	return r, nil
}

// try makes a request that does nothing: some sandboxes allow a ring to be made but not to be used.
func (r *ring) try() error {
	r.push(sqe{opcode: ringNop})
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 1, ringEnterGetEvents, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_enter", errno)
	}
	atomic.AddUint32(r.cq.head, 1)
	return nil
}

// startReaper lets the runtime's poller watch the ring, which is readable while there are completions.
func (r *ring) startReaper() error {
	if err := unix.SetNonblock(r.fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(r.fd), "io_uring")
	if err := file.SetReadDeadline(time.Time{}); err != nil { // the poller did not take it
		return err
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	go func() {
		err := conn.Read(func(uintptr) bool {
			r.reap()
			return false
		})
		panic(fmt.Sprintf("vfs: waiting for io_uring: %v", err)) // else every caller would wait for ever
	}()
	return nil
}

// do makes one request and returns what the system call of that name would. ok is false where the request was not made
// and a blocking call must do it.
func (r *ring) do(op uint8, fd int, p []byte, off int64) (n int, ok bool, err error) {
	var slot *ringSlot
	select {
	case slot = <-r.free:
	default:
		return 0, false, nil
	}
	slot.p = p
	slot.armed.Store(true)
	r.submit(sqe{
		opcode:   op,
		fd:       int32(fd),
		off:      uint64(off),
		addr:     uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))),
		len:      uint32(len(p)),
		userData: slot.index,
	})
	<-slot.done
	result := slot.result
	slot.p = nil
	r.free <- slot
	switch {
	case result >= 0:
		return int(result), true, nil
	case syscall.Errno(-result) == unix.ECANCELED: // the thread that submitted it has ended
		return 0, false, nil
	}
	return 0, true, syscall.Errno(-result)
}

// begin counts a request, made through the ring or not, until end. It says whether one request at a time is all there
// is: then a blocking call is faster than parking the goroutine and having it woken. One request that finds no other
// proves nothing, since blocked threads keep the goroutines that would make others from running.
func (r *ring) begin() (alone bool) {
	if r.inflight.Add(1) > 1 {
		r.solo.Store(0)
		return false
	}
	return r.solo.Load() >= aloneAfter || r.solo.Add(1) > aloneAfter
}

func (r *ring) end() { r.inflight.Add(-1) }

// submit queues an entry. The first goroutine to find nobody submitting does it for all that come meanwhile.
func (r *ring) submit(e sqe) {
	r.mu.Lock()
	r.push(e)
	r.queued++
	if r.submitting {
		r.mu.Unlock()
		return
	}
	r.submitting = true
	if r.busy() {
		// Others that were woken by the same completions are about to submit too: one system call for all of us, and
		// one notification of the disk.
		r.mu.Unlock()
		runtime.Gosched()
		r.mu.Lock()
	}
	for r.queued > 0 {
		n := r.queued
		r.queued = 0
		r.mu.Unlock()
		r.enter(n)
		r.mu.Lock()
	}
	r.submitting = false
	r.mu.Unlock()
}

// push puts an entry into the queue. The caller holds mu.
func (r *ring) push(e sqe) {
	tail := *r.sq.tail
	r.sqes[tail&r.sq.mask] = e
	atomic.StoreUint32(r.sq.tail, tail+1)
}

// busy says whether other requests are in flight.
func (r *ring) busy() bool { return len(r.free) < ringSlots-1 }

// enter tells the kernel of n entries.
func (r *ring) enter(n int) {
	for n > 0 {
		// Raw: it never waits, and is over before the scheduler could make use of the thread.
		done, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(n), 0, 0, 0, 0)
		switch errno {
		case 0:
			n -= int(done)
		case unix.EINTR, unix.EAGAIN, unix.EBUSY: // the kernel is out of memory for now
			runtime.Gosched()
		default:
			panic(fmt.Sprintf("vfs: io_uring_enter: %v", errno)) // try did it: a descriptor was closed by somebody else
		}
	}
}

// reap wakes those whose requests are done.
func (r *ring) reap() {
	head := *r.cq.head
	for tail := atomic.LoadUint32(r.cq.tail); head != tail; tail = atomic.LoadUint32(r.cq.tail) {
		for ; head != tail; head++ {
			c := r.cqes[head&r.cq.mask]
			slot := &r.slots[c.userData]
			if !slot.armed.Swap(false) {
				panic("vfs: io_uring completed a request that nobody made")
			}
			slot.result = c.result
			slot.done <- struct{}{}
		}
		atomic.StoreUint32(r.cq.head, head)
	}
}
