package store

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Every call that changes the disk, with each of its writes and syncs failing in turn: the call says so, the replica
// is failed for good, and when the machine comes back the record is the old one or the new one.
func TestEveryFailureIsSticky(t *testing.T) {
	for name, call := range changes {
		for n := int64(1); ; n++ {
			m := newMem(t)
			must(t, openReplicaOn(t, m).MarkDirty([]int64{1}))
			m = m.Restart()
			armed := false
			hook := vfs.FailNth(n, syscall.EIO, vfs.OpWrite, vfs.OpDatasync, vfs.OpPunch)
			r := openReplica(t, openStore(t, vfs.Faulty(m, func(op *vfs.Op) error {
				if armed {
					return hook(op)
				}
				return nil
			})))
			before := r.Record()
			armed = true
			err := call(r)
			if err == nil {
				if n == 1 {
					t.Errorf("%s: nothing was written", name)
				}
				break
			}
			wantError(t, name, err, syscall.EIO)
			wantError(t, name, r.Failed(), ErrFailed)
			for other, call := range changes {
				wantError(t, fmt.Sprintf("%s after %s", other, name), call(r), ErrFailed)
			}
			after := openReplicaOn(t, m.CrashClone(nil)).Record()
			if after.Sequence != before.Sequence && after.Sequence != before.Sequence+1 {
				t.Errorf("%s: record %d became %d", name, before.Sequence, after.Sequence)
			}
			must(t, r.ReadBlocks(vfs.AlignedBuffer(BlockSize), 0))
		}
	}
}

func openReplicaOn(t *testing.T, m vfs.FS) *Replica {
	t.Helper()
	return openReplica(t, openStore(t, m))
}

// Each call of a store failing in turn: the call fails cleanly, and the next try succeeds.
func TestEveryFailureOfADirCanBeRetried(t *testing.T) {
	steps := []struct {
		name string
		call func(d *Dir) error
	}{
		{"Create", func(d *Dir) error { return d.Create(superOf(d), configAt(1, 1)) }},
		{"PutReceipt", func(d *Dir) error { return d.PutReceipt(testID, 4, []byte("r")) }},
		{"Bury", func(d *Dir) error { return d.Bury(testID, quorum.UUID{4}) }},
		{"Remove", func(d *Dir) error { return d.Remove(testID) }},
		{"Sweep", func(d *Dir) error { return d.Sweep() }},
	}
	for at, step := range steps {
		for n := int64(1); ; n++ {
			m := vfs.NewMem()
			d := openStore(t, m)
			for _, earlier := range steps[:at] {
				must(t, earlier.call(d))
			}
			err := step.call(openStore(t, vfs.Faulty(m, afterOpen(vfs.FailNth(n, syscall.EIO)))))
			if err == nil {
				break
			}
			wantError(t, step.name, err, syscall.EIO)
			m = m.Restart()
			d = openStore(t, m)
			if err := step.call(d); err != nil && (step.name != "Create" || !created(d)) {
				t.Errorf("%s after failure %d: %v", step.name, n, err)
			}
			switch step.name {
			case "Create":
				openReplicaOn(t, m.CrashClone(nil))
			case "Remove":
				if created(openStore(t, m.CrashClone(nil))) {
					t.Errorf("Remove after failure %d: back after a power cut", n)
				}
			}
			must(t, d.Sweep())
		}
	}
}

func created(d *Dir) bool {
	_, _, err := d.Peek(testID)
	return err == nil
}

// afterOpen is hook from the end of OpenDir on, which is the one sync that it makes of a store that exists.
func afterOpen(hook vfs.Hook) vfs.Hook {
	opened := false
	return func(op *vfs.Op) error {
		if opened {
			return hook(op)
		}
		opened = op.Kind == vfs.OpSyncDir
		return nil
	}
}

func TestOpenFailsCleanly(t *testing.T) {
	for n := int64(1); ; n++ {
		m := newMem(t)
		d := openStore(t, vfs.Faulty(m, afterOpen(vfs.FailNth(n, syscall.EIO))))
		r, err := d.Open(testID, "x")
		if err == nil {
			must(t, r.Close())
			break
		}
		wantError(t, "open", err, syscall.EIO)
		must(t, openReplicaOn(t, m).Close()) // the lock was given back
	}
}
