package device

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// memory is a Backend in RAM that counts and can be told to fail, to wait, and to grow.
type memory struct {
	bytes                     []byte
	size                      atomic.Int64
	flushes, discards, zeroes atomic.Int64
	misaligned                atomic.Int64
	fail                      atomic.Pointer[error]
	gate                      atomic.Pointer[chan struct{}]
}

// newMemory has room to grow to max.
func newMemory(t testing.TB, size, max int64) *memory {
	t.Helper()
	b, err := unix.Mmap(-1, 0, int(max), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	m := &memory{bytes: b}
	m.size.Store(size)
	return m
}

// failWith has every request fail from now on; nil ends that.
func (m *memory) failWith(err error) {
	if err == nil {
		m.fail.Store(nil)
		return
	}
	m.fail.Store(&err)
}

// hold has requests wait until release is called.
func (m *memory) hold() (release func()) {
	c := make(chan struct{})
	m.gate.Store(&c)
	return func() { m.gate.Store(nil); close(c) }
}

func (m *memory) enter(p []byte) error {
	if p != nil && misalignment(p) != 0 {
		m.misaligned.Add(1)
	}
	if c := m.gate.Load(); c != nil {
		<-*c
	}
	if e := m.fail.Load(); e != nil {
		return *e
	}
	return nil
}

func (m *memory) ReadAt(p []byte, off int64) error {
	err := m.enter(p)
	copy(p, m.bytes[off:])
	return err
}

func (m *memory) WriteAt(p []byte, off int64) error {
	if err := m.enter(p); err != nil {
		return err
	}
	copy(m.bytes[off:], p)
	return nil
}

func (m *memory) Flush() error { m.flushes.Add(1); return m.enter(nil) }

func (m *memory) Discard(off, n int64) error {
	m.discards.Add(1)
	return errors.Join(m.zero(off, n), m.enter(nil))
}

func (m *memory) Zero(off, n int64) error {
	m.zeroes.Add(1)
	return errors.Join(m.zero(off, n), m.enter(nil))
}

// zero gives whole pages back to the kernel, which is faster by far than clearing them.
func (m *memory) zero(off, n int64) error {
	if off%4096 == 0 && n%4096 == 0 {
		return unix.Madvise(m.bytes[off:off+n], unix.MADV_DONTNEED)
	}
	clear(m.bytes[off : off+n])
	return nil
}

func (m *memory) Size() int64 { return m.size.Load() }

// file is a Backend on a file with O_DIRECT.
type file struct {
	f    *os.File
	size int64
}

func openFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &file{f: f, size: st.Size()}, nil
}

func (b *file) ReadAt(p []byte, off int64) error {
	_, err := b.f.ReadAt(p, off)
	return err
}

func (b *file) WriteAt(p []byte, off int64) error {
	_, err := b.f.WriteAt(p, off)
	return err
}

func (b *file) Flush() error { return unix.Fdatasync(int(b.f.Fd())) }

func (b *file) Discard(off, n int64) error {
	return unix.Fallocate(int(b.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (b *file) Zero(off, n int64) error {
	return unix.Fallocate(int(b.f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (b *file) Size() int64 { return b.size }
