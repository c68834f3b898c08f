package vfs

import (
	"errors"
	"io/fs"
)

// Kind is which call an Op is.
type Kind string

// Kinds. Those from OpRead on are calls of a File.
const (
	OpOpen      Kind = "open"
	OpMkdir     Kind = "mkdir"
	OpMkdirAll  Kind = "mkdirall"
	OpRename    Kind = "rename"
	OpRemove    Kind = "remove"
	OpRemoveAll Kind = "removeall"
	OpReadDir   Kind = "readdir"
	OpStat      Kind = "stat"
	OpSyncDir   Kind = "syncdir"
	OpSpace     Kind = "space"
	OpLock      Kind = "lock"
	OpUnlock    Kind = "unlock"

	OpRead     Kind = "read"
	OpWrite    Kind = "write"
	OpDatasync Kind = "datasync"
	OpPunch    Kind = "punch"
	OpTruncate Kind = "truncate"
	OpNextData Kind = "nextdata"
	OpInfo     Kind = "info"
	OpClose    Kind = "close"
)

// Alters says whether calls of this kind change what is on the disk or how durable it is. Opening counts: it may create.
func (k Kind) Alters() bool {
	switch k {
	case OpReadDir, OpStat, OpSpace, OpUnlock, OpRead, OpNextData, OpInfo, OpClose:
		return false
	}
	return true
}

// Op is a call that is about to be made. The hook may alter Offset and Len of calls that have them (a misdirected write).
type Op struct {
	Kind   Kind
	Name   string // of a File's call: the name it was opened with
	To     string // of a rename
	Mode   Mode   // of an open
	Offset int64  // of a truncation: the new size
	Len    int64  // of a punch; of a read or write len(Data)
	// Data is what a read fills, valid in Then, or what a write writes. The hook may set other bytes to write, or fewer,
	// but must not alter those of the caller.
	Data []byte
	// Then, where the hook sets it, is called after the call has been made, with its error, and returns what the caller sees.
	// It may alter Data of a read.
	Then func(error) error
}

// ErrSkip returned by a hook leaves the call out and tells the caller that it succeeded: a lost write, a sync that
// lies. It is for calls that return nothing but an error, and for reads, which then keep what the buffer held.
var ErrSkip = errors.New("vfs: skipped")

// Hook is asked before each call. Its error is returned instead of making the call. It may run concurrently.
type Hook func(op *Op) error

// Faulty is fsys with hook asked before each call on it and on its files. With a nil hook it is fsys.
func Faulty(fsys FS, hook Hook) FS {
	if hook == nil {
		hook = func(*Op) error { return nil }
	}
	return &faultyFS{fsys: fsys, hook: hook}
}

// do makes call unless the hook decides otherwise.
func (h Hook) do(op *Op, call func() error) error {
	if err := h(op); errors.Is(err, ErrSkip) {
		return nil
	} else if err != nil {
		return pathError(string(op.Kind), op.Name, err)
	}
	err := call()
	if op.Then == nil {
		return err
	}
	return op.Then(err)
}

type faultyFS struct {
	fsys FS
	hook Hook
}

func (f *faultyFS) Open(name string, mode Mode) (File, error) {
	var file File
	err := f.hook.do(&Op{Kind: OpOpen, Name: name, Mode: mode}, func() (err error) {
		file, err = f.fsys.Open(name, mode)
		return err
	})
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, err
	}
	return &faultyFile{file: file, hook: f.hook, name: name}, nil
}

func (f *faultyFS) Mkdir(name string) error {
	return f.hook.do(&Op{Kind: OpMkdir, Name: name}, func() error { return f.fsys.Mkdir(name) })
}

func (f *faultyFS) MkdirAll(name string) error {
	return f.hook.do(&Op{Kind: OpMkdirAll, Name: name}, func() error { return f.fsys.MkdirAll(name) })
}

func (f *faultyFS) Rename(from, to string) error {
	return f.hook.do(&Op{Kind: OpRename, Name: from, To: to}, func() error { return f.fsys.Rename(from, to) })
}

func (f *faultyFS) Remove(name string) error {
	return f.hook.do(&Op{Kind: OpRemove, Name: name}, func() error { return f.fsys.Remove(name) })
}

func (f *faultyFS) RemoveAll(name string) error {
	return f.hook.do(&Op{Kind: OpRemoveAll, Name: name}, func() error { return f.fsys.RemoveAll(name) })
}

func (f *faultyFS) ReadDir(name string) (entries []fs.DirEntry, err error) {
	err = f.hook.do(&Op{Kind: OpReadDir, Name: name}, func() error {
		entries, err = f.fsys.ReadDir(name)
		return err
	})
	return entries, err
}

func (f *faultyFS) Stat(name string) (info Info, err error) {
	err = f.hook.do(&Op{Kind: OpStat, Name: name}, func() error {
		info, err = f.fsys.Stat(name)
		return err
	})
	return info, err
}

func (f *faultyFS) SyncDir(name string) error {
	return f.hook.do(&Op{Kind: OpSyncDir, Name: name}, func() error { return f.fsys.SyncDir(name) })
}

func (f *faultyFS) Space(name string) (s Space, err error) {
	err = f.hook.do(&Op{Kind: OpSpace, Name: name}, func() error {
		s, err = f.fsys.Space(name)
		return err
	})
	return s, err
}

func (f *faultyFS) Lock(name, holder string) (Unlocker, error) {
	var lock Unlocker
	err := f.hook.do(&Op{Kind: OpLock, Name: name}, func() (err error) {
		lock, err = f.fsys.Lock(name, holder)
		return err
	})
	if err != nil {
		if lock != nil {
			_ = lock.Unlock()
		}
		return nil, err
	}
	return &faultyLock{lock: lock, hook: f.hook, name: name}, nil
}

type faultyLock struct {
	lock Unlocker
	hook Hook
	name string
}

func (l *faultyLock) Unlock() error {
	return l.hook.do(&Op{Kind: OpUnlock, Name: l.name}, l.lock.Unlock)
}
