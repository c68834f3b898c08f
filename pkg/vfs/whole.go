package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// ReadFile returns the content of a file of at most limit bytes; a longer one fails with syscall.EFBIG.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name, ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Info()
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, pathError("read", name, fmt.Errorf("%w: %d bytes where at most %d are expected", syscall.EFBIG, info.Size, limit))
	}
	p := make([]byte, info.Size)
	return p, f.ReadAt(p, 0)
}

// WriteFile makes data the content of name. When it returns nil that is durable; a power cut at any time leaves the
// old content or the new one whole. Two calls for one name must not run at once. It uses name+".new" on the way.
func WriteFile(fsys FS, name string, data []byte) error {
	next := name + ".new"
	if err := writeSynced(fsys, next, data); err != nil {
		_ = fsys.Remove(next)
		return err
	}
	if err := fsys.Rename(next, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// MakeDirs makes the directory and what leads to it. When it returns nil they are durable, up to the root of their file system:
// also those that were there, since whoever made them may have been killed before they were.
func MakeDirs(fsys FS, name string) error {
	if err := fsys.MkdirAll(name); err != nil {
		return err
	}
	self, err := fsys.Stat(name)
	if err != nil {
		return err
	}
	for name != "/" {
		name = filepath.Dir(name)
		if info, err := fsys.Stat(name); err != nil || info.Device != self.Device {
			return err
		}
		if err := fsys.SyncDir(name); err != nil && !errors.Is(err, fs.ErrPermission) { // what we may not read we did not make
			return err
		}
	}
	return nil
}

func writeSynced(fsys FS, name string, data []byte) error {
	f, err := fsys.Open(name, Create)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil { // what an interrupted call left
		return err
	}
	if err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Datasync()
}
