package store

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Create makes the replica of sb.Volume, reading as zeros, with c as its configuration, promised to c.Epoch and its session
// closed. It is there whole, also after a power cut, or not at all. Where the volume has a replica already it fails
// with fs.ErrExist and changes nothing.
func (d *Dir) Create(sb Superblock, c quorum.Config) error {
	if err := cmp.Or(sb.validate(), validateConfig(c)); err != nil {
		return d.replicaError(sb.Volume, err)
	}
	if sb.Store != d.id.Store {
		return d.replicaError(sb.Volume, fmt.Errorf("%w superblock: it names store %s", volume.ErrInvalid, sb.Store))
	}
	home := d.replicaPath(sb.Volume)
	if _, err := d.fs.Stat(home); err == nil {
		// An earlier call may have failed after the rename and before the sync.
		return d.replicaError(sb.Volume, cmp.Or(d.settle(), fs.ErrExist))
	}
	work := d.join(incomingName, string(sb.Volume)+"."+randomName())
	err := d.make(work, sb, c)
	if err == nil {
		err = d.install(work, home)
	}
	if err != nil {
		_ = d.fs.RemoveAll(work) // what cannot be removed now, Sweep removes
		return d.errorf("volume %s: making a replica: %w", sb.Volume, err)
	}
	return nil
}

// make puts the files of a replica into the new directory work, durably.
func (d *Dir) make(work string, sb Superblock, c quorum.Config) error {
	steps := []func() error{
		func() error { return d.fs.Mkdir(work) },
		func() error { return d.fs.Mkdir(work + "/" + receiptsName) },
		func() error { return d.makeFile(work+"/"+metaName, newMeta(sb, c)) },
		func() error { return d.makeFile(work+"/"+regionsName, nil) },
		func() error { return d.makeFile(work+"/"+dataName, nil) },
		func() error { return d.fs.SyncDir(work) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) makeFile(name string, content []byte) error {
	f, err := d.fs.Open(name, vfs.Create|vfs.Exclusive|vfs.Direct)
	if err != nil {
		return err
	}
	if len(content) > 0 {
		err = f.WriteAt(content, 0)
	}
	if err == nil {
		err = f.Datasync()
	}
	return errors.Join(err, f.Close())
}

// install renames the whole replica into its place. A directory that is not empty is never replaced by a rename.
func (d *Dir) install(work, home string) error {
	if err := d.fs.Rename(work, home); err != nil {
		return err
	}
	return d.settle()
}

// newMeta is the first content of meta. Both record slots are written, so that a blank one is known to be a lost one.
func newMeta(sb Superblock, c quorum.Config) []byte {
	regions := regionsOf(int64(c.Size))
	p := aligned(dirtyOffset + int(pagesFor(regions))*PageSize)
	encodeSuperblock(p, sb)
	encodeSuperblock(p[superblockSize:], sb)
	for seq := range uint64(2) {
		r := Record{Sequence: seq + 1, Promised: c.Epoch, Config: c}
		encodeSlot(p[slotOffset+slotOf(r.Sequence)*slotSize:], sb.Incarnation, r)
	}
	clean := bitmap(nil).grown(regions)
	for g := range pagesFor(regions) {
		clean.encodePage(p[dirtyOffset+g*PageSize:], g, sb.Incarnation)
	}
	return p
}

// Remove takes the replica out of the store, durably. Where there is none it does nothing. It fails with a
// *vfs.LockedError while a process has the replica open.
func (d *Dir) Remove(id volume.ID) error {
	home := d.replicaPath(id)
	if _, err := d.fs.Stat(home); errors.Is(err, fs.ErrNotExist) {
		return d.settle() // an earlier call may have failed after the rename
	}
	lock, err := d.fs.Lock(home+"/"+lockName, "belay, removing the replica")
	if err != nil {
		return d.replicaError(id, err)
	}
	defer lock.Unlock()
	away := d.join(trashName, string(id)+"."+randomName())
	if err := d.fs.Rename(home, away); err != nil {
		return d.replicaError(id, err)
	}
	err = d.settle()
	if err == nil {
		err = d.fs.RemoveAll(away) // not before: a replica that comes back after a power cut must be whole
	}
	if err != nil {
		return d.errorf("volume %s: removing the replica: %w", id, err)
	}
	return nil
}

// settle makes durable which replicas are there. A rename from one directory to another is that once both are synced.
func (d *Dir) settle() error {
	of := func(name string) func() error { return func() error { return d.fs.SyncDir(d.join(name)) } }
	return atOnce(of(incomingName), of(trashName), of(volumesName))
}

// atOnce makes calls that each wait for the disk, and returns one of their errors.
func atOnce(calls ...func() error) error {
	errs := make([]error, len(calls))
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() { errs[i] = call() })
	}
	wg.Wait()
	return cmp.Or(errs...)
}

// Sweep removes what interrupted calls of Create and Remove left. The caller holds the Lock, and nobody calls those meanwhile.
func (d *Dir) Sweep() error {
	// First, as in Remove: what a killed process had moved away must not come back in part.
	if err := d.settle(); err != nil && !errors.Is(err, syscall.EROFS) {
		return d.errorf("sweeping: %w", err)
	}
	var errs []error
	for _, name := range []string{incomingName, trashName} {
		entries, err := d.fs.ReadDir(d.join(name))
		errs = append(errs, err)
		for _, e := range entries {
			errs = append(errs, d.fs.RemoveAll(d.join(name, e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return d.errorf("sweeping: %w", err)
	}
	return nil
}

// Bury records, durably, that the volume which had this ID and UUID was deleted: a replica of it that turns up later is not wanted.
func (d *Dir) Bury(id volume.ID, uuid quorum.UUID) error {
	if err := vfs.WriteFile(d.fs, d.tombstone(id, uuid), nil); err != nil {
		return d.errorf("volume %s: burying: %w", id, err)
	}
	return nil
}

// Buried says whether Bury was called for this ID and UUID.
func (d *Dir) Buried(id volume.ID, uuid quorum.UUID) (bool, error) {
	_, err := d.fs.Stat(d.tombstone(id, uuid))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, d.errorf("volume %s: %w", id, err)
}

func (d *Dir) tombstone(id volume.ID, uuid quorum.UUID) string {
	return d.join(tombstonesName, string(id)+"."+uuid.String())
}

func (d *Dir) replicaPath(id volume.ID) string { return d.join(volumesName, string(id)) }

func randomName() string {
	var p [8]byte
	_, _ = rand.Read(p[:]) // never fails: see its documentation
	return hex.EncodeToString(p[:])
}
