package store

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestOpenDirMakesAStoreOnce(t *testing.T) {
	m := vfs.NewMem()
	first := openStore(t, m)
	if first.ID().IsZero() || first.Path() != "/disk/store" {
		t.Errorf("store %s at %s", first.ID(), first.Path())
	}
	if again := openStore(t, m.CrashClone(nil)); again.ID() != first.ID() {
		t.Error("the store is another one after a power cut")
	}
	other := vfs.NewMem()
	if openStore(t, other).ID() == first.ID() {
		t.Error("two stores have one identity")
	}
}

func write(t *testing.T, m *vfs.Mem, name, content string) {
	t.Helper()
	must(t, vfs.WriteFile(m, name, []byte(content)))
}

func TestOpenDirRefuses(t *testing.T) {
	id := func(format int, installation, store string) string {
		return fmt.Sprintf(`{"format":%d,"installation":"%s","store":"%s"}`, format, installation, store)
	}
	ours, other := installation.String(), quorum.UUID{9}.String()
	const identity = "/disk/store/belay-store.json"
	for _, c := range []struct {
		name string
		make func(m *vfs.Mem)
		want error // nil: it opens
	}{
		{"empty", func(m *vfs.Mem) {}, nil},
		{"lost+found", func(m *vfs.Mem) { must(t, m.Mkdir("/disk/store/lost+found")) }, nil},
		{"half made", func(m *vfs.Mem) {
			must(t, m.Mkdir("/disk/store/volumes"))
			write(t, m, "/disk/store/belay-store.json.new", "{")
			write(t, m, "/disk/store/lock", "x")
		}, nil},
		{"other things", func(m *vfs.Mem) { write(t, m, "/disk/store/photo.jpg", "x") }, ErrNotStore},
		{"a file", func(m *vfs.Mem) { must(t, m.RemoveAll("/disk/store")); write(t, m, "/disk/store", "x") }, ErrNotStore},
		{"replicas without identity", func(m *vfs.Mem) { must(t, m.MkdirAll("/disk/store/volumes/pvc-1")) }, ErrDamaged},
		{"foreign", func(m *vfs.Mem) { write(t, m, identity, id(1, other, other)); makeDirs(t, m) }, ErrForeign},
		{"newer", func(m *vfs.Mem) { write(t, m, identity, id(2, ours, other)) }, ErrFormat},
		{"newer, other fields", func(m *vfs.Mem) { write(t, m, identity, `{"format":2,"x":{}}`) }, ErrFormat},
		{"garbage", func(m *vfs.Mem) { write(t, m, identity, "{") }, ErrDamaged},
		{"blank", func(m *vfs.Mem) { write(t, m, identity, "") }, ErrDamaged},
		{"two", func(m *vfs.Mem) { write(t, m, identity, id(1, ours, other)+"{}") }, ErrDamaged},
		{"no store", func(m *vfs.Mem) { write(t, m, identity, id(1, ours, quorum.UUID{}.String())) }, ErrDamaged},
		{"long", func(m *vfs.Mem) { write(t, m, identity, strings.Repeat(" ", 1<<20)) }, ErrDamaged},
		{"no volumes", func(m *vfs.Mem) {
			write(t, m, identity, id(1, ours, other))
			makeDirs(t, m)
			must(t, m.Remove("/disk/store/volumes"))
		}, ErrDamaged},
	} {
		m := vfs.NewMem()
		must(t, m.MkdirAll("/disk/store"))
		c.make(m)
		d, err := OpenDir(m, "/disk/store", installation)
		if !errors.Is(err, c.want) || (err == nil) != (d != nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err != nil && !strings.Contains(err.Error(), "/disk/store") {
			t.Errorf("%s: %q does not name the directory", c.name, err)
		}
	}
}

func makeDirs(t *testing.T, m *vfs.Mem) {
	for _, name := range []string{"volumes", "incoming", "trash", "tombstones"} {
		must(t, m.Mkdir("/disk/store/"+name))
	}
}

func TestOpenDirBadArguments(t *testing.T) {
	_, err := OpenDir(vfs.NewMem(), "relative", installation)
	wantError(t, "relative path", err, volume.ErrInvalid)
	_, err = OpenDir(vfs.NewMem(), "/x", quorum.UUID{})
	wantError(t, "no installation", err, volume.ErrInvalid)
}

func TestOpenDirOnAFullOrReadOnlyDisk(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(0)
	_, err := OpenDir(m, "/disk/store", installation)
	wantError(t, "full", err, syscall.ENOSPC)
	m = vfs.NewMem()
	m.SetReadOnly(true)
	_, err = OpenDir(m, "/disk/store", installation)
	wantError(t, "read-only", err, syscall.EROFS)
	m.SetReadOnly(false)
	openStore(t, m)
	m.SetReadOnly(true)
	openStore(t, m) // nothing has to be written to know who it is
}

func TestLock(t *testing.T) {
	d := openStore(t, vfs.NewMem())
	l, err := d.Lock("belay serve, pid 7")
	must(t, err)
	_, err = d.Lock("belay serve, pid 8")
	var held *vfs.LockedError
	if !errors.As(err, &held) || held.Holder != "belay serve, pid 7" {
		t.Errorf("second lock: %v", err)
	}
	must(t, l.Unlock())
	l, err = d.Lock("third")
	must(t, err)
	must(t, l.Unlock())
}

// Two processes that start on an empty directory at once agree on one identity, or one of them is told to wait.
func TestTwoMakeOneStore(t *testing.T) {
	m := vfs.NewMem()
	var inner *Dir
	outer, err := OpenDir(vfs.Faulty(m, func(op *vfs.Op) error {
		if op.Kind == vfs.OpLock && inner == nil {
			inner = openStore(t, m)
		}
		return nil
	}), "/disk/store", installation)
	if err != nil || inner == nil || outer.ID() != inner.ID() {
		t.Errorf("two identities, or %v", err)
	}
}

func TestSpaceAndReplicas(t *testing.T) {
	m := vfs.NewMem()
	d := openStore(t, m)
	r := newReplica(t, d)
	must(t, m.Mkdir("/disk/store/volumes/Not-An-ID"))
	must(t, m.Mkdir("/disk/store/volumes/another"))
	ids, err := d.Replicas()
	if err != nil || len(ids) != 2 || ids[0] != "another" || ids[1] != testID {
		t.Errorf("replicas %v, %v", ids, err)
	}
	before, err := d.Allocated(testID)
	must(t, err)
	must(t, r.WriteBlocks(vfs.AlignedBuffer(4*BlockSize), 7))
	after, err := d.Allocated(testID)
	if err != nil || after != before+4*BlockSize {
		t.Errorf("allocated %d, then %d, %v", before, after, err)
	}
	if s, err := d.Space(); err != nil || s.Total == 0 {
		t.Errorf("space %+v, %v", s, err)
	}
	_, err = d.Allocated("unknown")
	wantError(t, "allocated", err, ErrNotFound)
}

func FuzzIdentity(f *testing.F) {
	f.Add(encodeIdentity(identity{Format: 1, Installation: quorum.UUID{1}, Store: quorum.UUID{2}}))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"store":"zz"}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		id, err := decodeIdentity(p)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("%q: %v", p, err)
			}
			return
		}
		if again, err := decodeIdentity(encodeIdentity(id)); err != nil || again != id {
			t.Errorf("%+v encodes as %+v, %v", id, again, err)
		}
	})
}

// Where a store is known its disk may go away between two looks: nothing is made in the directory beneath.
func TestFindDirMakesNothing(t *testing.T) {
	m := vfs.NewMem()
	must(t, vfs.MakeDirs(m, "/disk/store"))
	if _, err := FindDir(m, "/disk/store", installation); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	if left, err := m.ReadDir("/disk/store"); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := FindDir(m, "/disk/none", installation); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	made := openStore(t, m)
	found, err := FindDir(m, made.Path(), installation)
	must(t, err)
	if found.ID() != made.ID() {
		t.Error("it found another store")
	}
	if _, err := FindDir(m, made.Path(), quorum.UUID{9}); !errors.Is(err, ErrForeign) {
		t.Errorf("another installation's: %v", err)
	}
}
