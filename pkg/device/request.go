package device

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// request is one request between being taken and being answered.
type request struct {
	server *Server
	message
	buf   *buffer                           // holds data of a WRITE, room for that of a READ; else nil
	bytes int64                             // taken from the budget
	reply [outHeaderSize + attrOutSize]byte // the longest reply without data
}

// take handles the n bytes read into buf and returns the buffer to read into next.
func (s *Server) take(buf *buffer, n int) (*buffer, error) {
	m, err := decode(buf.front(writeFront)[:n])
	if err != nil && m.unique == 0 {
		return buf, fmt.Errorf("device of volume %s: %w", s.o.Name, err)
	}
	s.counters.count(&m)
	r := s.requests.Get().(*request)
	r.message, r.buf, r.bytes = m, nil, 0
	switch {
	case err != nil:
		r.fail(err)
		r.free()
		return buf, nil
	case m.opcode == opRead || m.opcode == opWrite || m.opcode == opFsync || m.opcode == opFallocate:
		return s.hand(r, buf)
	}
	r.answerAtOnce()
	r.free()
	return buf, nil
}

// hand gives r to a worker. It waits only while the budget for data is used up.
func (s *Server) hand(r *request, buf *buffer) (*buffer, error) {
	buf, err := s.equip(r, buf)
	if err != nil {
		r.fail(err)
		r.free()
		return buf, nil
	}
	s.counters.inflight.Add(1)
	s.inflight.Add(1)
	s.workers.serve(r)
	return buf, nil
}

// equip gives r a buffer: for a WRITE the one that holds its data, or a smaller one with a copy.
func (s *Server) equip(r *request, buf *buffer) (*buffer, error) {
	if r.opcode != opRead && r.opcode != opWrite {
		return buf, nil
	}
	r.bytes = sizeOf(r.length)
	// Does not fail: ctx has no end, and the requests being served give their share back.
	_ = s.budget.Acquire(context.Background(), r.bytes)
	fresh, err := s.buffers.get(r.length)
	if err != nil {
		return buf, err
	}
	r.buf = fresh
	if r.opcode == opRead {
		return buf, nil
	}
	if fresh.class == buf.class {
		r.buf = buf
		return fresh, nil
	}
	copy(fresh.data(r.length), r.data)
	r.data = fresh.data(r.length)
	return buf, nil
}

func (r *request) free() {
	s := r.server
	if r.buf != nil {
		s.buffers.put(r.buf)
	}
	if r.bytes > 0 {
		s.budget.Release(r.bytes)
	}
	r.buf, r.data, r.bytes = nil, nil, 0
	s.requests.Put(r)
}

func (r *request) serve() {
	s := r.server
	if err := r.perform(); err != nil {
		r.fail(err)
	} else {
		r.succeed()
	}
	r.free()
	s.counters.inflight.Add(-1)
	s.inflight.Done()
}

func (r *request) perform() error {
	b := r.server.backend
	if r.opcode == opFsync {
		return b.Flush()
	}
	if err := r.server.inside(r.offset, r.length); err != nil {
		return err
	}
	switch r.opcode {
	case opRead:
		return b.ReadAt(r.buf.data(r.length), r.offset)
	case opWrite:
		return b.WriteAt(r.data, r.offset)
	}
	return r.fallocate(b)
}

func (r *request) fallocate(b Backend) error {
	switch r.mode &^ fallocKeepSize {
	case fallocPunchHole:
		return b.Discard(r.offset, r.length)
	case fallocZeroRange:
		return b.Zero(r.offset, r.length)
	}
	return unix.EOPNOTSUPP
}

// inside refuses what Backend's contract excludes. off and n are not negative and their sum does not overflow.
func (s *Server) inside(off, n int64) error {
	if bs := int64(s.o.BlockSize); off%bs != 0 || n%bs != 0 {
		return fmt.Errorf("request at %d for %d bytes is not in blocks of %d: %w", off, n, bs, unix.EINVAL)
	}
	if size := s.backend.Size(); off+n > size {
		return fmt.Errorf("request at %d for %d bytes ends behind the device's %d: %w", off, n, size, unix.EINVAL)
	}
	return nil
}

// answerAtOnce answers what needs no disk.
func (r *request) answerAtOnce() {
	out := r.reply[outHeaderSize:]
	switch r.opcode {
	case opForget, opBatchForget: // want no answer
	case opOpen:
		putOpen(out)
		r.send(openOutSize)
	case opGetattr:
		r.sendAttr()
	case opSetattr:
		r.setattr()
	case opStatfs:
		putStatfs(out, r.server.backend.Size())
		r.send(statfsOutSize)
	case opFlush, opRelease, opAccess, opDestroy:
		r.send(0)
	default: // for INTERRUPT that means: send no more of them
		r.refuse(unix.ENOSYS)
	}
}

// setattr keeps the size the backend's alone; times are of no interest.
func (r *request) setattr() {
	if r.valid&setattrSize != 0 && r.size != uint64(r.server.backend.Size()) {
		r.refuse(unix.EPERM)
		return
	}
	r.sendAttr()
}

func (r *request) sendAttr() {
	putAttr(r.reply[outHeaderSize:], r.server.backend.Size())
	r.send(attrOutSize)
}

func (r *request) succeed() {
	switch r.opcode {
	case opRead:
		msg := r.buf.front(outHeaderSize)
		r.server.write(putHeader(msg, r.unique, 0, int(r.length)))
	case opWrite:
		out := r.reply[outHeaderSize:]
		order.PutUint32(out, uint32(r.length))
		order.PutUint32(out[4:], 0)
		r.send(8)
	default:
		r.send(0)
	}
}

// send answers with n bytes of reply behind the header.
func (r *request) send(n int) { r.server.write(putHeader(r.reply[:], r.unique, 0, n)) }

// refuse answers with an errno.
func (r *request) refuse(e syscall.Errno) {
	r.server.write(putHeader(r.reply[:], r.unique, int32(e), 0))
}

// fail answers with the errno of err and logs err, of which the guest sees no more than that.
func (r *request) fail(err error) {
	r.server.counters.failed.Add(1)
	r.server.failures.report(&r.message, err)
	r.refuse(errnoOf(err))
}

// errnoOf returns the errno that err wraps, unless the kernel would take it for something else than a failure of this one
// request: it ignores every later FSYNC after ENOSYS, tries again after EAGAIN and EINTR, and does not accept values
// outside 1 to 511.
func errnoOf(err error) syscall.Errno {
	var e syscall.Errno
	if !errors.As(err, &e) || e < 1 || e > 511 {
		return unix.EIO
	}
	switch e {
	case unix.ENOSYS, unix.EAGAIN, unix.EINTR:
		return unix.EIO
	}
	return e
}

// write sends one reply.
func (s *Server) write(msg []byte) {
	switch err := writeNow(s.fd, msg); {
	case err == nil, errors.Is(err, unix.ENODEV): // the device is gone, and the readers tell
	case errors.Is(err, unix.ENOENT):
		s.counters.orphaned.Add(1) // withdrawn, or answered by somebody else
	default:
		s.o.Log.Error("kernel refused a reply", "volume", s.o.Name, "unique", order.Uint64(msg[8:]), "bytes", len(msg), "error", err)
	}
}
