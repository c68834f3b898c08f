package store

import (
	"errors"
	"path"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// ErrInspected: the replica was opened to be looked at; nothing of it can be changed.
var ErrInspected = errors.New("opened to be looked at only")

// Inspect opens a replica to be looked at: without its lock, beside a writer that has it, also on a file system that is
// read-only, and also where its record is damaged. Nothing is written, not even synced, and every call that would fails with
// ErrInspected. What it shows was true a moment ago, and is not yet durable where a writer is at work.
func (d *Dir) Inspect(id volume.ID) (*Replica, error) {
	r := &Replica{dir: d, id: id, path: d.replicaPath(id), lock: unlocked{}}
	r.record.Store(&Record{})
	if err := r.inspect(); err != nil {
		_ = r.Close()
		return nil, d.replicaError(id, err)
	}
	return r, nil
}

type unlocked struct{}

// Unlock implements vfs.Unlocker.
func (unlocked) Unlock() error { return nil }

func (r *Replica) inspect() error {
	r.Fail(ErrInspected)
	for _, f := range r.files() {
		file, err := r.dir.fs.Open(path.Join(r.path, f.name), vfs.ReadOnly|vfs.Direct)
		if err != nil {
			return err
		}
		*f.file = file
	}
	h, err := readHead(r.meta)
	if err == nil && !h.settled() {
		h, err = readHead(r.meta)
	}
	if err == nil {
		err = r.dir.admit(r.id, h.super)
	}
	if err != nil {
		return err
	}
	r.super = h.super
	if err := r.loadRecord(h.slots, true); err != nil {
		return err
	}
	return r.loadDirty()
}

// Remains returns what is left of a damaged record: the newest of its slots that is whole. It may not be the newest record that there
// was, so that nothing is ever decided by it but by a person. ok is false where neither slot is, or the record is good.
func (r *Replica) Remains() (Record, bool) {
	r.metaMu.Lock()
	defer r.metaMu.Unlock()
	if !r.unknown {
		return Record{}, false
	}
	p := aligned(2 * slotSize)
	if err := r.meta.ReadAt(p, slotOffset); err != nil {
		return Record{}, false
	}
	var left Record
	found := false
	for _, st := range decodeSlots(p, r.super) {
		if st.err == nil && (!found || st.record.Sequence > left.Sequence) {
			left, found = st.record, true
		}
	}
	return left, found
}
