package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/vfs"
)

// server answers a device's requests from a backend, as a device.Server does.
type server struct {
	p        *Process
	dev      *blockDevice
	backend  device.Backend
	o        device.ServeOptions
	inflight sync.WaitGroup
	done     chan struct{} // closed when Serve has returned

	// Guarded by machine.mu.
	started bool
	cause   error // why it takes no more
	stats   device.Stats
}

func newServer(p *Process, d *blockDevice, b device.Backend, o device.ServeOptions) *server {
	return &server{p: p, dev: d, backend: b, o: o, done: make(chan struct{})}
}

// Serve implements host.Server.
func (s *server) Serve(ctx context.Context) error {
	if err := s.start(); err != nil {
		return err
	}
	defer s.finish()
	defer context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })()
	for {
		if err := s.p.gate(); err != nil {
			s.stop(err)
		}
		r, change, err := s.take()
		switch {
		case err != nil:
			s.inflight.Wait()
			if errors.Is(err, errGone) {
				return nil
			}
			return err
		case r != nil:
			s.inflight.Go(func() { s.serve(r) })
			continue
		}
		select {
		case <-change:
		case <-s.p.dead:
		}
	}
}

// errGone: the device is no more.
var errGone = errors.New("device is gone")

func (s *server) start() error {
	if err := s.p.spend("serve"); err != nil {
		return err
	}
	s.p.machine.mu.Lock()
	defer s.p.machine.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	s.started = true
	s.alone()
	s.dev.servers = append(s.dev.servers, s)
	if !s.o.Resend {
		return nil
	}
	if s.p.machine.config.WithoutResend {
		return device.ErrNoResend
	}
	s.dev.resend()
	return nil
}

// alone wants no other process to take requests from the device, or to owe an answer. The caller holds machine.mu.
func (s *server) alone() {
	for _, o := range s.dev.servers {
		if o.p != s.p && !o.p.ending {
			s.p.machine.violation("%s serves %s while %s does", s.p, s.dev, o.p)
		}
	}
}

// resend has requests asked again that were taken and not answered, in their order before those that nobody has taken. The caller
// holds machine.mu.
func (d *blockDevice) resend() {
	for _, r := range d.taken {
		r.resent, r.by = true, nil
	}
	if n := len(d.taken); n > 0 {
		d.machine.trace("%s asks %d requests again", d, n)
	}
	d.queue = append(d.taken, d.queue...)
	d.taken = nil
	slices.SortStableFunc(d.queue, func(a, b *request) int { return int(int64(a.unique) - int64(b.unique)) })
	d.changed()
}

// take returns the next request, or what changes when there is one, or why there will be none.
func (s *server) take() (*request, <-chan struct{}, error) {
	d := s.dev
	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	switch {
	case s.cause != nil:
		return nil, nil, s.cause
	case d.over != nil:
		return nil, nil, errGone
	case s.p.stopped != nil:
		return nil, s.p.stopped, nil
	case s.p.ending || len(d.queue) == 0:
		return nil, d.change, nil
	}
	r := d.queue[0]
	d.queue = d.queue[1:]
	d.taken = append(d.taken, r)
	r.by = s
	s.stats.Inflight++
	s.count(r)
	return r, nil, nil
}

func (s *server) count(r *request) {
	switch r.op {
	case opRead:
		s.stats.Reads++
	case opWrite:
		s.stats.Writes++
	case opFlush:
		s.stats.Flushes++
	case opDiscard:
		s.stats.Discards++
	case opZero:
		s.stats.Zeroes++
	}
	if r.resent {
		s.stats.Resent++
	}
}

// serve performs a request and answers it, unless its process dies meanwhile: then the kernel asks the next server.
func (s *server) serve(r *request) {
	if s.p.spend(fmt.Sprintf("take request %d", r.unique)) != nil { // several may have waited
		return
	}
	var err error
	var read []byte
	var size int64
	if r.op == opSize {
		size = s.backend.Size()
	} else {
		read, err = s.perform(r)
	}
	if s.p.spend(fmt.Sprintf("answer request %d", r.unique)) != nil {
		return
	}
	d := s.dev
	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	if s.p.ending {
		return
	}
	s.stats.Inflight--
	if err != nil {
		s.stats.Failed++
	}
	if r.by != s || d.over != nil {
		s.stats.Orphaned++
		return
	}
	d.taken = slices.DeleteFunc(d.taken, func(o *request) bool { return o == r })
	r.read, r.size = read, size
	r.finish(errnoOf(err))
	d.machine.trace("%s answers %s of %s: %v", s.p, r, d, r.err)
	d.changed()
}

func (s *server) perform(r *request) ([]byte, error) {
	if r.op == opFlush {
		return nil, s.backend.Flush()
	}
	if bs := int64(s.dev.blockSize); r.offset%bs != 0 || r.length%bs != 0 || r.offset+r.length > s.backend.Size() {
		return nil, syscall.EINVAL
	}
	switch r.op {
	case opRead:
		p := aligned(r.length)
		return p, s.backend.ReadAt(p, r.offset)
	case opWrite:
		p := aligned(r.length) // its own each time: a request may be served twice
		copy(p, r.data)
		return nil, s.backend.WriteAt(p, r.offset)
	case opDiscard:
		return nil, s.backend.Discard(r.offset, r.length)
	}
	return nil, s.backend.Zero(r.offset, r.length)
}

func aligned(n int64) []byte {
	raw := make([]byte, n+vfs.Align)
	at := (vfs.Align - int64(uintptr(unsafe.Pointer(&raw[0]))%vfs.Align)) % vfs.Align
	return raw[at : at+n : at+n]
}

// errnoOf is what the kernel hears of an error: see device.Backend.
func errnoOf(err error) error {
	if err == nil {
		return nil
	}
	e, is := errors.AsType[syscall.Errno](err)
	if !is || e == syscall.ENOSYS || e == syscall.EAGAIN || e == syscall.EINTR {
		return syscall.EIO
	}
	return e
}

// stop has the server take no more, and says whether it ever did. The first cause counts.
func (s *server) stop(cause error) bool {
	s.p.machine.mu.Lock()
	defer s.p.machine.mu.Unlock()
	if s.cause == nil {
		s.cause = cause
	}
	s.dev.changed()
	return s.started
}

// finish notes that Serve has returned.
func (s *server) finish() {
	s.p.machine.mu.Lock()
	defer s.p.machine.mu.Unlock()
	s.dev.servers = slices.DeleteFunc(s.dev.servers, func(o *server) bool { return o == s })
	close(s.done)
}

// Quiesce implements host.Server.
func (s *server) Quiesce(ctx context.Context) error {
	if err := s.p.gate(); err != nil {
		return err
	}
	if !s.stop(device.ErrQuiesced) {
		return nil
	}
	select {
	case <-s.done:
		return s.p.gate()
	case <-s.p.dead:
		return ErrKilled
	case <-ctx.Done():
		return fmt.Errorf("device of volume %s: %d requests still in flight: %w", s.o.Name, s.Stats().Inflight, context.Cause(ctx))
	}
}

// Stats implements host.Server.
func (s *server) Stats() device.Stats {
	s.p.machine.mu.Lock()
	defer s.p.machine.mu.Unlock()
	return s.stats
}
