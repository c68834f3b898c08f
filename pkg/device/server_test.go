package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernel speaks to a server over a socket that keeps messages apart, as /dev/fuse does. It needs no root.
type kernel struct {
	t      *testing.T
	fd     int
	server *Server
	served chan error
}

func newKernel(t *testing.T, b Backend, o ServeOptions) *kernel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	channel := os.NewFile(uintptr(fds[1]), "channel")
	s, err := NewServer(channel, b, o)
	if err != nil {
		t.Fatal(err)
	}
	k := &kernel{t: t, fd: fds[0], server: s, served: make(chan error, 1)}
	go func() { k.served <- s.Serve(context.Background()) }()
	t.Cleanup(func() {
		unix.Close(k.fd)
		channel.Close()
	})
	return k
}

func (k *kernel) send(msg []byte) {
	k.t.Helper()
	if _, err := unix.Write(k.fd, msg); err != nil {
		k.t.Fatal(err)
	}
}

// receive returns unique, errno and body of the next reply.
func (k *kernel) receive() (uint64, syscall.Errno, []byte) {
	k.t.Helper()
	if err := unix.SetsockoptTimeval(k.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}); err != nil {
		k.t.Fatal(err)
	}
	b := make([]byte, maxWrite+4096)
	n, err := unix.Read(k.fd, b)
	if err != nil || n < outHeaderSize || int(order.Uint32(b)) != n {
		k.t.Fatalf("reply of %d bytes, says %d: %v", n, order.Uint32(b), err)
	}
	return order.Uint64(b[8:]), syscall.Errno(-int32(order.Uint32(b[4:]))), b[outHeaderSize:n]
}

func (k *kernel) ask(msg []byte) (syscall.Errno, []byte) {
	k.t.Helper()
	k.send(msg)
	unique, errno, body := k.receive()
	if want := order.Uint64(msg[8:]); unique != want {
		k.t.Fatalf("reply to %#x, asked %#x", unique, want)
	}
	return errno, body
}

func TestServerAnswers(t *testing.T) {
	m := newMemory(t, 1<<20, 1<<20)
	k := newKernel(t, m, ServeOptions{BlockSize: 512})
	for _, c := range []struct {
		name  string
		msg   []byte
		errno syscall.Errno
		body  int
	}{
		{"open", header(opOpen, 1, make([]byte, 8)...), 0, openOutSize},
		{"getattr", header(opGetattr, 2, make([]byte, 16)...), 0, attrOutSize},
		{"set times", setattrRequest(3, 1<<4, 0), 0, attrOutSize},
		{"set the size it has", setattrRequest(4, setattrSize, 1<<20), 0, attrOutSize},
		{"set another size", setattrRequest(5, setattrSize, 0), unix.EPERM, 0},
		{"statfs", header(opStatfs, 6), 0, statfsOutSize},
		{"flush on close", header(opFlush, 7, make([]byte, 24)...), 0, 0},
		{"release", header(opRelease, 8, make([]byte, 24)...), 0, 0},
		{"access", header(opAccess, 9, make([]byte, 8)...), 0, 0},
		{"interrupt", header(opInterrupt, 11, make([]byte, 8)...), unix.ENOSYS, 0},
		{"unknown", header(4711, 12), unix.ENOSYS, 0},
		{"fsync", header(opFsync, 13, make([]byte, 16)...), 0, 0},
		{"write", ioRequest(opWrite, 14, 512, 512, make([]byte, 512)), 0, 8},
		{"read", ioRequest(opRead, 15, 512, 1024, nil), 0, 1024},
		{"read of a resent request", ioRequest(opRead, 16|uniqueResend, 512, 1024, nil), 0, 1024},
		{"last block", ioRequest(opRead, 17, 1<<20-512, 512, nil), 0, 512},
		{"behind the last block", ioRequest(opRead, 18, 1<<20-512, 1024, nil), unix.EINVAL, 0},
		{"half a block", ioRequest(opRead, 19, 256, 512, nil), unix.EINVAL, 0},
		{"half a block long", ioRequest(opWrite, 20, 512, 256, make([]byte, 256)), unix.EINVAL, 0},
		{"discard", fallocRequest(21, 0, 4096, fallocPunchHole|fallocKeepSize), 0, 0},
		{"discard behind the end", fallocRequest(22, 1<<20, 4096, fallocPunchHole|fallocKeepSize), unix.EINVAL, 0},
		{"zero", fallocRequest(23, 0, 4096, fallocZeroRange|fallocKeepSize), 0, 0},
		{"allocate", fallocRequest(24, 0, 4096, 0), unix.EOPNOTSUPP, 0},
		{"malformed", ioRequest(opRead, 25, 0, 0, nil), unix.EIO, 0},
	} {
		errno, body := k.ask(c.msg)
		if errno != c.errno || len(body) != c.body {
			t.Errorf("%s: errno %d (%v) with %d bytes, want %d with %d", c.name, errno, errno, len(body), c.errno, c.body)
		}
	}
	want := Stats{Reads: 6, ReadBytes: 1024 + 1024 + 512 + 1024 + 512, Writes: 2, WriteBytes: 768, Flushes: 1, Discards: 3, Zeroes: 1, Failed: 6, Resent: 1}
	eventually(t, "nothing is in flight", func() bool { return k.server.Stats().Inflight == 0 })
	got := k.server.Stats()
	got.MemoryBytes = 0
	if got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestServerMovesData(t *testing.T) {
	for _, n := range []int{512, 4096, 8192, 65536, 128 << 10} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			m := newMemory(t, 1<<20, 1<<20)
			k := newKernel(t, m, ServeOptions{BlockSize: 512})
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(i * 7)
			}
			if errno, _ := k.ask(ioRequest(opWrite, 1, 512, uint32(n), data)); errno != 0 || !bytes.Equal(m.bytes[512:512+n], data) {
				t.Fatalf("write: %v", errno)
			}
			if errno, got := k.ask(ioRequest(opRead, 2, 512, uint32(n), nil)); errno != 0 || !bytes.Equal(got, data) {
				t.Errorf("read: %v", errno)
			}
			if m.misaligned.Load() != 0 {
				t.Error("a buffer was not aligned")
			}
		})
	}
}

// A backend's error must reach the guest as a failure of that request, whatever it wraps.
func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{errors.New("no errno"), unix.EIO},
		{fmt.Errorf("store 2: %w", unix.ENOSPC), unix.ENOSPC},
		{&os.PathError{Op: "write", Err: unix.ETIMEDOUT}, unix.ETIMEDOUT},
		{unix.ENOSYS, unix.EIO}, // the kernel would never flush again
		{unix.EAGAIN, unix.EIO},
		{unix.EINTR, unix.EIO},
		{syscall.Errno(0), unix.EIO},
		{syscall.Errno(512), unix.EIO}, // the kernel would not accept the reply
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestServerRefusesOptions(t *testing.T) {
	for _, o := range []ServeOptions{{BlockSize: 1024}, {Readers: -1}, {InflightBytes: 1}} {
		if _, err := NewServer(nil, nil, o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}

// The kernel has no further request taken while the data of those being served fills the budget, and none is lost.
func TestServerBudget(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	release := m.hold()
	k := newKernel(t, m, ServeOptions{InflightBytes: inflightBytesMin, Readers: 1})
	const size, fit = 128 << 10, inflightBytesMin / (128 << 10)
	sent := make(chan error, 1)
	go func() {
		var err error
		for i := range uint64(fit + 4) {
			_, e := unix.Write(k.fd, ioRequest(opWrite, i+1, 0, size, make([]byte, size)))
			err = errors.Join(err, e)
		}
		sent <- err
	}()
	eventually(t, "one request more is taken than fits", func() bool { return k.server.Stats().Writes == fit+1 })
	if n := k.server.Stats().Inflight; n != fit {
		t.Errorf("%d requests in flight, %d fit", n, fit)
	}
	release()
	seen := map[uint64]bool{}
	for range fit + 4 {
		unique, errno, _ := k.receive()
		if seen[unique] = true; errno != 0 {
			t.Errorf("request %d: %v", unique, errno)
		}
	}
	if err := <-sent; err != nil || len(seen) != fit+4 {
		t.Errorf("answered %v, sending: %v", seen, err)
	}
}

func TestServerEnds(t *testing.T) {
	t.Run("by context", func(t *testing.T) {
		k := newKernel(t, newMemory(t, 1<<20, 1<<20), ServeOptions{})
		s, err := NewServer(k.server.channel, k.server.backend, ServeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(context.Background())
		cause := errors.New("enough")
		cancel(cause)
		if err := s.Serve(ctx); !errors.Is(err, cause) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("before it began", func(t *testing.T) {
		k := newKernel(t, newMemory(t, 1<<20, 1<<20), ServeOptions{})
		s, err := NewServer(k.server.channel, k.server.backend, ServeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Quiesce(context.Background())); err != nil {
			t.Error(err)
		}
		if err := s.Serve(context.Background()); !errors.Is(err, ErrQuiesced) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("by a broken message", func(t *testing.T) {
		k := newKernel(t, newMemory(t, 1<<20, 1<<20), ServeOptions{})
		k.send([]byte("not FUSE"))
		if err := <-k.served; !errors.Is(err, errMalformed) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestServerQuiesce(t *testing.T) {
	m := newMemory(t, 1<<20, 1<<20)
	release := m.hold()
	k := newKernel(t, m, ServeOptions{})
	k.send(ioRequest(opWrite, 1, 0, 512, bytes.Repeat([]byte{9}, 512)))
	eventually(t, "the write is taken", func() bool { return k.server.Stats().Inflight == 1 })
	short, cancel := context.WithCancel(context.Background())
	cancel()
	if err := k.server.Quiesce(short); !errors.Is(err, context.Canceled) {
		t.Errorf("with a request in flight: %v", err)
	}
	k.send(ioRequest(opRead, 2, 0, 512, nil)) // stays in the channel
	release()
	if err := k.server.Quiesce(soon(t)); err != nil {
		t.Error(err)
	}
	if err := <-k.served; !errors.Is(err, ErrQuiesced) {
		t.Errorf("Serve: %v", err)
	}
	if unique, errno, _ := k.receive(); unique != 1 || errno != 0 {
		t.Errorf("reply to %d: %v", unique, errno)
	}
	next, err := NewServer(k.server.channel, m, ServeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	go next.Serve(context.Background())
	if unique, errno, body := k.receive(); unique != 2 || errno != 0 || body[511] != 9 {
		t.Errorf("the next server's reply to %d: %v", unique, errno)
	}
	if err := next.Quiesce(soon(t)); err != nil {
		t.Error(err)
	}
}
