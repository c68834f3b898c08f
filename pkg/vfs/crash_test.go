package vfs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// crashes is how many power cuts a test looks at.
const crashes = 400

// eachCrash shows outcome what is left of m after many power cuts and returns how often each description came up.
func eachCrash(m *vfs.Mem, outcome func(after *vfs.Mem) string) map[string]int {
	seen := map[string]int{}
	for seed := range uint64(crashes) {
		seen[outcome(m.CrashClone(rand.New(rand.NewPCG(seed, 9))))]++
	}
	return seen
}

// wantOutcomes demands that exactly these came up.
func wantOutcomes(t *testing.T, seen map[string]int, want ...string) {
	t.Helper()
	var got []string
	for outcome := range seen {
		got = append(got, outcome)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("after a power cut: %q, want %q", got, want)
	}
}

// tree lists the names and the content of small files, such as "d/ d/f=text".
func tree(t *testing.T, fsys vfs.FS) string {
	var lines []string
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := fsys.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			name := path.Join(dir, e.Name())
			if e.IsDir() {
				lines = append(lines, name[1:]+"/")
				walk(name)
				continue
			}
			p, err := vfs.ReadFile(fsys, name, 1<<20)
			must(t, err)
			lines = append(lines, name[1:]+"="+string(p))
		}
	}
	walk("/")
	return strings.Join(lines, " ")
}

func put(t *testing.T, m vfs.FS, name, text string) {
	t.Helper()
	f := open(t, m, name, vfs.Create)
	must(t, f.WriteAt([]byte(text), 0))
	must(t, f.Datasync())
}

func TestSyncedSurvives(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "/f", "one")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }), "f=one")
}

func TestUnsyncedNameMayBeLost(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "/f", "one")
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }), "", "f=one")
	must(t, m.Mkdir("/d"))
	put(t, m, "/d/f", "two")
	must(t, m.SyncDir("/d")) // says nothing about /d itself
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }),
		"", "f=one", "d/ d/f=two", "d/ d/f=two f=one")
}

func TestRenameIsAtomicAndDurableOnlyWhenSynced(t *testing.T) {
	m := vfs.NewMem()
	put(t, m, "/f", "old")
	must(t, m.SyncDir("/"))
	put(t, m, "/f.new", "new")
	must(t, m.Rename("/f.new", "/f"))
	look := func(after *vfs.Mem) string { return tree(t, after) }
	wantOutcomes(t, eachCrash(m, look), "f=old", "f=old f.new=new", "f=new")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, eachCrash(m, look), "f=new")
}

func TestRenameAcrossDirectoriesNeedsBoth(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.Mkdir("/a"))
	must(t, m.Mkdir("/b"))
	put(t, m, "/a/f", "x")
	must(t, m.SyncDir("/a"))
	must(t, m.SyncDir("/"))
	must(t, m.Rename("/a/f", "/b/f"))
	look := func(after *vfs.Mem) string { return tree(t, after) }
	for _, dir := range []string{"/", "/b"} {
		must(t, m.SyncDir(dir))
		wantOutcomes(t, eachCrash(m, look), "a/ a/f=x b/", "a/ b/ b/f=x")
	}
	must(t, m.SyncDir("/a"))
	wantOutcomes(t, eachCrash(m, look), "a/ b/ b/f=x")
}

func TestMovedOutFileOutlivesItsDirectory(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.Mkdir("/a"))
	put(t, m, "/a/f", "x")
	must(t, m.SyncDir("/a"))
	must(t, m.SyncDir("/"))
	must(t, m.Rename("/a/f", "/f"))
	must(t, m.Remove("/a"))
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }),
		"a/ a/f=x", "a/ f=x", "f=x")
}

func TestRenameWithoutDatasyncMayLeaveAnEmptyFile(t *testing.T) {
	m := vfs.NewMem()
	f := open(t, m, "/f.new", vfs.Create)
	must(t, f.WriteAt([]byte("new"), 0))
	must(t, m.Rename("/f.new", "/f"))
	must(t, m.SyncDir("/"))
	// Three bytes are one sector: the write is there, or only its size, or nothing.
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }), "f=", "f=new", "f=\x00\x00\x00")
}

func TestRemoveComesBackUnlessSynced(t *testing.T) {
	m := vfs.NewMem()
	must(t, m.Mkdir("/d"))
	put(t, m, "/d/f", "x")
	must(t, m.SyncDir("/d"))
	must(t, m.SyncDir("/"))
	must(t, m.RemoveAll("/d"))
	look := func(after *vfs.Mem) string { return tree(t, after) }
	wantOutcomes(t, eachCrash(m, look), "", "d/", "d/ d/f=x")
	must(t, m.SyncDir("/"))
	wantOutcomes(t, eachCrash(m, look), "")
}

func TestWriteFileIsAtomic(t *testing.T) {
	var m *vfs.Mem
	seen := map[string]int{}
	for step := int64(1); ; step++ {
		m = vfs.NewMem()
		must(t, vfs.WriteFile(m, "/f", []byte("old")))
		err := vfs.WriteFile(vfs.Faulty(m, vfs.FailFrom(step, syscall.EIO)), "/f", []byte("new content"))
		for outcome, n := range eachCrash(m, func(after *vfs.Mem) string {
			p, err := vfs.ReadFile(after, "/f", 100)
			must(t, err)
			return string(p)
		}) {
			seen[outcome] += n
		}
		if err == nil {
			break
		}
	}
	wantOutcomes(t, seen, "old", "new content")
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return tree(t, after) }), "f=new content")
}

// TestUnsyncedWritesAreIndependent: each of two writes may be there or not, whatever the other does.
func TestUnsyncedWritesAreIndependent(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 8192)
	must(t, f.WriteAt(bytes.Repeat([]byte{'1'}, 512), 0))
	must(t, f.WriteAt(bytes.Repeat([]byte{'2'}, 512), 4096))
	look := func(after *vfs.Mem) string {
		p := read(t, open(t, after, "/f", vfs.ReadOnly), 0, 8192)
		return string([]byte{p[0], p[511], p[4096], p[4607]})
	}
	wantOutcomes(t, eachCrash(m, look), "....", "11..", "..22", "1122")
	must(t, f.Datasync())
	wantOutcomes(t, eachCrash(m, look), "1122")
}

func durableFile(t *testing.T, m *vfs.Mem, size int) vfs.File {
	t.Helper()
	f := open(t, m, "/f", vfs.Create)
	must(t, f.WriteAt(bytes.Repeat([]byte{'.'}, size), 0))
	must(t, f.Datasync())
	must(t, m.SyncDir("/"))
	return f
}

func TestTornWritesAreWholeSectors(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 8192)
	must(t, f.WriteAt(bytes.Repeat([]byte{'n'}, 4096), 4096))
	torn, notPrefix := 0, 0
	eachCrash(m, func(after *vfs.Mem) string {
		p := read(t, open(t, after, "/f", vfs.ReadOnly), 0, 8192)
		if bytes.Count(p[:4096], []byte{'.'}) != 4096 {
			t.Fatal("a write touched its neighbour")
		}
		p = p[4096:]
		for s := 0; s < len(p); s += 512 {
			if n := bytes.Count(p[s:s+512], p[s:s+1]); n != 512 {
				t.Fatalf("sector %d is torn", s/512)
			}
		}
		if n := bytes.Count(p, []byte{'n'}); n != 0 && n != 4096 {
			torn++
			if p[0] == '.' {
				notPrefix++
			}
		}
		return ""
	})
	if torn < crashes/10 || notPrefix < crashes/40 {
		t.Fatalf("%d torn, %d of them not from the beginning", torn, notPrefix)
	}
}

func TestPunchAndTruncateMayBeLost(t *testing.T) {
	look := func(after *vfs.Mem) string {
		f := open(t, after, "/f", vfs.ReadOnly)
		return fmt.Sprint(sizeOf(t, f), read(t, f, 0, 1)[0])
	}
	m := vfs.NewMem()
	f := durableFile(t, m, 8192)
	must(t, f.Punch(0, 4096))
	must(t, f.Truncate(5000))
	wantOutcomes(t, eachCrash(m, look), "8192 46", "8192 0", "5000 46", "5000 0")
	must(t, f.Datasync())
	wantOutcomes(t, eachCrash(m, look), "5000 0")
}

func TestNilRandLosesAllThatIsUnsynced(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	must(t, f.WriteAt([]byte("xx"), 0))
	put(t, m, "/g", "x")
	if got := tree(t, m.CrashClone(nil)); got != "f="+strings.Repeat(".", 4096) {
		t.Fatal(got)
	}
}

func TestCrashIsReproducibleAndLeavesTheOriginal(t *testing.T) {
	m := vfs.NewMem()
	for i := range 20 {
		f := open(t, m, fmt.Sprint("/f", i), vfs.Create)
		must(t, f.WriteAt(pattern(20000, uint64(i)), 0))
	}
	before := tree(t, m)
	for seed := range uint64(20) {
		a, b := m.CrashClone(rand.New(rand.NewPCG(seed, 0))), m.CrashClone(rand.New(rand.NewPCG(seed, 0)))
		if tree(t, a) != tree(t, b) {
			t.Fatalf("seed %d gives two disks", seed)
		}
		// What a crash left is on the media: a second power cut takes nothing more away.
		if tree(t, a) != tree(t, a.CrashClone(nil)) {
			t.Fatalf("seed %d: the clone is not durable", seed)
		}
		put(t, a, "/f0", "only in the clone")
	}
	if tree(t, m) != before {
		t.Fatal("the original changed")
	}
}

func TestCloneIdentity(t *testing.T) {
	m := vfs.NewMem()
	durableFile(t, m, 4096)
	lock, err := m.Lock("/f", "me")
	must(t, err)
	defer lock.Unlock()
	before, err := m.Stat("/f")
	must(t, err)
	after := m.CrashClone(nil)
	info, err := after.Stat("/f")
	must(t, err)
	if !info.Same(before) || info.Mount == before.Mount {
		t.Fatalf("before %+v, after %+v", before, info)
	}
	_, err = after.Lock("/f", "next")
	must(t, err)
}

func TestRestart(t *testing.T) {
	m := vfs.NewMem()
	f := open(t, m, "/f", vfs.Create)
	must(t, f.WriteAt([]byte("x"), 0))
	lock, err := m.Lock("/lock", "old")
	must(t, err)
	next := m.Restart()
	wantErr(t, f.WriteAt([]byte("y"), 0), fs.ErrClosed)
	wantErr(t, f.Datasync(), fs.ErrClosed)
	_, err = m.Stat("/f")
	wantErr(t, err, fs.ErrClosed)
	held, err := next.Lock("/lock", "new")
	must(t, err)
	must(t, lock.Unlock()) // of the dead process: must not release the new one's
	_, err = next.Lock("/lock", "third")
	if err == nil {
		t.Fatal("two hold the lock")
	}
	must(t, held.Unlock())
	wantData(t, open(t, next, "/f", vfs.ReadOnly), 0, []byte("x"))
	if got := tree(t, next.CrashClone(nil)); got != "" {
		t.Fatalf("a restart made durable: %q", got)
	}
}

func TestLoseUnsynced(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	must(t, f.WriteAt(pattern(4096, 1), 1<<20))
	must(t, m.LoseUnsynced("/f", nil))
	wantData(t, f, 0, bytes.Repeat([]byte{'.'}, 4096))
	if got := sizeOf(t, f); got != 4096 {
		t.Fatalf("size is %d", got)
	}
	must(t, f.Datasync()) // succeeds and brings nothing back
	wantOutcomes(t, eachCrash(m, func(after *vfs.Mem) string { return fmt.Sprint(len(tree(t, after))) }), "4098")
}

func TestCapacity(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(16384)
	f := open(t, m, "/f", vfs.Create)
	must(t, f.WriteAt(pattern(12288, 1), 0))
	wantErr(t, f.WriteAt(pattern(8192, 2), 12288), syscall.ENOSPC)
	if got := sizeOf(t, f); got != 12288 {
		t.Fatalf("size is %d after a refused write", got)
	}
	must(t, f.WriteAt(pattern(12288, 3), 0)) // overwriting needs no space
	must(t, f.Punch(0, 4096))
	must(t, f.WriteAt(pattern(8192, 2), 12288))
	wantAvailable(t, m, 0)
	must(t, m.Remove("/f"))
	wantAvailable(t, m, 0) // still open
	must(t, f.Close())
	wantAvailable(t, m, 16384)

	g := open(t, m, "/g", vfs.Create)
	must(t, g.WriteAt(pattern(4096, 1), 0))
	must(t, m.Rename("/g", "/h"))
	wantAvailable(t, m, 12288)
	must(t, g.Close())
	put(t, m, "/i", "x")
	must(t, m.Rename("/h", "/i")) // what was replaced is still open, and closed by the restart
	wantAvailable(t, m, 8192)
	wantAvailable(t, m.Restart(), 12288)
}

func wantAvailable(t *testing.T, m *vfs.Mem, want int64) {
	t.Helper()
	space, err := m.Space("/")
	must(t, err)
	if space.Available != want {
		t.Fatalf("%d bytes available, want %d", space.Available, want)
	}
}

func TestReadOnlyDisk(t *testing.T) {
	m := vfs.NewMem()
	f := durableFile(t, m, 4096)
	m.SetReadOnly(true)
	_, openErr := m.Open("/f", 0)
	_, createErr := m.Open("/g", vfs.Create|vfs.ReadOnly)
	_, lockErr := m.Lock("/lock", "me")
	for _, err := range []error{
		openErr, createErr, lockErr, f.WriteAt([]byte("x"), 0), f.Punch(0, 1), f.Truncate(0),
		m.Mkdir("/d"), m.MkdirAll("/d/e"), m.Rename("/f", "/g"), m.Remove("/f"), m.RemoveAll("/f"),
	} {
		wantErr(t, err, syscall.EROFS)
	}
	must(t, m.MkdirAll("/"))
	wantData(t, open(t, m, "/f", vfs.ReadOnly), 0, bytes.Repeat([]byte{'.'}, 4096))
	space, err := m.Space("/")
	if err != nil || !space.ReadOnly {
		t.Fatalf("%+v, %v", space, err)
	}
}
