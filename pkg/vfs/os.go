package vfs

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Permissions of what we create: a volume's bytes are nobody else's business.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

type osFS struct {
	ring *ring // for Direct files; nil: only blocking calls
}

// OS is the file system of the machine. Every descriptor is closed on exec. Errors are *fs.PathError or *os.LinkError
// with the errno inside, but for *LockedError. Transfers of Direct files go through io_uring where Uring returns nil.
func OS() FS {
	r, _ := theRing()
	return osFS{ring: r}
}

// OSBlocking is OS without io_uring: each transfer blocks a thread.
func OSBlocking() FS { return osFS{} }

// Uring returns nil where this process can use io_uring, or the reason why it cannot.
func Uring() error {
	_, err := theRing()
	return err
}

func (o osFS) Open(name string, mode Mode) (File, error) {
	fd, err := openRetry(name, openFlags(mode))
	if err != nil {
		return nil, pathError("open", name, err)
	}
	f := &osFile{name: name, fd: fd, direct: mode&Direct != 0, locked: mode&Locked != 0}
	if f.direct {
		f.ring = o.ring
	}
	if info, err := f.Info(); err != nil || info.Dir {
		_ = f.Close()
		if err == nil {
			err = pathError("open", name, unix.EISDIR)
		}
		return nil, err
	}
	if f.locked {
		if err := flock(name, fd); err != nil {
			_ = unix.Close(fd) // not the file's Close, which would unlock
			return nil, err
		}
	}
	return f, nil
}

func openFlags(mode Mode) int {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_NOCTTY
	if mode&ReadOnly != 0 {
		flags = flags&^unix.O_RDWR | unix.O_RDONLY
	}
	if mode&Create != 0 {
		flags |= unix.O_CREAT
	}
	if mode&Exclusive != 0 {
		flags |= unix.O_EXCL
	}
	if mode&Direct != 0 {
		flags |= unix.O_DIRECT
	}
	return flags
}

func openRetry(name string, flags int) (int, error) {
	return retryInt(func() (int, error) { return unix.Open(name, flags, fileMode) })
}

func (osFS) Mkdir(name string) error                    { return os.Mkdir(name, dirMode) }
func (osFS) MkdirAll(name string) error                 { return os.MkdirAll(name, dirMode) }
func (osFS) Rename(from, to string) error               { return os.Rename(from, to) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) RemoveAll(name string) error                { return os.RemoveAll(name) }
func (osFS) Stat(name string) (Info, error)             { return statx(unix.AT_FDCWD, name, name) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

func (osFS) SyncDir(name string) error {
	fd, err := openRetry(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return pathError("syncdir", name, err)
	}
	err = retry(func() error { return unix.Fsync(fd) })
	return pathError("syncdir", name, firstError(err, unix.Close(fd)))
}

func (osFS) Space(name string) (Space, error) {
	var s unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(name, &s) }); err != nil {
		return Space{}, pathError("statfs", name, err)
	}
	info, err := statx(unix.AT_FDCWD, name, name)
	if err != nil {
		return Space{}, err
	}
	unit := s.Frsize
	if unit == 0 {
		unit = s.Bsize
	}
	return Space{
		Total:     int64(s.Blocks) * unit,
		Available: int64(s.Bavail) * unit,
		Device:    info.Device,
		ReadOnly:  s.Flags&unix.ST_RDONLY != 0,
	}, nil
}

// statx asks about path as seen from dir; name is for the error.
func statx(dir int, path, name string) (Info, error) {
	flags := unix.AT_STATX_SYNC_AS_STAT
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var s unix.Statx_t
	err := retry(func() error {
		return unix.Statx(dir, path, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID_UNIQUE, &s)
	})
	if err != nil {
		return Info{}, pathError("stat", name, err)
	}
	info := Info{
		Size:      int64(s.Size),
		Allocated: int64(s.Blocks) * 512,
		Dir:       s.Mode&unix.S_IFMT == unix.S_IFDIR,
		Device:    unix.Mkdev(s.Dev_major, s.Dev_minor),
		Inode:     s.Ino,
	}
	// Kernels before 6.8 have only mount IDs that are used again after an unmount: they would call two mounts one.
	if s.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		info.Mount = s.Mnt_id
	}
	return info, nil
}

func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// retry repeats a call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func retryInt(call func() (int, error)) (n int, err error) {
	err = retry(func() error { n, err = call(); return err })
	return n, err
}
