package store

import "errors"

// Errors of this package. Others are those of the operating system, wrapped.
var (
	// ErrDamaged: what was found can be neither believed nor taken as never written. It is not overwritten.
	ErrDamaged = errors.New("damaged")
	// ErrFormat: written by a version that this one does not know.
	ErrFormat = errors.New("unknown format")
	// ErrForeign: it belongs to another installation or store.
	ErrForeign = errors.New("belongs to another installation")
	// ErrNotStore: the directory holds other things.
	ErrNotStore = errors.New("not a store")
	// ErrNotFound: the store has no replica of the volume.
	ErrNotFound = errors.New("no replica")
	// ErrFenced: the replica has promised itself to a newer epoch, holds a newer configuration, or was written by somebody else.
	ErrFenced = errors.New("fenced")
	// ErrDraining: the process that had the replica is dead, and requests that it had given to the kernel are still on their way to
	// the disk. It ends by itself.
	ErrDraining = errors.New("requests of a dead process are still under way")
	// ErrFailed: an earlier failure, which it wraps, ended this session of the replica. Only a new Open can end that.
	ErrFailed = errors.New("replica failed")
	// ErrGone: the paths no longer lead to the open files.
	ErrGone = errors.New("store is gone")
)
