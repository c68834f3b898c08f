package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Names in a store.
const (
	identityName   = "belay-store.json"
	lockName       = "lock"
	volumesName    = "volumes"
	incomingName   = "incoming"
	trashName      = "trash"
	tombstonesName = "tombstones"
	metaName       = "meta"
	regionsName    = "regions"
	dataName       = "data"
	receiptsName   = "receipts"
	newSuffix      = ".new" // of a file that is renamed when it is whole and durable
)

// Dir is a store: a directory on a disk. Its methods may be called concurrently, from several processes where not said otherwise.
type Dir struct {
	fs   vfs.FS
	path string
	self vfs.Info // of the directory when it was opened
	id   identity
	mu   locks.Mutex // receipts are written one at a time
}

// OpenDir opens the store of the installation at the absolute path, and makes one, durably, where the directory is
// empty (a lost+found does not count) or absent. It refuses with ErrForeign the store of another installation, with
// ErrNotStore a directory that holds other things, and with ErrDamaged or ErrFormat a store that it cannot identify.
func OpenDir(fsys vfs.FS, name string, installation quorum.UUID) (*Dir, error) {
	d := &Dir{fs: fsys, path: path.Clean(name)}
	return d.opened(installation, func() error { return d.recognize(installation) })
}

// FindDir is OpenDir, and never makes a store: an error that wraps fs.ErrNotExist where none is there. A disk can go away at any moment, and
// leaves an empty directory.
func FindDir(fsys vfs.FS, name string, installation quorum.UUID) (*Dir, error) {
	d := &Dir{fs: fsys, path: path.Clean(name)}
	return d.opened(installation, d.identify)
}

func (d *Dir) opened(installation quorum.UUID, recognize func() error) (*Dir, error) {
	if !path.IsAbs(d.path) || installation.IsZero() {
		return nil, fmt.Errorf("store %s: %w: want an absolute path and an installation", d.path, volume.ErrInvalid)
	}
	if err := recognize(); err != nil {
		return nil, d.errorf("%w", err)
	}
	if d.id.Installation != installation {
		return nil, d.errorf("%w (%s; this one is %s): give this installation a directory of its own, or start the one that owns it", ErrForeign, d.id.Installation, installation)
	}
	if err := d.complete(); err != nil {
		return nil, d.errorf("%w", err)
	}
	return d, nil
}

// ID is the store's identity, random and made with it.
func (d *Dir) ID() quorum.UUID { return d.id.Store }

// Path is where the store was opened.
func (d *Dir) Path() string { return d.path }

// Is says whether the directory is the one that was opened, and not another one that has come into its place since.
func (d *Dir) Is(info vfs.Info) bool { return info.Same(d.self) }

// Stat describes the directory that the path leads to now.
func (d *Dir) Stat() (vfs.Info, error) { return d.fs.Stat(d.path) }

// Space describes the file system of the store.
func (d *Dir) Space() (vfs.Space, error) { return d.fs.Space(d.path) }

// Lock takes the store for one `belay serve`, until Unlock or the end of the process. Where another has it, the
// error is a *vfs.LockedError that says who.
func (d *Dir) Lock(holder string) (vfs.Unlocker, error) {
	l, err := d.fs.Lock(d.join(lockName), holder)
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return l, nil
}

// Replicas lists the volumes that have a replica here, in ascending order. Names that are no volume ID are passed over.
func (d *Dir) Replicas() ([]volume.ID, error) {
	entries, err := d.fs.ReadDir(d.join(volumesName))
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	var out []volume.ID
	for _, e := range entries {
		if id, err := volume.ParseID(e.Name()); err == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Allocated is the number of bytes that the replica's files take up on the disk, or ErrNotFound.
func (d *Dir) Allocated(id volume.ID) (int64, error) {
	var sum int64
	for _, name := range []string{metaName, regionsName, dataName} {
		info, err := d.fs.Stat(d.join(volumesName, string(id), name))
		if err != nil {
			return 0, d.replicaError(id, err)
		}
		sum += info.Allocated
	}
	return sum, nil
}

func (d *Dir) join(names ...string) string { return path.Join(append([]string{d.path}, names...)...) }

// errorf names the store in front of the error.
func (d *Dir) errorf(format string, args ...any) error {
	return fmt.Errorf("store %s: "+format, append([]any{d.path}, args...)...)
}

// replicaError names store and volume. A missing file means that there is no replica, or that it lost one of its files.
func (d *Dir) replicaError(id volume.ID, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return d.errorf("volume %s: %w", id, err)
	}
	if _, statErr := d.fs.Stat(d.replicaPath(id)); errors.Is(statErr, fs.ErrNotExist) {
		return d.errorf("volume %s: %w: %w", id, ErrNotFound, err)
	}
	return d.errorf("volume %s: %w: %w: check the file system", id, ErrDamaged, err)
}
