// Package vfs is the only door to the disk: the real file system, one in memory that can lose power, and one that fails on demand.
//
// Everything a store keeps goes through it, so that a test or the simulator can cut the power or fail the n-th call.
// Errors are those of the operating system (errors.Is with fs.ErrNotExist, syscall.ENOSPC and so on).
package vfs

import (
	"io/fs"
)

// Align is the alignment in bytes that Direct files demand of buffers, offsets and lengths.
const Align = 4096

// Mode says how a file is opened.
type Mode int

// Modes are or-ed together. Without ReadOnly a file is opened for reading and writing.
const (
	Create    Mode = 1 << iota // create the file where it does not exist
	Exclusive                  // with Create: fail with fs.ErrExist where it exists
	ReadOnly                   // reading only
	Direct                     // bypass the page cache: see Align
	// Locked takes the exclusive lock of the open file, or fails with *LockedError. It ends with Close, or once the process is dead
	// and every request that it had made through the file has ended. FS.Lock ends with the process: what that had given to the
	// kernel by io_uring may still reach the disk after it.
	Locked
)

// FS is a tree of files. Names are absolute paths. Calls may run concurrently.
//
// Create, Rename, Remove and Mkdir are durable only after SyncDir of the directory that holds the name.
type FS interface {
	Open(name string, mode Mode) (File, error)
	Mkdir(name string) error // parent must exist; fs.ErrExist where it does
	MkdirAll(name string) error
	Rename(from, to string) error
	Remove(name string) error
	RemoveAll(name string) error
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (Info, error)
	SyncDir(name string) error
	Space(name string) (Space, error)
	// Lock takes the exclusive kernel lock of the file, creating it where needed, and writes holder into it.
	// Where another open file has the lock it fails with *LockedError at once. The lock ends with Unlock or
	// with the death of the process, whichever is first.
	Lock(name string, holder string) (Unlocker, error)
}

// Unlocker ends a lock. Calling it twice is harmless.
type Unlocker interface{ Unlock() error }

// LockedError says that a lock is held, and by whom (what the holder wrote into the file).
type LockedError struct{ Name, Holder string }

func (e *LockedError) Error() string { return e.Name + " is locked by " + e.Holder }

// File is an open file. Calls may run concurrently; overlapping writes end in either order.
type File interface {
	// ReadAt fills p from off; past the end of the file it reads zeros. A hole reads as zeros.
	ReadAt(p []byte, off int64) error
	// WriteAt writes all of p at off, growing the file where needed. It is durable only after Datasync.
	WriteAt(p []byte, off int64) error
	// Datasync makes durable every write, Punch and Truncate that returned before the call. After it has
	// failed once nothing is known of those writes, and a later success says nothing about them (ATC'20,
	// "Can Applications Recover from fsync Failures?").
	Datasync() error
	// Punch gives the range back to the file system; it reads as zeros afterwards.
	Punch(off, n int64) error
	Truncate(size int64) error
	// NextData returns the first offset not below off that may hold data, or size of the file where only a hole follows.
	NextData(off int64) (int64, error)
	// Info describes the open file, which may have been renamed or removed since.
	Info() (Info, error)
	Close() error
}

// Info describes a file or directory.
type Info struct {
	Size      int64
	Allocated int64  // bytes that take up space on the disk
	Dir       bool   // a directory
	Device    uint64 // file system that holds it
	Inode     uint64 // with Device the identity of the file
	Mount     uint64 // unique for each mount since boot: differs after an unmount and mount; 0 where unknown
}

// Same says whether both describe the same file.
func (i Info) Same(o Info) bool { return i.Device == o.Device && i.Inode == o.Inode }

// Space is what a file system holds, in bytes.
type Space struct {
	Total, Available int64
	Device           uint64
	ReadOnly         bool
}
