package vfs_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// outcomes are the disks that every choice of surviving changes leaves.
func outcomes(t *testing.T, i *vfs.Image) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for choice := range 1 << len(i.Pending()) {
		after := i.Crash(func(change int) vfs.Fate { return vfs.Fate{Survives: choice>>change&1 == 1} })
		seen[tree(t, after)]++
	}
	return seen
}

func TestImageListsWhatIsNotDurable(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 8192)
	must(t, f.WriteAt(pattern(1000, 1), 300))
	must(t, f.Punch(4096, 4096))
	must(t, f.Truncate(100))
	must(t, m.Mkdir("/d"))
	must(t, m.Rename("/f", "/d/g"))
	must(t, m.Remove("/d/g"))
	want := []vfs.Change{
		{Kind: vfs.OpWrite, Name: "/f", Offset: 300, Len: 1000},
		{Kind: vfs.OpPunch, Name: "/f", Offset: 4096, Len: 4096},
		{Kind: vfs.OpTruncate, Name: "/f", Offset: 100},
		{Kind: vfs.OpRename, Name: "/d"},
		{Kind: vfs.OpRename, Name: "/f"}, // to /d/g, where it is no more
		{Kind: vfs.OpRename, Name: "/d/g"},
	}
	got := m.Freeze().Pending()
	if !slices.Equal(got, want) {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if n := got[0].Sectors(); n != 3 { // 300 to 1299
		t.Errorf("%d sectors", n)
	}
	must(t, f.Datasync())
	must(t, m.SyncDir("/"))
	must(t, m.SyncDir("/d"))
	if got := m.Freeze().Pending(); len(got) > 0 {
		t.Errorf("after the syncs: %+v", got)
	}
}

func TestImageMakesEveryDisk(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 1024)
	half := func(b string) string { return strings.Repeat(b, 512) }
	must(t, f.WriteAt([]byte(half("a")), 0))
	must(t, f.WriteAt([]byte(half("b")), 512))
	must(t, m.Rename("/f", "/g"))
	var want []string
	for _, name := range []string{"f=", "g="} {
		for _, first := range []string{".", "a"} {
			for _, second := range []string{".", "b"} {
				want = append(want, name+half(first)+half(second))
			}
		}
	}
	wantOutcomes(t, outcomes(t, m.Freeze()), want...)
	if got := len(outcomes(t, m.Freeze())); got != 8 {
		t.Error(got)
	}
}

func TestImageTearsWhereItIsTold(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	must(t, f.WriteAt(bytes.Repeat([]byte{'n'}, 4096), 0))
	after := m.Freeze().Crash(func(int) vfs.Fate {
		return vfs.Fate{Survives: true, Torn: func(sector int) bool { return sector == 2 || sector == 7 }}
	})
	p := read(t, open(t, after, "/f", vfs.ReadOnly), 0, 4096)
	for s := range 8 {
		if n := bytes.Count(p[s*512:(s+1)*512], []byte{'n'}); n != 512 && n != 0 || n == 512 != (s == 2 || s == 7) {
			t.Errorf("sector %d: %d new bytes", s, n)
		}
	}
}

// TestImageStays: whatever happens to the Mem or to disks made from the image, by many at once.
func TestImageStays(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	must(t, f.WriteAt([]byte("unsynced"), 0))
	i := m.Freeze()
	before := fmt.Sprint(outcomes(t, i))
	must(t, f.WriteAt([]byte("later"), 0))
	must(t, f.Datasync())
	must(t, m.Remove("/f"))
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for _, disk := range []*vfs.Mem{i.Restart(), i.Crash(func(int) vfs.Fate { return vfs.Fate{Survives: true} })} {
				f, err := disk.Open("/f", 0)
				if err == nil {
					err = f.WriteAt([]byte("mine"), 0)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if got := fmt.Sprint(outcomes(t, i)); got != before {
		t.Errorf("before %s, after %s", before, got)
	}
}

func TestImageRestarts(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	must(t, f.WriteAt([]byte("unsynced"), 0))
	put(t, m, "/g", "x")
	_, err := m.Lock("/g", "who will be dead")
	must(t, err)
	next := m.Freeze().Restart()
	if got := read(t, open(t, next, "/f", vfs.ReadOnly), 0, 8); string(got) != "unsynced" {
		t.Fatalf("%q", got)
	}
	_, err = next.Lock("/g", "me")
	must(t, err)
	if got := tree(t, next.CrashClone(nil)); got != "f="+strings.Repeat(".", 4096) {
		t.Fatalf("it is more durable than before: %s", got)
	}
	must(t, next.SyncDir("/"))
	if _, err := next.CrashClone(nil).Stat("/g"); err != nil {
		t.Fatal(err)
	}
	was, err := m.Stat("/f")
	must(t, err)
	is, err := next.Stat("/f")
	if err != nil || is != was {
		t.Errorf("%+v, was %+v: %v", is, was, err)
	}
}

func TestMakeDirsIsDurable(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.MkdirAll("/a/b")) // by somebody who was killed then
	must(t, vfs.MakeDirs(m, "/a/b/c/d"))
	wantOutcomes(t, outcomes(t, m.Freeze()), "a/ a/b/ a/b/c/ a/b/c/d/")
}
