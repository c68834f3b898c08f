package vfs

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ringSlots is how many requests are in flight at most; further ones are made by blocking calls. It is also the length of
// the submission queue, which therefore never fills up, and half that of the completion queue, which never overflows.
const ringSlots = 512

// aloneAfter is how many requests in a row must find no other in flight before blocking calls take over.
const aloneAfter = 32

// ring is an io_uring. Any goroutine submits; one waits in the runtime's poller for completions and wakes the others, so
// that no thread is blocked for a request. It lives as long as the process.
type ring struct {
	fd   int
	free chan *ringSlot

	inflight atomic.Int32 // requests between begin and end
	solo     atomic.Int32 // of the latest of them, how many in a row found no other

	submit     sync.Mutex // guards what is below
	sq         ringQueue
	sqes       []sqe
	queued     int  // entries the kernel was not told of
	submitting bool // somebody tells the kernel, and will tell of later entries too

	reap    sync.Mutex // guards what is below
	cq      ringQueue
	cqes    []cqe
	cqFlags *uint32

	slots [ringSlots]ringSlot
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
	for i := range r.slots {
		r.slots[i].index = uint64(i)
		r.slots[i].done = make(chan struct{}, 1)
		r.free <- &r.slots[i]
	}
	for _, step := range []func() error{func() error { return r.mapQueues(&params) }, r.try, r.startReaper} {
		if err := step(); err != nil {
			_ = unix.Close(r.fd)
			return nil, err
		}
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

// startReaper has the kernel signal completions by an event descriptor, which the runtime's poller watches. It is never
// read: the poller wakes us for each signal, not for a count above zero.
func (r *ring) startReaper() error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	file := os.NewFile(uintptr(fd), "io_uring")
	err = file.SetReadDeadline(time.Time{}) // fails where the poller did not take it
	if err == nil {
		err = r.registerEvent(int32(fd))
	}
	if err != nil {
		_ = file.Close()
		return err
	}
	go r.reapForEver(file)
	return nil
}

func (r *ring) registerEvent(fd int32) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), ringRegisterEventFD, uintptr(unsafe.Pointer(&fd)), 1, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	return nil
}

func (r *ring) reapForEver(event *os.File) {
	conn, err := event.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool {
			r.reap.Lock()
			defer r.reap.Unlock()
			r.reapAll()
			return false
		})
	}
	panic(fmt.Sprintf("vfs: waiting for io_uring: %v", err)) // else every caller would wait for ever
}

// begin counts n requests made together, through the ring or not, until end. It says whether there is nothing but one caller at a
// time: then waiting in the kernel is faster than parking the goroutine and having it woken. One request that finds no other
// proves nothing, since blocked threads keep the goroutines that would make others from running.
func (r *ring) begin(n int) (alone bool) {
	if r.inflight.Add(int32(n)) > int32(n) {
		r.solo.Store(0)
		return false
	}
	return r.solo.Load() >= aloneAfter || r.solo.Add(1) > aloneAfter
}

func (r *ring) end(n int) { r.inflight.Add(-int32(n)) }

// queue tells the kernel of n requests, or leaves it to the goroutine that is doing so for others.
func (r *ring) queue(requests []ringRequest, n int) {
	r.submit.Lock()
	defer r.submit.Unlock()
	for i := range requests {
		if q := &requests[i]; q.slot != nil {
			r.push(q.entry())
		}
	}
	r.queued += n
	if r.submitting {
		return
	}
	r.submitting = true
	if len(r.free) < ringSlots-n {
		// Others that were woken by the same completions are about to queue too: one system call for all of us, and
		// one notification of the disk.
		r.unlocked(runtime.Gosched)
	}
	for r.queued > 0 {
		n := r.queued
		r.queued = 0
		r.unlocked(func() { r.enter(n) })
	}
	r.submitting = false
}

func (r *ring) unlocked(call func()) {
	r.submit.Unlock()
	defer r.submit.Lock()
	call()
}

func (r *ring) push(e sqe) {
	tail := *r.sq.tail
	r.sqes[tail&r.sq.mask] = e
	atomic.StoreUint32(r.sq.tail, tail+1)
}

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

// reapAll hands out the completions there are. The caller holds reap.
func (r *ring) reapAll() {
	head := *r.cq.head
	for tail := atomic.LoadUint32(r.cq.tail); head != tail; tail = atomic.LoadUint32(r.cq.tail) {
		for ; head != tail; head++ {
			c := r.cqes[head&r.cq.mask]
			r.slots[c.userData].complete(c.result)
		}
		atomic.StoreUint32(r.cq.head, head)
	}
}
