package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Replica is one volume's copy in one store, open under its lock. Its methods may be called concurrently. After Close
// every call that needs the disk fails with fs.ErrClosed.
//
// The first write or sync that fails, but for a full disk, fails the replica: what the kernel had not written may be gone, and
// a later sync would not say so. From then on every call that would change the disk returns ErrFailed. Reads go on.
type Replica struct {
	dir   *Dir
	id    volume.ID
	path  string
	lock  vfs.Unlocker
	close locks.Mutex
	over  bool // guarded by close

	super   Superblock
	damage  []string
	meta    vfs.File
	regions vfs.File
	data    vfs.File

	failure atomic.Pointer[error]
	lost    atomic.Bool            // a sync failed
	record  atomic.Pointer[Record] // never nil, never altered, only replaced

	metaMu  locks.Mutex // held while meta is written
	seen    uint64      // guarded by metaMu: highest sequence in any sector of the slots
	unknown bool        // guarded by metaMu: the record is damaged and nobody has adopted one
	written bitmap      // guarded by metaMu: dirty bits as they were last written, durable or not

	dirtyMu sync.RWMutex
	dirty   bitmap // guarded by dirtyMu: dirty bits that are durable
	batches batches

	sumsMu locks.Mutex // held while regions is read, modified and written
}

// Open opens the replica for one process, until Close or the death of it; holder says who that is to others that try. It fails
// with *vfs.LockedError where another process has it, ErrDraining where a dead one still writes, ErrNotFound, ErrForeign,
// ErrFormat or ErrDamaged. A damaged copy of the superblock is written again from the good one.
func (d *Dir) Open(id volume.ID, holder string) (*Replica, error) {
	return d.open(id, holder, false)
}

// OpenUnknown opens a replica as Open does, also where its record is ErrDamaged. Then Record is zero, Promise, Accept and
// Mark fail with ErrDamaged, and Adopt gives it a new one.
func (d *Dir) OpenUnknown(id volume.ID, holder string) (*Replica, error) {
	return d.open(id, holder, true)
}

func (d *Dir) open(id volume.ID, holder string, evenUnknown bool) (*Replica, error) {
	r := &Replica{dir: d, id: id, path: d.replicaPath(id)}
	r.record.Store(&Record{})
	if _, err := d.fs.Stat(r.path); err != nil {
		return nil, d.replicaError(id, err) // taking the lock would be the first to complain, of the lock
	}
	lock, err := d.fs.Lock(r.path+"/"+lockName, holder)
	if err != nil {
		return nil, d.replicaError(id, err)
	}
	r.lock = lock
	if err = r.openFiles(); err == nil {
		err = r.load(evenUnknown)
	}
	if err != nil {
		_ = r.Close()
		return nil, d.replicaError(id, err)
	}
	return r, nil
}

// openFiles opens the files, each under a lock of its own: a write of a dead process that reached the disk only now would
// overwrite what a newer writer was told is there.
func (r *Replica) openFiles() error {
	for _, f := range r.files() {
		file, err := r.dir.fs.Open(path.Join(r.path, f.name), vfs.Direct|vfs.Locked)
		if locked, ok := errors.AsType[*vfs.LockedError](err); ok {
			return fmt.Errorf("%w: %s", ErrDraining, locked.Name)
		}
		if err != nil {
			return err
		}
		*f.file = file
	}
	return nil
}

type namedFile struct {
	name string
	file *vfs.File
}

func (r *Replica) files() []namedFile {
	return []namedFile{{metaName, &r.meta}, {regionsName, &r.regions}, {dataName, &r.data}}
}

// load reads all that is kept in memory. It syncs first: a process that was killed may have made or written what is read now, and
// not synced it. A mark in the dirty map that only the disk's cache knows must not pass for a durable one. Of blocks and entries
// nobody believes anything before a Sync, so they are left alone: a guest may be waiting for us.
func (r *Replica) load(evenUnknown bool) error {
	if err := atOnce(r.dir.settle, r.meta.Datasync, r.regions.Datasync); err != nil {
		return err
	}
	h, err := readHead(r.meta)
	if err == nil {
		err = r.dir.admit(r.id, h.super)
	}
	if err != nil {
		return err
	}
	r.super = h.super
	if err := r.mendSuperblock(h.damaged); err != nil {
		return err
	}
	if err := r.loadRecord(h.slots, evenUnknown); err != nil {
		return err
	}
	return r.loadDirty()
}

// mendSuperblock writes the damaged copies again.
func (r *Replica) mendSuperblock(damaged []int) error {
	for _, i := range damaged {
		p := aligned(superblockSize)
		encodeSuperblock(p, r.super)
		if err := r.meta.WriteAt(p, int64(i)*superblockSize); err != nil {
			return err
		}
		r.damage = append(r.damage, fmt.Sprintf("copy %d of the superblock was damaged and was written again", i))
	}
	if len(damaged) == 0 {
		return nil
	}
	return r.meta.Datasync()
}

func (r *Replica) loadRecord(slots [2]slotState, evenUnknown bool) error {
	rec, seen, err := choose(slots)
	r.seen = seen
	if errors.Is(err, ErrDamaged) && evenUnknown {
		r.unknown = true
		r.damage = append(r.damage, err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	for _, st := range slots {
		if errors.Is(st.err, ErrDamaged) {
			r.damage = append(r.damage, st.err.Error()+"; it is older than the other, which counts")
		}
	}
	r.record.Store(&rec)
	return nil
}

// Superblock says what the replica is.
func (r *Replica) Superblock() Superblock { return r.super }

// Record returns what is recorded. The caller does not alter what it points to.
func (r *Replica) Record() Record { return *r.record.Load() }

// Damage says, for people, what Open found damaged and could make good. Empty where nothing was.
func (r *Replica) Damage() []string { return r.damage }

// Close gives the replica up and releases its lock. Calling it again is harmless.
func (r *Replica) Close() (err error) {
	r.close.Lock()
	defer r.close.Unlock()
	if r.over {
		return nil
	}
	r.over = true
	for _, f := range r.files() {
		if *f.file != nil {
			err = cmp.Or(err, (*f.file).Close())
		}
	}
	return cmp.Or(err, r.lock.Unlock())
}

// Present returns ErrGone unless the paths of store and replica still lead to the files that are open: a disk that was
// unmounted, or a directory that was replaced, is not written to by anybody else, but nor will anybody find what is written now.
func (r *Replica) Present() error {
	if info, err := r.dir.fs.Stat(r.dir.path); err != nil || !info.Same(r.dir.self) {
		return r.gone(r.dir.path, err)
	}
	for _, f := range r.files() {
		open, err := (*f.file).Info()
		if err != nil {
			return r.dir.replicaError(r.id, err)
		}
		if named, err := r.dir.fs.Stat(path.Join(r.path, f.name)); err != nil || !named.Same(open) {
			return r.gone(path.Join(r.path, f.name), err)
		}
	}
	return nil
}

// Reachable returns an error where not even the superblock can be read from the disk any more.
func (r *Replica) Reachable() error {
	return r.read("superblock", r.meta.ReadAt(aligned(superblockSize), 0))
}

func (r *Replica) gone(name string, err error) error {
	if err == nil {
		err = errors.New("it leads to another file")
	}
	return r.dir.errorf("volume %s: %w: %s: %w: mount the disk again, or stop the volume", r.id, ErrGone, name, err)
}

// Fail fails the replica with the cause, unless it has failed already.
func (r *Replica) Fail(cause error) {
	if cause == nil {
		return
	}
	wrapped := r.dir.errorf("volume %s: %w: %w", r.id, ErrFailed, cause)
	r.failure.CompareAndSwap(nil, &wrapped)
}

// Failed returns ErrFailed, with the first cause, once the replica has failed.
func (r *Replica) Failed() error {
	if err := r.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// SyncFailed says that a sync failed: what the replica took since the one before may be gone, though it reads as if it were there, or as if
// it had never come.
func (r *Replica) SyncFailed() bool { return r.lost.Load() }

// synced is wrote for a sync.
func (r *Replica) synced(what string, err error) error {
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		r.lost.Store(true)
	}
	return r.wrote(what, err)
}

// wrote judges the outcome of a write or sync: what fails it fails the replica.
func (r *Replica) wrote(what string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", what, err)
	r.Fail(err)
	return r.dir.errorf("volume %s: %w", r.id, err)
}

// wroteSpace is wrote for calls that a full disk may refuse: nothing that was stored is in doubt by that.
func (r *Replica) wroteSpace(what string, err error) error {
	if errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", syscall.ENOSPC, err)
	}
	if errors.Is(err, syscall.ENOSPC) {
		return r.dir.errorf("volume %s: %s: %w: free space on the disk", r.id, what, err)
	}
	return r.wrote(what, err)
}
