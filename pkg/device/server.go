package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// Defaults of ServeOptions.
const (
	// readersDefault: requests are handed on, so that one reader keeps up; each further one is woken for every request that
	// comes alone, and keeps 1 MiB.
	readersDefault = 1
	// inflightBytesDefault is room for 64 requests of the largest size.
	inflightBytesDefault = 64 << 20
	// inflightBytesMin lets a read and a write of the largest size run beside each other.
	inflightBytesMin = 2 * maxWrite
)

var (
	// ErrQuiesced ends Serve after Quiesce.
	ErrQuiesced = errors.New("device server quiesced")
	// ErrNoResend says that the kernel cannot send the requests of a dead server again (Linux before 6.9).
	ErrNoResend = errors.New("kernel cannot resend unanswered requests")
)

// ServeOptions are how a Server works.
type ServeOptions struct {
	// Name is the volume's, for logs and errors.
	Name string
	// BlockSize is the device's logical block size, 512 (the default) or 4096. Requests that do not fit it are refused.
	BlockSize int
	// Resend has the kernel send again what an earlier server took and did not answer. That server must be provably
	// dead: what it has taken would be served twice at once.
	Resend bool
	// Readers is how many goroutines take requests from the kernel; 0 means 1.
	Readers int
	// InflightBytes bounds the data of the requests being served; the rest waits in the kernel. 0 means 64 MiB, the
	// least is 2 MiB.
	InflightBytes int64
	// Log may be nil.
	Log *slog.Logger
}

func (o *ServeOptions) complete() error {
	o.BlockSize = orDefault(o.BlockSize, blockSizeMin)
	o.Readers = orDefault(o.Readers, readersDefault)
	o.InflightBytes = orDefault(o.InflightBytes, inflightBytesDefault)
	o.Log = orDefault(o.Log, slog.New(slog.DiscardHandler))
	if err := validBlockSize(o.BlockSize); err != nil {
		return err
	}
	if o.Readers < 1 || o.InflightBytes < inflightBytesMin {
		return fmt.Errorf("device server: want at least 1 reader and %d bytes in flight, got %d and %d", inflightBytesMin, o.Readers, o.InflightBytes)
	}
	return nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Server answers the kernel's requests to a device from a Backend. At any time at most one server may take requests from
// a channel: the one before it is dead or quiesced.
//
// Readers take requests and hand each to a goroutine of its own, so that no request waits for the disk behind another.
type Server struct {
	channel *os.File
	backend Backend
	o       ServeOptions

	buffers  buffers
	requests sync.Pool
	workers  workers
	budget   *semaphore.Weighted
	inflight sync.WaitGroup
	counters counters
	failures failureLog

	fd      int // to answer on; open while Serve runs
	stopped atomic.Bool

	mu      sync.Mutex
	started bool
	cause   error      // why stopped, nil while not
	readers []*os.File // one descriptor for each reader
	done    chan struct{}
}

// NewServer returns a server for the channel of an Export, in this process or passed from another. The channel stays the
// caller's and must stay open until Serve returns.
func NewServer(channel *os.File, b Backend, o ServeOptions) (*Server, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Server{channel: channel, backend: b, o: o, fd: -1, workers: newWorkers(), done: make(chan struct{})}
	s.budget = semaphore.NewWeighted(o.InflightBytes)
	s.requests.New = func() any { return &request{server: s} }
	s.failures.log = o.Log.With("volume", o.Name)
	return s, nil
}

// Serve answers requests with b until ctx ends or the device is gone: NewServer and Server.Serve in one.
func Serve(ctx context.Context, channel *os.File, b Backend, o ServeOptions) error {
	s, err := NewServer(channel, b, o)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

// Serve answers requests until the device is gone (nil), Quiesce was called (ErrQuiesced) or ctx ends (its cause). When
// it returns, every request that it took has been answered; those it did not take wait in the kernel for the next
// server. It can be called once. ErrNoResend where that was asked for and the kernel cannot.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.start(); err != nil {
		return err
	}
	defer s.finish()
	if s.o.Resend {
		if err := s.resend(); err != nil {
			return err
		}
	}
	defer context.AfterFunc(ctx, func() { s.stop(context.Cause(ctx)) })()
	s.readAll()
	s.inflight.Wait()
	return s.outcome()
}

// Quiesce stops taking requests and returns nil when every request taken has been answered. Where ctx ends first the
// rest is still being served, and Quiesce can be called again. In either case the device can be resumed by a new Server
// without Resend, even in this process; in the second case that is not allowed to any other process.
func (s *Server) Quiesce(ctx context.Context) error {
	if !s.stop(ErrQuiesced) {
		return nil
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("device of volume %s: %d requests still in flight: %w", s.o.Name, s.Stats().Inflight, context.Cause(ctx))
	}
}

// stop has the readers end and says whether Serve was ever called. The first cause counts.
func (s *Server) stop(cause error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = cause
	}
	s.stopped.Store(true)
	for _, f := range s.readers {
		// Fails only on a file that cannot be waited for, which start has ruled out.
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	return s.started
}

func (s *Server) outcome() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.cause, unix.ENODEV) {
		return nil
	}
	return s.cause
}

func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errors.New("device server: Serve called twice")
	}
	if s.cause != nil {
		return s.cause
	}
	err := s.open()
	if err != nil {
		s.closeFiles()
		return fmt.Errorf("device of volume %s: open channel: %w", s.o.Name, err)
	}
	s.started = true
	return nil
}

// open duplicates the channel for every reader: the runtime lets one goroutine at a time wait on a file.
func (s *Server) open() error {
	var err error
	if s.fd, err = dup(s.channel); err != nil {
		return err
	}
	if err := unix.SetNonblock(s.fd, true); err != nil {
		return err
	}
	for range s.o.Readers {
		fd, err := dup(s.channel)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "device channel")
		s.readers = append(s.readers, f)
		if err := f.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeFiles()
	s.workers.end()
	s.buffers.close()
	close(s.done)
}

func (s *Server) closeFiles() {
	for _, f := range s.readers {
		f.Close()
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.readers, s.fd = nil, -1
}

func (s *Server) resend() error {
	var m [outHeaderSize]byte
	_, err := unix.Write(s.fd, putHeader(m[:], 0, notifyResend, 0))
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("device of volume %s: %w", s.o.Name, ErrNoResend)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // where the device is gone the readers tell
		return fmt.Errorf("device of volume %s: ask for unanswered requests: %w", s.o.Name, err)
	}
	return nil
}

func (s *Server) readAll() {
	var readers sync.WaitGroup
	for _, f := range s.readers {
		readers.Go(func() {
			if err := s.read(f); err != nil {
				s.stop(err)
			}
		})
	}
	readers.Wait()
}

// read takes requests until the server is stopped.
func (s *Server) read(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	buf, err := s.buffers.get(maxWrite)
	if err != nil {
		return err
	}
	defer func() { s.buffers.put(buf) }()
	end, failed := false, error(nil)
	take := func(fd uintptr) { buf, end, failed = s.drain(int(fd), buf) }
	err = conn.Read(func(fd uintptr) bool { take(fd); return end })
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		// The runtime has an error of its own for a device that went away between a read and the wait: read again, for
		// the kernel's.
		if e := conn.Control(take); e != nil || !end {
			return fmt.Errorf("device of volume %s: wait for requests: %w", s.o.Name, err)
		}
	}
	return failed
}

// drain takes what the kernel has and returns end = false when there is no more.
func (s *Server) drain(fd int, buf *buffer) (_ *buffer, end bool, err error) {
	for !s.stopped.Load() {
		n, err := readNow(fd, buf.front(writeFront))
		switch {
		case err == nil:
			if buf, err = s.take(buf, n); err != nil {
				return buf, true, err
			}
		case errors.Is(err, unix.EAGAIN):
			return buf, false, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNABORTED):
			// ENOENT: the request was withdrawn while it was being read. ECONNABORTED: the device ended meanwhile, which
			// the next read says with ENODEV.
		default:
			return buf, true, fmt.Errorf("device of volume %s: read request: %w", s.o.Name, err)
		}
	}
	return buf, true, nil
}

// dup returns another descriptor of the same open file, without f.Fd, which may change the mode that both share.
func dup(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, failed := -1, error(nil)
	err = conn.Control(func(old uintptr) {
		fd, failed = unix.FcntlInt(old, syscall.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(err, failed)
}
