package vfs

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	holderMax     = 4096 // of the text that is read back from a lock file
	holderUnknown = "a process that has not said who it is"
)

func (osFS) Lock(name, holder string) (Unlocker, error) {
	for {
		l, err := lockOnce(name)
		if err != nil {
			return nil, err
		}
		current, err := l.current()
		if err == nil && current {
			err = l.sign(holder)
		}
		if err == nil && current {
			return l, nil
		}
		_ = l.Unlock()
		if err != nil {
			return nil, err
		}
		// The file was removed or replaced between open and flock: that lock excludes nobody.
	}
}

func lockOnce(name string) (*osLock, error) {
	fd, err := openRetry(name, openFlags(Create))
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	l := &osLock{name: name, fd: fd}
	err = flock(name, fd)
	if err == nil {
		return l, nil
	}
	if locked, ok := errors.AsType[*LockedError](err); ok {
		locked.Holder = l.holder()
	}
	_ = unix.Close(fd)
	return nil, err
}

// flock takes the exclusive lock of an open file, or fails at once.
func flock(name string, fd int) error {
	err := retry(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return &LockedError{Name: name, Holder: holderUnknown}
	}
	return pathError("lock", name, err)
}

type osLock struct {
	name string
	fd   int
	once sync.Once
	err  error
}

// current says whether the name still leads to the locked file.
func (l *osLock) current() (bool, error) {
	mine, err := statx(l.fd, "", l.name)
	if err != nil {
		return false, err
	}
	named, err := statx(unix.AT_FDCWD, l.name, l.name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return named.Same(mine), err
}

// sign writes who holds the lock. It overwrites before it cuts, so that a full disk does not stand in the way of a
// lock file that exists already.
func (l *osLock) sign(holder string) error {
	err := writeFull([]byte(holder), 0, false, func(p []byte, off int64) (int, error) { return unix.Pwrite(l.fd, p, off) })
	if err == nil {
		err = retry(func() error { return unix.Ftruncate(l.fd, int64(len(holder))) })
	}
	return pathError("lock", l.name, err)
}

func (l *osLock) holder() string {
	p := make([]byte, holderMax)
	n, err := retryInt(func() (int, error) { return unix.Pread(l.fd, p, 0) })
	if err != nil || n <= 0 {
		return holderUnknown
	}
	return string(p[:n])
}

// Unlock releases the lock itself before it closes: a child that was forked in between may still have the descriptor.
func (l *osLock) Unlock() error {
	l.once.Do(func() {
		err := retry(func() error { return unix.Flock(l.fd, unix.LOCK_UN) })
		l.err = pathError("unlock", l.name, firstError(err, unix.Close(l.fd)))
	})
	return l.err
}
