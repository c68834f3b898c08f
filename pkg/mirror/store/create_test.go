package store

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestCreate(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	must(t, d.Create(superOf(d), configAt(3, 2)))
	sb, rec, err := openStore(t, m.CrashClone(nil)).Peek(testID)
	must(t, err)
	if sb != superOf(d) {
		t.Errorf("superblock %+v", sb)
	}
	if rec.Promised != 3 || rec.Session != (Session{}) || rec.Lossy || !sameConfig(rec.Config, configAt(3, 2)) {
		t.Errorf("record %+v", rec)
	}
	wantError(t, "again", d.Create(superOf(d), configAt(4, 1)), fs.ErrExist)
	if _, rec, _ = d.Peek(testID); rec.Config.Epoch != 3 {
		t.Error("a refused Create changed the replica")
	}
}

func TestCreateRefuses(t *testing.T) {
	d := openStore(t, vfs.NewMem())
	for name, alter := range map[string]func(*Superblock, *quorum.Config){
		"path trick":    func(s *Superblock, _ *quorum.Config) { s.Volume = "../../etc" },
		"another store": func(s *Superblock, _ *quorum.Config) { s.Store = quorum.UUID{99} },
		"no voters":     func(_ *Superblock, c *quorum.Config) { c.Voters = nil },
	} {
		sb, c := superOf(d), configAt(1, 1)
		alter(&sb, &c)
		wantError(t, name, d.Create(sb, c), volume.ErrInvalid)
	}
	if ids, err := d.Replicas(); err != nil || len(ids) != 0 {
		t.Errorf("replicas %v, %v", ids, err)
	}
}

func TestCreateOnAFullDiskLeavesNothing(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	s, err := d.Space()
	must(t, err)
	m.SetCapacity(s.Total - s.Available)
	wantError(t, "full", d.Create(superOf(d), configAt(1, 1)), syscall.ENOSPC)
	if left, err := m.ReadDir("/disk/store/incoming"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRemove(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	r := newReplica(t, d)
	var held *vfs.LockedError
	if err := d.Remove(testID); !errors.As(err, &held) {
		t.Errorf("removing an open replica: %v", err)
	}
	must(t, r.Close())
	must(t, d.Remove(testID))
	must(t, d.Remove(testID))
	_, _, err := openStore(t, m.CrashClone(nil)).Peek(testID)
	wantError(t, "peek", err, ErrNotFound)
	_, err = d.Open(testID, "x")
	wantError(t, "open", err, ErrNotFound)
	must(t, d.Create(superOf(d), configAt(5, 1)))
}

func TestSweep(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	newReplica(t, d)
	must(t, m.MkdirAll("/disk/store/incoming/pvc-2.1/receipts"))
	must(t, m.MkdirAll("/disk/store/trash/pvc-3.1"))
	must(t, d.Sweep())
	for _, name := range []string{"incoming", "trash"} {
		if left, err := m.ReadDir("/disk/store/" + name); err != nil || len(left) != 0 {
			t.Errorf("%s holds %v, %v", name, left, err)
		}
	}
	if ids, _ := d.Replicas(); !slices.Equal(ids, []volume.ID{testID}) {
		t.Errorf("replicas %v", ids)
	}
}

func TestBury(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	must(t, d.Bury(testID, quorum.UUID{4}))
	must(t, d.Bury(testID, quorum.UUID{4}))
	d = openStore(t, m.CrashClone(nil))
	for uuid, want := range map[quorum.UUID]bool{{4}: true, {5}: false} {
		if got, err := d.Buried(testID, uuid); got != want || err != nil {
			t.Errorf("buried %v, %v", got, err)
		}
	}
}

func TestReceipts(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	newReplica(t, d)
	for _, e := range []volume.Epoch{300, 2, 1 << 63} {
		must(t, d.PutReceipt(testID, e, []byte{byte(e), 1}))
	}
	must(t, d.PutReceipt(testID, 2, []byte("orphan replaced")))
	must(t, d.PutReceipt(testID, 2, []byte("orphan replaced")))
	write(t, m, "/disk/store/volumes/pvc-1/receipts/note.txt", "x")
	write(t, m, "/disk/store/volumes/pvc-1/receipts/000000000000000A.json", "upper case is not ours")
	got, err := openStore(t, m.CrashClone(nil)).Receipts(testID)
	must(t, err)
	if len(got) != 3 || got[0].Writer != 2 || string(got[0].Bytes) != "orphan replaced" || got[1].Writer != 300 || got[2].Writer != 1<<63 {
		t.Errorf("receipts %+v", got)
	}
}

func TestReceiptsRefused(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	wantError(t, "no replica", d.PutReceipt(testID, 1, []byte("x")), ErrNotFound)
	_, err := d.Receipts(testID)
	wantError(t, "no replica", err, ErrNotFound)
	newReplica(t, d)
	wantError(t, "empty", d.PutReceipt(testID, 1, nil), volume.ErrInvalid)
	wantError(t, "long", d.PutReceipt(testID, 1, make([]byte, ReceiptMax+1)), volume.ErrInvalid)
	must(t, d.PutReceipt(testID, 1, bytes.Repeat([]byte{1}, ReceiptMax)))
	write(t, m, "/disk/store/volumes/pvc-1/receipts/0000000000000002.json", string(make([]byte, ReceiptMax+1)))
	_, err = d.Receipts(testID)
	wantError(t, "too long on disk", err, ErrDamaged)
}

// A process that was killed may leave what it wrote unsynced: putting the same receipt again makes it durable.
func TestReceiptPutAgainIsDurable(t *testing.T) {
	m := newMem(t)
	d := openStore(t, vfs.Faulty(m, vfs.FailNth(2, syscall.EIO, vfs.OpSyncDir))) // the first is OpenDir's
	wantError(t, "sync fails", d.PutReceipt(testID, 1, []byte("r")), syscall.EIO)
	must(t, openStore(t, m).PutReceipt(testID, 1, []byte("r")))
	got, err := openStore(t, m.CrashClone(nil)).Receipts(testID)
	if err != nil || len(got) != 1 {
		t.Errorf("receipts %v, %v", got, err)
	}
}
