package machine

import (
	"io/fs"

	"github.com/belay-storage/belay/pkg/vfs"
)

// files are the disks as a process sees them: not at all where it is dead, and not now where it is stopped.
type files struct {
	p  *Process
	fs vfs.FS
}

// within makes a call of the process. One that was under way when the process died or was stopped may have had an effect; nobody
// hears of it.
func within[T any](p *Process, call func() (T, error)) (out T, err error) {
	if err := p.gate(); err != nil {
		return out, err
	}
	got, err := call()
	if gone := p.gate(); gone != nil {
		return out, gone
	}
	return got, err
}

func do(p *Process, call func() error) error {
	_, err := within(p, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func (f *files) Open(name string, mode vfs.Mode) (vfs.File, error) {
	return within(f.p, func() (vfs.File, error) {
		opened, err := f.fs.Open(name, mode)
		if err != nil {
			return nil, err
		}
		return &file{f.p, opened}, nil
	})
}

func (f *files) Mkdir(name string) error {
	return do(f.p, func() error { return f.fs.Mkdir(name) })
}

func (f *files) MkdirAll(name string) error {
	return do(f.p, func() error { return f.fs.MkdirAll(name) })
}

func (f *files) Rename(from, to string) error {
	return do(f.p, func() error { return f.fs.Rename(from, to) })
}

func (f *files) Remove(name string) error {
	return do(f.p, func() error { return f.fs.Remove(name) })
}

func (f *files) RemoveAll(name string) error {
	return do(f.p, func() error { return f.fs.RemoveAll(name) })
}

func (f *files) ReadDir(name string) ([]fs.DirEntry, error) {
	return within(f.p, func() ([]fs.DirEntry, error) { return f.fs.ReadDir(name) })
}

func (f *files) Stat(name string) (vfs.Info, error) {
	return within(f.p, func() (vfs.Info, error) { return f.fs.Stat(name) })
}

func (f *files) SyncDir(name string) error {
	return do(f.p, func() error { return f.fs.SyncDir(name) })
}

func (f *files) Space(name string) (vfs.Space, error) {
	return within(f.p, func() (vfs.Space, error) { return f.fs.Space(name) })
}

func (f *files) Lock(name, holder string) (vfs.Unlocker, error) {
	return within(f.p, func() (vfs.Unlocker, error) {
		l, err := f.fs.Lock(name, holder)
		if err != nil {
			return nil, err
		}
		return unlocker{f.p, l}, nil
	})
}

type unlocker struct {
	p *Process
	l vfs.Unlocker
}

func (u unlocker) Unlock() error { return do(u.p, u.l.Unlock) }

// file is an open file of a process.
type file struct {
	p *Process
	f vfs.File
}

func (f *file) ReadAt(p []byte, off int64) error {
	return do(f.p, func() error { return f.f.ReadAt(p, off) })
}

func (f *file) WriteAt(p []byte, off int64) error {
	return do(f.p, func() error { return f.f.WriteAt(p, off) })
}

func (f *file) Datasync() error { return do(f.p, f.f.Datasync) }

func (f *file) Punch(off, n int64) error {
	return do(f.p, func() error { return f.f.Punch(off, n) })
}

func (f *file) Truncate(size int64) error {
	return do(f.p, func() error { return f.f.Truncate(size) })
}

func (f *file) NextData(off int64) (int64, error) {
	return within(f.p, func() (int64, error) { return f.f.NextData(off) })
}

func (f *file) Info() (vfs.Info, error) { return within(f.p, f.f.Info) }

func (f *file) Close() error { return do(f.p, f.f.Close) }
