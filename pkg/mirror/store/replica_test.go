package store

import (
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestPromise(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	wantError(t, "the configuration's own epoch", r.Promise(1), ErrFenced)
	must(t, r.Promise(5))
	wantError(t, "the same again", r.Promise(5), ErrFenced)
	wantError(t, "older", r.Promise(4), ErrFenced)
	wantError(t, "older configuration", r.Accept(configAt(4, 9), Session{}), ErrFenced)
	if rec := r.Record(); rec.Promised != 5 || !sameConfig(rec.Config, configAt(1, 1)) {
		t.Errorf("record %+v", rec)
	}
}

func TestAccept(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	r := newReplica(t, d)
	open := Session{ID: quorum.UUID{1}, Open: true, Boot: quorum.UUID{2}, Mount: 3}
	must(t, r.Promise(2))
	must(t, r.Accept(configAt(2, 1), open))
	before := r.Record().Sequence
	must(t, r.Accept(configAt(2, 1), open))
	if r.Record().Sequence != before {
		t.Error("what was recorded already was written again")
	}
	other := configAt(2, 1)
	other.Members = quorum.SetOf(0)
	wantError(t, "another of the same step", r.Accept(other, open), ErrFenced)
	must(t, r.Accept(configAt(2, 2), open))
	wantError(t, "an older step", r.Accept(configAt(2, 1), open), ErrFenced)
	must(t, r.Accept(configAt(2, 2), Session{ID: quorum.UUID{1}}))
	must(t, r.Close())
	_, rec, err := openStore(t, m.CrashClone(nil)).Peek(testID)
	if err != nil || rec.Promised != 2 || !sameConfig(rec.Config, configAt(2, 2)) || rec.Session.Open {
		t.Errorf("record %+v, %v", rec, err)
	}
}

func TestSealEndsTheEpoch(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	sealed := configAt(1, 2)
	sealed.Flags = quorum.Sealed | quorum.Clean
	must(t, r.Accept(sealed, Session{}))
	if got := r.Record().Promised; got != 2 {
		t.Errorf("promised %d after the seal of epoch 1", got)
	}
	must(t, r.Accept(sealed, Session{}))
	wantError(t, "after the seal", r.Accept(configAt(1, 3), Session{}), ErrFenced)
	wantError(t, "another session", r.Accept(sealed, Session{Open: true}), ErrFenced)
	must(t, r.Promise(3))
	must(t, r.Accept(sealed, Session{})) // told again, it changes nothing
	if got := r.Record().Promised; got != 3 {
		t.Errorf("promised %d, an older seal took the promise back", got)
	}
}

// A seal of an epoch that a newer attach has fenced must not be accepted.
func TestSealIsFenced(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	must(t, r.Promise(2))
	sealed := configAt(1, 2)
	sealed.Flags = quorum.Sealed
	wantError(t, "late seal", r.Accept(sealed, Session{}), ErrFenced)
}

func TestAcceptDoesNotKeepTheCallersMemory(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	c := configAt(2, 1)
	must(t, r.Accept(c, Session{}))
	c.Attributes[0], c.Voters[0].Store[0] = 'X', 0xff
	if !sameConfig(r.Record().Config, configAt(2, 1)) {
		t.Error("the caller altered the record")
	}
}

func TestMark(t *testing.T) {
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	must(t, r.Mark(true))
	_, rec, err := openStore(t, m.CrashClone(nil)).Peek(testID)
	if err != nil || !rec.Lossy {
		t.Errorf("record %+v, %v", rec, err)
	}
	must(t, r.Mark(false))
	if r.Record().Lossy {
		t.Error("still lossy")
	}
}

func TestOneProcessHasTheReplica(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	r := newReplica(t, d)
	_, err := d.Open(testID, "other")
	var held *vfs.LockedError
	if !errors.As(err, &held) || held.Holder != "test" {
		t.Errorf("second open: %v", err)
	}
	if _, rec, err := d.Peek(testID); err != nil || rec.Sequence != r.Record().Sequence {
		t.Errorf("peek beside the writer: %+v, %v", rec, err)
	}
	must(t, r.Close())
	must(t, r.Close())
	for name, err := range map[string]error{
		"read": r.ReadBlocks(vfs.AlignedBuffer(BlockSize), 0), "write": r.WriteBlocks(vfs.AlignedBuffer(BlockSize), 0),
		"promise": r.Promise(99), "sync": r.Sync(), "present": r.Present(), "mark": r.MarkDirty([]int64{1}),
	} {
		if !errors.Is(err, fs.ErrClosed) && !errors.Is(err, ErrFailed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	openReplica(t, d)
}

// lockless is a file system on which open files cannot be locked.
type lockless struct{ vfs.FS }

func (l lockless) Open(name string, mode vfs.Mode) (vfs.File, error) {
	return l.FS.Open(name, mode&^vfs.Locked)
}

// The check that stands behind the lock: a zombie whose lock was lost must notice.
func TestSomebodyElseWrote(t *testing.T) {
	m := vfs.NewMem()
	zombie := newReplica(t, openStore(t, lockless{m}))
	for range 2 { // the second record is in the slot that the zombie would not write next
		must(t, m.Remove("/disk/store/volumes/pvc-1/lock"))
		r, err := openStore(t, lockless{m}).Open(testID, "successor")
		must(t, err)
		must(t, r.Promise(r.Record().Promised+5))
		must(t, r.Close())
	}
	wantError(t, "zombie", zombie.Accept(configAt(1, 2), Session{}), ErrFenced)
	wantError(t, "and afterwards", zombie.WriteBlocks(vfs.AlignedBuffer(BlockSize), 0), ErrFailed)
	wantError(t, "because", zombie.Failed(), ErrFenced)
	if _, rec, err := openStore(t, m).Peek(testID); err != nil || rec.Promised != 11 {
		t.Errorf("record %+v, %v", rec, err)
	}
}

func TestPresent(t *testing.T) {
	for name, change := range map[string]func(m *vfs.Mem){
		"data replaced": func(m *vfs.Mem) {
			must(t, m.Rename("/disk/store/volumes/pvc-1/data", "/disk/store/volumes/pvc-1/x"))
			write(t, m, "/disk/store/volumes/pvc-1/data", "")
		},
		"meta removed":    func(m *vfs.Mem) { must(t, m.Remove("/disk/store/volumes/pvc-1/meta")) },
		"replica removed": func(m *vfs.Mem) { must(t, m.Rename("/disk/store/volumes/pvc-1", "/disk/store/trash/x")) },
		"store moved": func(m *vfs.Mem) {
			must(t, m.Rename("/disk/store", "/disk/x"))
		},
		"another in its place": func(m *vfs.Mem) {
			must(t, m.Rename("/disk/store", "/disk/x"))
			newReplica(t, openStore(t, m))
		},
	} {
		m := vfs.NewMem()
		r := newReplica(t, openStore(t, m))
		must(t, r.Present())
		change(m)
		wantError(t, name, r.Present(), ErrGone)
	}
}

func TestDamagedSuperblockIsWrittenAgain(t *testing.T) {
	m := newMem(t)
	flip := func(p []byte) { p[30] ^= 1 }
	alter(t, m, "/disk/store/volumes/pvc-1/meta", superblockSize, flip)
	r := openReplica(t, openStore(t, m))
	if len(r.Damage()) != 1 || !strings.Contains(r.Damage()[0], "copy 1") {
		t.Errorf("damage %q", r.Damage())
	}
	must(t, r.Close())
	alter(t, m, "/disk/store/volumes/pvc-1/meta", 0, flip) // now the other one
	again := openReplica(t, openStore(t, m.CrashClone(nil)))
	if again.Superblock() != r.Superblock() {
		t.Errorf("superblock %+v", again.Superblock())
	}
}

func TestReplicaFromElsewhere(t *testing.T) {
	m := newMem(t)
	must(t, m.Rename("/disk/store/volumes/pvc-1", "/disk/store/volumes/pvc-2"))
	d := openStore(t, m)
	_, _, err := d.Peek("pvc-2")
	wantError(t, "peek", err, ErrForeign)
	_, err = d.Open("pvc-2", "x")
	wantError(t, "open", err, ErrForeign)
}

func TestReplicaWithoutAFile(t *testing.T) {
	for _, name := range []string{"meta", "regions", "data"} {
		m := newMem(t)
		must(t, m.Remove("/disk/store/volumes/pvc-1/"+name))
		_, err := openStore(t, m).Open(testID, "x")
		wantError(t, name, err, ErrDamaged)
	}
}

func damageNewestSlot(t *testing.T, m *vfs.Mem) {
	t.Helper()
	_, rec, err := openStore(t, m).Peek(testID)
	must(t, err)
	alter(t, m, "/disk/store/volumes/pvc-1/meta", slotOffset+int64(slotOf(rec.Sequence))*slotSize+sectorSize, func(p []byte) { p[9] ^= 4 })
}

func TestDamagedRecordIsUnknownAndNeverReset(t *testing.T) {
	m := newMem(t)
	damageNewestSlot(t, m)
	d := openStore(t, m)
	sb, _, err := d.Peek(testID)
	wantError(t, "peek", err, ErrDamaged)
	if sb.Volume != testID {
		t.Error("the superblock is not told")
	}
	_, err = d.Open(testID, "x")
	wantError(t, "open", err, ErrDamaged)
	r, err := d.OpenUnknown(testID, "x")
	must(t, err)
	defer r.Close()
	wantError(t, "promise", r.Promise(1000), ErrDamaged)
	wantError(t, "accept", r.Accept(configAt(1000, 1), Session{}), ErrDamaged)
	_, _, err = d.Peek(testID)
	wantError(t, "peek again", err, ErrDamaged)
}

func TestAdopt(t *testing.T) {
	adopt(t, damageNewestSlot)
	adopt(t, func(t *testing.T, m *vfs.Mem) { // nothing is left
		for i := range int64(2 * slotSectors) {
			alter(t, m, "/disk/store/volumes/pvc-1/meta", slotOffset+i*sectorSize, func(p []byte) { clear(p) })
		}
	})
}

func adopt(t *testing.T, damage func(*testing.T, *vfs.Mem)) {
	m := newMem(t)
	damage(t, m)
	r, err := openStore(t, m).OpenUnknown(testID, "x")
	must(t, err)
	must(t, r.Adopt(configAt(7, 3)))
	if _, rec, err := openStore(t, m.CrashClone(nil)).Peek(testID); err != nil || rec.Promised != 7 {
		t.Errorf("adopted record %+v, %v", rec, err)
	}
	must(t, r.Accept(configAt(7, 4), Session{}))
	must(t, r.Close())
	again := openReplica(t, openStore(t, m.CrashClone(nil)))
	if rec := again.Record(); rec.Promised != 7 || !rec.Lossy || rec.Config.Step != 4 || len(again.Damage()) != 0 {
		t.Errorf("record %+v, damage %q", rec, again.Damage())
	}
	wantError(t, "adopting a good record", again.Adopt(configAt(8, 1)), fs.ErrExist)
}

func TestRecordDamagedUnderARunningSession(t *testing.T) {
	m := vfs.NewMem()
	r := newReplica(t, openStore(t, m))
	damageNewestSlot(t, m)
	wantError(t, "promise", r.Promise(5), ErrDamaged)
	wantError(t, "the replica", r.Failed(), ErrFailed)
}

func TestConcurrentCalls(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	var wg sync.WaitGroup
	for i := range int64(16) {
		wg.Go(func() {
			for j := range int64(4) {
				region := i*4 + j
				for _, err := range []error{
					r.MarkDirty([]int64{region}),
					r.WriteBlocks(vfs.AlignedBuffer(BlockSize), region*RegionBlocks),
					r.WriteSums(map[int64]digest.Sum{region: {1}}),
					r.Sync(),
				} {
					if err != nil {
						t.Error(err)
					}
				}
				if !r.IsDirty(region) {
					t.Errorf("region %d is not dirty", region)
				}
			}
		})
		wg.Go(func() {
			if err := r.Promise(volume.Epoch(i) + 10); err != nil && !errors.Is(err, ErrFenced) {
				t.Error(err)
			}
			_ = r.Record()
			_ = r.Dirty()
		})
	}
	wg.Wait()
	if n := len(r.Dirty()); n != 64 || r.Record().Promised != 25 {
		t.Errorf("%d dirty, promised %d", n, r.Record().Promised)
	}
	if total, err := r.Total(); err != nil || total != (digest.Sum{64}) {
		t.Errorf("total %s, %v", total, err)
	}
}

func TestFailIsSticky(t *testing.T) {
	r := newReplica(t, openStore(t, vfs.NewMem()))
	r.Fail(nil)
	must(t, r.Failed())
	r.Fail(syscall.EIO)
	r.Fail(syscall.ENXIO)
	if err := r.Failed(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENXIO) {
		t.Errorf("failed: %v", err)
	}
	for name, call := range changes {
		wantError(t, name, call(r), ErrFailed)
	}
	must(t, r.ReadBlocks(vfs.AlignedBuffer(BlockSize), 0))
}

// changes are all calls that change the disk.
var changes = map[string]func(r *Replica) error{
	"Promise":      func(r *Replica) error { return r.Promise(r.Record().Promised + 1) },
	"Accept":       func(r *Replica) error { return r.Accept(configAt(100, r.Record().Config.Step+1), Session{}) },
	"Mark":         func(r *Replica) error { return r.Mark(!r.Record().Lossy) },
	"MarkDirty":    func(r *Replica) error { return r.MarkDirty([]int64{3, 40}) },
	"ClearDirty":   func(r *Replica) error { return r.ClearDirty([]int64{1}) },
	"WriteSums":    func(r *Replica) error { return r.WriteSums(map[int64]digest.Sum{1: {2}}) },
	"WriteBlocks":  func(r *Replica) error { return r.WriteBlocks(vfs.AlignedBuffer(BlockSize), 5) },
	"WriteEntries": func(r *Replica) error { return r.WriteEntries(vfs.AlignedBuffer(PageSize), 1) },
	"PunchBlocks":  func(r *Replica) error { return r.PunchBlocks(5, 1) },
	"Sync":         func(r *Replica) error { return r.Sync() },
}
