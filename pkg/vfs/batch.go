package vfs

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

// Transfer is a ReadAt or WriteAt that is made together with others.
type Transfer struct {
	File  File
	Write bool
	P     []byte // must stay as it is until Do returns
	Off   int64
	Err   error // what ReadAt or WriteAt would return; set by Do
}

func (t *Transfer) run() {
	if t.Write {
		t.Err = t.File.WriteAt(t.P, t.Off)
	} else {
		t.Err = t.File.ReadAt(t.P, t.Off)
	}
}

// Do makes all transfers at the same time and meanwhile runs the function, which may be nil and must not close their files. It
// returns when all that is done, with Err of each transfer set. On Direct files of the machine it needs no goroutine
// for each transfer: writing to three files takes hardly longer than writing to one.
func Do(transfers []Transfer, meanwhile func()) {
	b := batchPool.Get().(*batch)
	defer b.free()
	var others sync.WaitGroup
	for i := range transfers {
		if t := &transfers[i]; !b.add(t) {
			others.Go(t.run)
		}
	}
	b.start()
	if meanwhile != nil {
		meanwhile()
	}
	b.wait()
	others.Wait()
}

// batch is the transfers of a Do that go through the ring.
type batch struct {
	ring     *ring
	alone    bool
	requests []ringRequest
	of       []*Transfer
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

// add takes t into the batch where it can go through the ring. The file cannot be closed then before wait is over.
func (b *batch) add(t *Transfer) bool {
	f, ok := t.File.(*osFile)
	if !ok || f.ring == nil || checkTransfer(t.P, t.Off, true) != nil || len(t.P) == 0 {
		return false
	}
	if !f.open.TryRLock() { // waiting for Close here, with other files held, could be a deadlock
		return false
	}
	if f.closed {
		f.open.RUnlock()
		return false
	}
	op := ringRead
	if t.Write {
		op = ringWrite
	}
	b.ring = f.ring
	b.requests = append(b.requests, ringRequest{op: op, fd: f.fd, p: t.P, off: t.Off})
	b.of = append(b.of, t)
	return true
}

func (b *batch) start() {
	if len(b.requests) > 0 {
		b.alone = b.ring.begin(len(b.requests))
		b.ring.start(b.requests)
	}
}

func (b *batch) wait() {
	if len(b.requests) == 0 {
		return
	}
	b.ring.wait(b.requests, b.alone)
	b.ring.end(len(b.requests))
	for i, t := range b.of {
		t.File.(*osFile).open.RUnlock()
		b.requests[i].settle(t)
	}
}

// settle sets t.Err. A transfer that was not made or is short is made by a blocking call.
func (q *ringRequest) settle(t *Transfer) {
	switch n, ok, err := q.result(); {
	case !ok || errors.Is(err, unix.EINTR) || err == nil && n < len(t.P):
		t.run()
	case t.Write:
		t.Err = pathError("write", t.File.(*osFile).name, err)
	default:
		t.Err = pathError("read", t.File.(*osFile).name, err)
	}
}

func (b *batch) free() {
	clear(b.requests)
	clear(b.of)
	b.requests, b.of = b.requests[:0], b.of[:0]
	batchPool.Put(b)
}
