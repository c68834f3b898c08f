package detach

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

func full() Entry {
	return Entry{
		Attachment: open, Staging: staging, Access: Mount, FSType: "ext4", Flags: []string{"noatime"}, ReadOnly: true,
		Device: "/dev/loop7", Phase: Staged, Targets: []Target{{Path: podA}, {Path: "/pods/b/mount", ReadOnly: true}}, Published: true,
		Idle: time.Date(2026, 11, 24, 9, 42, 0, 0, time.UTC), Unflushed: "EIO", Releasing: "run", Boot: bootA,
	}
}

func openJournal(t *testing.T, fsys vfs.FS) *Journal {
	t.Helper()
	j, err := OpenJournal(fsys, "/journal")
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJournalKeepsEverything(t *testing.T) {
	disk := vfs.NewMem()
	j := openJournal(t, disk)
	want := full()
	if v := reflect.ValueOf(want); true {
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Fatalf("the test leaves %s out", v.Type().Field(i).Name)
			}
		}
	}
	if err := j.Put(want); err != nil {
		t.Fatal(err)
	}
	got, found, err := openJournal(t, disk.CrashClone(nil)).Get(vol)
	if err != nil || !found || !reflect.DeepEqual(got, want) {
		t.Fatalf("after a power cut: %+v, %t, %v", got, found, err)
	}
	if err := j.Remove(vol); err != nil {
		t.Fatal(err)
	}
	if err := j.Remove(vol); err != nil {
		t.Fatal(err)
	}
	if _, found, err := openJournal(t, disk.CrashClone(nil)).Get(vol); found || err != nil {
		t.Fatalf("removed, and after a power cut: %t, %v", found, err)
	}
}

// TestJournalPowerCuts cuts the power after every call of a change: the entry is the old or the new one, and what an
// interrupted change left is in nobody's way.
func TestJournalPowerCuts(t *testing.T) {
	older, newer := full(), full()
	newer.Phase = Unstaging
	for n := int64(1); n < 20; n++ {
		for seed := range uint64(8) {
			disk := vfs.NewMem()
			j := openJournal(t, disk)
			if err := j.Put(older); err != nil {
				t.Fatal(err)
			}
			cut := &Journal{fsys: vfs.Faulty(disk, vfs.FailFrom(n, errors.New("power"))), dir: "/journal"}
			done := cut.Put(newer) == nil
			after := openJournal(t, disk.CrashClone(rand.New(rand.NewPCG(seed, uint64(n)))))
			got, found, err := after.Get(vol)
			if err != nil || !found || got.Phase != newer.Phase && (done || got.Phase != older.Phase) {
				t.Fatalf("call %d, seed %d: %+v, %t, %v (done=%t)", n, seed, got, found, err, done)
			}
			if err := after.Put(newer); err != nil {
				t.Fatalf("call %d, seed %d: change after the power cut: %v", n, seed, err)
			}
		}
	}
}

// TestJournalShowsWhatIsDurable: a process is killed between the rename and the sync of an entry; the next one acts on what it finds,
// and then the power fails.
func TestJournalShowsWhatIsDurable(t *testing.T) {
	disk := vfs.NewMem()
	j := openJournal(t, vfs.Faulty(disk, func(op *vfs.Op) error {
		if _, err := disk.Stat("/journal/" + string(vol) + journalSuffix); err == nil && op.Kind == vfs.OpSyncDir {
			return errDied
		}
		return nil
	}))
	if err := j.Put(full()); !errors.Is(err, errDied) {
		t.Fatal(err)
	}
	disk = disk.Restart()
	if _, found, err := openJournal(t, disk).Get(vol); !found || err != nil {
		t.Fatalf("after the kill: %t, %v", found, err)
	}
	if _, found, err := openJournal(t, disk.CrashClone(nil)).Get(vol); !found || err != nil {
		t.Fatalf("after the power cut: %t, %v", found, err)
	}
}

// TestJournalShowsWhatIsDurableAfterAnError: a change fails when it is visible already; what is read then is acted on, too.
func TestJournalShowsWhatIsDurableAfterAnError(t *testing.T) {
	disk := vfs.NewMem()
	failing := false
	j := openJournal(t, vfs.Faulty(disk, func(op *vfs.Op) error {
		if failing && op.Kind == vfs.OpSyncDir {
			return syscall.EIO
		}
		return nil
	}))
	failing = true
	if err := j.Put(full()); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, _, err := j.Get(vol); !errors.Is(err, syscall.EIO) {
		t.Fatalf("shown though nobody knows whether it stays: %v", err)
	}
	failing = false
	if _, found, err := j.Get(vol); !found || err != nil {
		t.Fatal(found, err)
	}
	if _, found, err := openJournal(t, disk.CrashClone(nil)).Get(vol); !found || err != nil {
		t.Fatalf("after the power cut: %t, %v", found, err)
	}
	failing = true
	if err := j.Remove(vol); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	failing = false
	if _, found, err := j.Get(vol); found || err != nil {
		t.Fatal(found, err)
	}
	if _, found, err := openJournal(t, disk.CrashClone(nil)).Get(vol); found || err != nil {
		t.Fatalf("back after the power cut: %t, %v", found, err)
	}
}

func TestJournalTellsDamage(t *testing.T) {
	disk := vfs.NewMem()
	j := openJournal(t, disk)
	if err := j.Put(full()); err != nil {
		t.Fatal(err)
	}
	name := "/journal/" + string(vol) + ".json"
	raw, err := vfs.ReadFile(disk, name, entryMax)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			spoiled := append([]byte(nil), raw...)
			spoiled[i] ^= mask
			if err := vfs.WriteFile(disk, name, spoiled); err != nil {
				t.Fatal(err)
			}
			if e, found, err := j.Get(vol); !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), name) {
				t.Fatalf("byte %d changed by %#x: %+v, %t, %v", i, mask, e, found, err)
			}
		}
	}
	good := full()
	good.Attachment.Volume = "pvc-2"
	if err := j.Put(good); err != nil {
		t.Fatal(err)
	}
	entries, err := j.List()
	if !errors.Is(err, ErrJournal) || len(entries) != 1 || entries[0].Attachment.Volume != "pvc-2" {
		t.Fatalf("list beside a damaged entry: %+v, %v", entries, err)
	}
	if err := j.SetAside(vol); err != nil {
		t.Fatal(err)
	}
	if _, found, err := j.Get(vol); found || err != nil {
		t.Fatalf("set aside: %t, %v", found, err)
	}
	if _, err := disk.Stat(name + damagedSuffix); err != nil {
		t.Fatal(err)
	}
}

func TestJournalRefuses(t *testing.T) {
	j := openJournal(t, vfs.NewMem())
	cases := map[string]func(*Entry){
		"volume":      func(e *Entry) { e.Attachment.Volume = "../x" },
		"node":        func(e *Entry) { e.Attachment.Node = "" },
		"epoch":       func(e *Entry) { e.Attachment.Epoch = 0 },
		"staging":     func(e *Entry) { e.Staging = "relative" },
		"no staging":  func(e *Entry) { e.Staging = "" },
		"access":      func(e *Entry) { e.Access = "tape" },
		"phase":       func(e *Entry) { e.Phase = "limbo" },
		"target":      func(e *Entry) { e.Targets[0].Path = "x\x00" },
		"targets":     func(e *Entry) { e.Targets = make([]Target, targetsMax+1) },
		"flags":       func(e *Entry) { e.Flags = make([]string, flagsMax+1) },
		"large entry": func(e *Entry) { e.Unflushed = strings.Repeat("x", entryMax) },
	}
	for name, spoil := range cases {
		e := full()
		spoil(&e)
		if err := j.Put(e); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := j.Get("../x"); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("path as ID: %v", err)
	}
	if err := j.Remove("../x"); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("path as ID: %v", err)
	}
	if entries, err := j.List(); len(entries) != 0 || err != nil {
		t.Errorf("refused entries were kept: %v, %v", entries, err)
	}
}

func TestJournalOnTheRealDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j, err := OpenJournal(vfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Put(full()); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(vfs.OS(), filepath.Join(dir, "rest.json"+tempSuffix), nil); err != nil {
		t.Fatal(err)
	}
	j, err = OpenJournal(vfs.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if e, found, err := j.Get(vol); err != nil || !found || !reflect.DeepEqual(e, full()) {
		t.Fatalf("%+v, %t, %v", e, found, err)
	}
	if _, err := vfs.OS().Stat(filepath.Join(dir, "rest.json"+tempSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the rest of an interrupted write: %v", err)
	}
}
