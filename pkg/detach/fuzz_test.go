package detach

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// FuzzJournalEntry: an entry has one form; nothing else is taken for one.
func FuzzJournalEntry(f *testing.F) {
	raw, err := encodeEntry(full())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(append(raw, ' '))
	f.Add([]byte(`{"version":1,"crc32c":0,"entry":{}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEntry(raw)
		if err != nil {
			return
		}
		if again, err := encodeEntry(e); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("decoded %+v, which is encoded otherwise: %q, %v", e, again, err)
		}
	})
}

// FuzzDamagedJournal changes a byte of an entry's file: it is damaged, and never another entry, nor none.
func FuzzDamagedJournal(f *testing.F) {
	good, err := encodeEntry(full())
	if err != nil {
		f.Fatal(err)
	}
	for at := uint(0); at < uint(len(good)); at += 11 {
		f.Add(at, byte(1))
		f.Add(at+5, byte(0x20))
	}
	f.Fuzz(func(t *testing.T, at uint, change byte) {
		raw := bytes.Clone(good)
		raw[at%uint(len(raw))] ^= change
		fsys := vfs.NewMem()
		j := openJournal(t, fsys)
		if err := vfs.WriteFile(fsys, j.file(open.Volume), raw); err != nil {
			t.Fatal(err)
		}
		e, found, err := j.Get(open.Volume)
		if change == 0 && (err != nil || !found || !reflect.DeepEqual(e, full())) || change != 0 && !errors.Is(err, ErrJournal) {
			t.Errorf("byte %d changed by %#x: %+v, %t, %v", at%uint(len(raw)), change, e, found, err)
		}
	})
}

// FuzzJournal: what the journal takes it gives back as it was, after a power cut, too; what it does not take leaves nothing.
func FuzzJournal(f *testing.F) {
	e := full()
	f.Add(string(e.Attachment.Volume), string(e.Attachment.Node), uint64(7), e.Staging, e.FSType, "noatime", e.Device, "/pods/a", e.Unflushed, int64(1795000000))
	f.Add("pvc-1", "node\xff", uint64(1), "/staging\xff", "ext4", "", "", "/pods/a", "<EIO> & \u2028", int64(0))
	f.Add("pvc-1", "node", uint64(1), "/staging", "ext4", "", "", "/pods/\xff", "", int64(0))
	f.Fuzz(func(t *testing.T, id, node string, epoch uint64, stage, fsType, flag, device, target, unflushed string, idle int64) {
		if slices.ContainsFunc([]string{fsType, flag, device, unflushed}, func(s string) bool { return !utf8.ValidString(s) }) {
			return // these come from CSI, which has text only, or from us
		}
		e := full()
		e.Attachment = volume.Attachment{Volume: volume.ID(id), Node: volume.NodeID(node), Epoch: volume.Epoch(epoch)}
		e.Staging, e.FSType, e.Flags, e.Device, e.Unflushed = stage, fsType, []string{flag}, device, unflushed
		e.Targets, e.Idle = []Target{{Path: target}}, time.Unix(idle%(1<<36), 0).UTC()
		fsys := vfs.NewMem()
		if err := openJournal(t, fsys).Put(e); err != nil {
			if _, found, err := openJournal(t, fsys.CrashClone(nil)).Get(e.Attachment.Volume); found || err != nil && !errors.Is(err, volume.ErrInvalid) {
				t.Errorf("%+v was refused, and is there: %v", e, err)
			}
			return
		}
		if got, found, err := openJournal(t, fsys.CrashClone(nil)).Get(e.Attachment.Volume); err != nil || !found || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v reads as %+v, %t, %v", e, got, found, err)
		}
	})
}
