package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"syscall"
)

// memFile is an open file of a Mem.
type memFile struct {
	mem    *Mem
	node   *memNode
	name   string
	mode   Mode
	closed bool
}

func (m *Mem) newFile(n *memNode, name string, mode Mode) *memFile {
	f := &memFile{mem: m, node: n, name: name, mode: mode}
	n.opens++
	m.files[f] = struct{}{}
	return f
}

// look runs call, which changes nothing, on the open file.
func (f *memFile) look(op string, call func() error) error {
	return f.mem.look(op, f.name, func() error {
		if f.closed {
			return fs.ErrClosed
		}
		return call()
	})
}

// change makes c visible, and durable at the next Datasync.
func (f *memFile) change(op string, c dataChange) error {
	return f.look(op, func() error {
		d := f.mem.disk
		switch {
		case f.mode&ReadOnly != 0:
			return syscall.EBADF
		case d.readOnly:
			return syscall.EROFS
		case c.data != nil && f.node.data.missing(c.off, c.n) > d.capacity-d.used:
			return syscall.ENOSPC
		}
		before := f.node.data.allocated()
		f.node.data.apply(c)
		d.used += f.node.data.allocated() - before
		f.node.unsynced = append(f.node.unsynced, d.ordered(c))
		return nil
	})
}

// ordered gives a change its place among all changes.
func (d *memDisk) ordered(c dataChange) dataChange {
	d.order++
	c.order = d.order
	return c
}

func (f *memFile) ReadAt(p []byte, off int64) error {
	if err := checkTransfer(p, off, f.mode&Direct != 0); err != nil {
		return pathError("read", f.name, err)
	}
	return f.look("read", func() error {
		f.node.data.readAt(p, off)
		return nil
	})
}

func (f *memFile) WriteAt(p []byte, off int64) error {
	if err := checkTransfer(p, off, f.mode&Direct != 0); err != nil {
		return pathError("write", f.name, err)
	}
	if off > math.MaxInt64-int64(len(p)) {
		return pathError("write", f.name, syscall.EFBIG)
	}
	if len(p) == 0 {
		return f.look("write", func() error { return nil })
	}
	return f.change("write", dataChange{off: off, n: int64(len(p)), data: bytes.Clone(p)})
}

func (f *memFile) Datasync() error {
	return f.look("datasync", func() error {
		f.node.sync()
		return nil
	})
}

func (n *memNode) sync() {
	for _, c := range n.unsynced {
		n.media.apply(c)
	}
	n.unsynced = nil
}

func (f *memFile) Punch(off, n int64) error {
	if off < 0 || n <= 0 {
		return pathError("punch", f.name, syscall.EINVAL)
	}
	return f.change("punch", dataChange{off: off, n: n})
}

func (f *memFile) Truncate(size int64) error {
	if size < 0 {
		return pathError("truncate", f.name, syscall.EINVAL)
	}
	return f.change("truncate", dataChange{off: size, trim: true})
}

func (f *memFile) NextData(off int64) (next int64, err error) {
	err = f.look("nextdata", func() error {
		if off < 0 {
			return syscall.EINVAL
		}
		next = f.node.data.nextData(off)
		return nil
	})
	return next, err
}

func (f *memFile) Info() (info Info, err error) {
	err = f.look("stat", func() error {
		info = f.mem.disk.info(f.node)
		return nil
	})
	return info, err
}

func (f *memFile) Close() error {
	return f.look("close", func() error {
		f.close()
		return nil
	})
}

func (f *memFile) close() {
	f.closed = true
	if f.mode&Locked != 0 {
		f.node.lock = nil
	}
	f.node.opens--
	delete(f.mem.files, f)
	f.mem.disk.release(f.node)
}

// memLock is a lock that is held while its process lives.
type memLock struct {
	mem    *Mem
	node   *memNode
	holder string
}

// Lock implements FS.
func (m *Mem) Lock(name, holder string) (u Unlocker, err error) {
	err = m.look("lock", name, func() error {
		n, err := m.disk.openNode(name, Create)
		if err != nil {
			return err
		}
		l := &memLock{mem: m, node: n, holder: holder}
		if err := n.take(name, l); err != nil {
			return err
		}
		u = l
		m.disk.sign(n, holder)
		return nil
	})
	return u, plainLockError(err)
}

// take gives the node's lock to l, unless a process that lives has it.
func (n *memNode) take(name string, l *memLock) error {
	if held := n.lock; held != nil && !held.mem.dead {
		return &LockedError{Name: name, Holder: held.holder}
	}
	n.lock = l
	return nil
}

// sign writes who holds the lock into its file.
func (d *memDisk) sign(n *memNode, holder string) {
	before := n.data.allocated()
	text := []byte(holder)
	for _, c := range []dataChange{{trim: true}, {n: int64(len(text)), data: text}} {
		n.data.apply(c)
		n.unsynced = append(n.unsynced, d.ordered(c))
	}
	d.used += n.data.allocated() - before
}

// plainLockError takes a *LockedError out of its path error: it names the file itself.
func plainLockError(err error) error {
	if locked, ok := errors.AsType[*LockedError](err); ok {
		return locked
	}
	return err
}

// Unlock implements Unlocker.
func (l *memLock) Unlock() error {
	l.mem.disk.mu.Lock()
	defer l.mem.disk.mu.Unlock()
	if l.node.lock == l {
		l.node.lock = nil
	}
	return nil
}
