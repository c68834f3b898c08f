package vfs

import (
	"errors"
	"io"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
)

// osFile is an open file of the machine. open is read-locked by every call, so that Close cannot hand the
// descriptor's number to another file under a call that still uses it.
type osFile struct {
	name   string
	direct bool
	locked bool
	ring   *ring // nil: only blocking calls

	open   sync.RWMutex
	fd     int
	closed bool
}

// use runs call with the descriptor.
func (f *osFile) use(op string, call func(fd int) error) error {
	f.open.RLock()
	defer f.open.RUnlock()
	if f.closed {
		return pathError(op, f.name, fs.ErrClosed)
	}
	return pathError(op, f.name, call(f.fd))
}

func (f *osFile) ReadAt(p []byte, off int64) error {
	if err := f.check(p, off); err != nil {
		return pathError("read", f.name, err)
	}
	return f.use("read", func(fd int) error {
		return readFull(p, off, f.direct, func(p []byte, off int64) (int, error) { return f.transfer(ringRead, unix.Pread, fd, p, off) })
	})
}

func (f *osFile) WriteAt(p []byte, off int64) error {
	if err := f.check(p, off); err != nil {
		return pathError("write", f.name, err)
	}
	return f.use("write", func(fd int) error {
		return writeFull(p, off, f.direct, func(p []byte, off int64) (int, error) { return f.transfer(ringWrite, unix.Pwrite, fd, p, off) })
	})
}

// transfer makes one system call, or the same through the ring.
func (f *osFile) transfer(op uint8, blocking func(int, []byte, int64) (int, error), fd int, p []byte, off int64) (int, error) {
	if f.ring == nil {
		return blocking(fd, p, off)
	}
	alone := f.ring.begin(1)
	defer f.ring.end(1)
	if !alone {
		if n, ok, err := f.ring.do(op, fd, p, off); ok {
			return n, err
		}
	}
	return blocking(fd, p, off)
}

// check holds Direct files to Align even where the disk would take less, so that what works here works everywhere.
func (f *osFile) check(p []byte, off int64) error {
	return checkTransfer(p, off, f.direct)
}

func checkTransfer(p []byte, off int64, direct bool) error {
	if off < 0 {
		return unix.EINVAL
	}
	if direct && (off%Align != 0 || len(p)%Align != 0 || !aligned(p)) {
		return unix.EINVAL
	}
	return nil
}

// readFull fills p, with zeros past the end of the file.
func readFull(p []byte, off int64, direct bool, read func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n, err := read(p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		// A direct read ends between two blocks only at the end of the file, where asking again would be misaligned.
		if n == 0 || direct && n%Align != 0 {
			clear(p[n:])
			return nil
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func writeFull(p []byte, off int64, direct bool, write func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n, err := write(p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if direct {
			n -= n % Align // the block that was cut is written again, whole
		}
		if n == 0 && len(p) > 0 {
			return io.ErrShortWrite
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (f *osFile) Datasync() error {
	return f.use("datasync", func(fd int) error {
		return retry(func() error { return unix.Fdatasync(fd) })
	})
}

func (f *osFile) Punch(off, n int64) error {
	return f.use("punch", func(fd int) error {
		return retry(func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		})
	})
}

func (f *osFile) Truncate(size int64) error {
	return f.use("truncate", func(fd int) error {
		return retry(func() error { return unix.Ftruncate(fd, size) })
	})
}

func (f *osFile) NextData(off int64) (next int64, err error) {
	if off < 0 {
		return 0, pathError("nextdata", f.name, unix.EINVAL)
	}
	err = f.use("nextdata", func(fd int) error {
		next, err = unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole follows, or nothing
			next, err = unix.Seek(fd, 0, unix.SEEK_END)
		}
		return err
	})
	return next, err
}

func (f *osFile) Info() (info Info, err error) {
	err = f.use("stat", func(fd int) error {
		info, err = statx(fd, "", f.name)
		return errors.Unwrap(err)
	})
	return info, err
}

// Close waits for calls that are running.
func (f *osFile) Close() error {
	f.open.Lock()
	defer f.open.Unlock()
	if f.closed {
		return pathError("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	if f.locked { // by itself: a child that was forked in between may still have the descriptor
		_ = unix.Flock(f.fd, unix.LOCK_UN)
	}
	return pathError("close", f.name, unix.Close(f.fd))
}
