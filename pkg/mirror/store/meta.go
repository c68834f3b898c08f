package store

import (
	"fmt"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// head is what the fixed part of meta shows.
type head struct {
	super   Superblock
	damaged []int // copies of the superblock that are
	slots   [2]slotState
}

// readHead reads the superblocks and the record slots. Its error is about the superblock; choose judges the slots.
func readHead(meta vfs.File) (h head, err error) {
	p := aligned(dirtyOffset)
	if err := meta.ReadAt(p, 0); err != nil {
		return h, err
	}
	if h.super, h.damaged, err = decodeSuperblocks(p); err != nil {
		return h, err
	}
	h.slots = decodeSlots(p[slotOffset:], h.super)
	return h, nil
}

// decodeSlots reads both slots from p.
func decodeSlots(p []byte, s Superblock) (slots [2]slotState) {
	for i := range slots {
		slots[i] = decodeSlot(p[i*slotSize:][:slotSize], i, s.Incarnation)
	}
	return slots
}

// settled says that no slot looks as if a write was in progress.
func (h head) settled() bool { return h.slots[0].err == nil && h.slots[1].err == nil }

// Peek reads who a replica is and what it has recorded, without the lock and beside a writer that has it: what it returns
// was true a moment ago. Where the record is ErrDamaged the superblock is returned all the same.
func (d *Dir) Peek(id volume.ID) (Superblock, Record, error) {
	meta, err := d.fs.Open(d.replicaPath(id)+"/"+metaName, vfs.ReadOnly|vfs.Direct)
	if err != nil {
		return Superblock{}, Record{}, d.replicaError(id, err)
	}
	defer meta.Close()
	h, err := readHead(meta)
	if err == nil && !h.settled() {
		h, err = readHead(meta) // a write that was in progress is over by now, or there was none
	}
	if err == nil {
		err = d.admit(id, h.super)
	}
	if err != nil {
		return h.super, Record{}, d.replicaError(id, err)
	}
	r, _, err := choose(h.slots)
	if err != nil {
		return h.super, Record{}, d.replicaError(id, err)
	}
	return h.super, r, nil
}

// admit refuses a replica that was copied here from another place.
func (d *Dir) admit(id volume.ID, s Superblock) error {
	if s.Volume != id || s.Store != d.id.Store {
		return fmt.Errorf("%w: it is the replica of volume %s in store %s: move it back or remove it", ErrForeign, s.Volume, s.Store)
	}
	return nil
}
