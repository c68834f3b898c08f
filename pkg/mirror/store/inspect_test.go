package store

import (
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestInspectChangesNothing: a replica is looked at beside its writer; nothing is written or synced by it, and nothing can be.
func TestInspectChangesNothing(t *testing.T) {
	m := vfs.NewMem()
	looking := false
	watched := vfs.Faulty(m, func(op *vfs.Op) error {
		if looking && op.Kind.Alters() && !(op.Kind == vfs.OpOpen && op.Mode&vfs.ReadOnly != 0) {
			t.Errorf("looking called %s %s", op.Kind, op.Name)
		}
		return nil
	})
	d := openStore(t, watched)
	w := newReplica(t, d)
	must(t, w.MarkDirty([]int64{3}))
	must(t, w.WriteSums(map[int64]digest.Sum{1: {1}}))
	block := vfs.AlignedBuffer(BlockSize)
	block[7] = 7
	must(t, w.WriteBlocks(block, RegionBlocks))
	looking = true
	r, err := d.Inspect(testID)
	must(t, err)
	if got := r.Record(); !same(got, w.Record()) || !r.IsDirty(3) || r.IsDirty(2) {
		t.Errorf("record %+v, dirty %v", got, r.Dirty())
	}
	got := vfs.AlignedBuffer(BlockSize)
	must(t, r.ReadBlocks(got, RegionBlocks))
	if total, err := r.Total(); got[7] != 7 || err != nil || total != (digest.Sum{1}) {
		t.Errorf("content %d, digest %v, %v", got[7], total, err)
	}
	for what, err := range map[string]error{
		"promise": r.Promise(99), "accept": r.Accept(configAt(99, 1), Session{}), "write": r.WriteBlocks(got, 0), "sync": r.Sync(), "mark": r.MarkDirty([]int64{1}),
		"clear": r.ClearDirty([]int64{3}), "sums": r.WriteSums(map[int64]digest.Sum{1: {}}), "punch": r.PunchBlocks(0, 1),
	} {
		wantError(t, what, err, ErrInspected)
	}
	must(t, r.Close())
	looking = false
	must(t, w.Promise(99)) // the writer is as it was
	if _, err := d.Inspect("another"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no replica: %v", err)
	}
}

// TestRemainsOfADamagedRecord: the whole slot of a damaged record is shown, and never taken for the record.
func TestRemainsOfADamagedRecord(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	w := newReplica(t, d)
	must(t, w.Promise(7))
	if _, ok := w.Remains(); ok {
		t.Error("a good record has remains")
	}
	must(t, w.Close())
	damageNewestSlot(t, m)
	r, err := d.Inspect(testID)
	must(t, err)
	left, ok := r.Remains()
	if !ok || left.Promised != 1 || left.Config.Size != configAt(1, 1).Size || !same(r.Record(), Record{}) {
		t.Errorf("remains %+v, %v; record %+v", left, ok, r.Record())
	}
	must(t, r.Close())
	both := func(p []byte) { p[9] ^= 1 }
	for slot := range int64(2) {
		alter(t, m, "/disk/store/volumes/pvc-1/meta", slotOffset+slot*slotSize+512, both)
	}
	r, err = d.Inspect(testID)
	must(t, err)
	if left, ok := r.Remains(); ok {
		t.Errorf("remains of two damaged slots: %+v", left)
	}
	must(t, r.Close())
}
