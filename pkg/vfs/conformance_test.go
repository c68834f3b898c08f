package vfs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// systems are the file systems that must behave alike. Each returns an empty directory of its own.
var systems = map[string]func(t *testing.T) (vfs.FS, string){
	"os":       func(t *testing.T) (vfs.FS, string) { return vfs.OS(), diskDir(t) },
	"blocking": func(t *testing.T) (vfs.FS, string) { return vfs.OSBlocking(), diskDir(t) },
	"mem":      func(t *testing.T) (vfs.FS, string) { return vfs.NewMem(), "/" },
	"faulty":   func(t *testing.T) (vfs.FS, string) { return vfs.Faulty(vfs.NewMem(), nil), "/" },
}

// diskDir is a directory on a disk where there is one: /tmp is often memory.
func diskDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/var/tmp", "belay-vfs-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// eachSystem runs test on every file system.
func eachSystem(t *testing.T, test func(t *testing.T, fsys vfs.FS, dir string)) {
	for name, make := range systems {
		t.Run(name, func(t *testing.T) {
			fsys, dir := make(t)
			test(t, fsys, dir)
		})
	}
}

// eachMode runs test on every file system with a new file, through the page cache and past it.
func eachMode(t *testing.T, test func(t *testing.T, f vfs.File)) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		for name, mode := range map[string]vfs.Mode{"cached": 0, "direct": vfs.Direct} {
			t.Run(name, func(t *testing.T) {
				test(t, open(t, fsys, filepath.Join(dir, name), mode|vfs.Create|vfs.Exclusive))
			})
		}
	})
}

func open(t testing.TB, fsys vfs.FS, name string, mode vfs.Mode) vfs.File {
	t.Helper()
	f, err := fsys.Open(name, mode)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

// pattern is n aligned bytes that differ from seed to seed and from block to block.
func pattern(n int, seed uint64) []byte {
	p := vfs.AlignedBuffer(n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func read(t testing.TB, f vfs.File, off int64, n int) []byte {
	t.Helper()
	p := vfs.AlignedBuffer(n)
	for i := range p {
		p[i] = 0xee // a read must overwrite all of it
	}
	must(t, f.ReadAt(p, off))
	return p
}

func wantData(t testing.TB, f vfs.File, off int64, want []byte) {
	t.Helper()
	got := read(t, f, off, len(want))
	if i := firstDifference(got, want); i >= 0 {
		t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
	}
}

func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func sizeOf(t testing.TB, f vfs.File) int64 {
	t.Helper()
	info, err := f.Info()
	must(t, err)
	return info.Size
}

func TestReadBack(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		data := pattern(1<<20, 1)
		must(t, f.WriteAt(data, 1<<20))
		must(t, f.Datasync())
		wantData(t, f, 1<<20, data)
		wantData(t, f, 0, make([]byte, 1<<20))
		wantData(t, f, 1<<20+64<<10, data[64<<10:128<<10])
		if got := sizeOf(t, f); got != 2<<20 {
			t.Fatalf("size is %d", got)
		}
		must(t, f.ReadAt(nil, 0))
		must(t, f.WriteAt(nil, 1<<30))
		if got := sizeOf(t, f); got != 2<<20 {
			t.Fatalf("size is %d after an empty write", got)
		}
	})
}

func TestReadPastEndIsZero(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		data := pattern(8192, 2)
		must(t, f.WriteAt(data, 0))
		must(t, f.Truncate(5000)) // inside a block
		want := make([]byte, 16384)
		copy(want, data[:5000])
		wantData(t, f, 0, want)
		wantData(t, f, 1<<30, make([]byte, 4096))
		must(t, f.Truncate(8192)) // what was cut off does not come back
		wantData(t, f, 0, want)
	})
}

func TestOverwrite(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		rng := rand.New(rand.NewPCG(3, 3))
		shadow := make([]byte, 256<<10)
		for i := range 200 {
			n := 4096 * (1 + rng.IntN(8))
			off := 4096 * rng.IntN(len(shadow)/4096-8)
			p := pattern(n, uint64(i))
			must(t, f.WriteAt(p, int64(off)))
			copy(shadow[off:], p)
			if rng.IntN(10) == 0 {
				off, n := rng.IntN(len(shadow)/2), 1+rng.IntN(len(shadow)/2)
				must(t, f.Punch(int64(off), int64(n)))
				clear(shadow[off:min(off+n, len(shadow))])
			}
		}
		wantData(t, f, 0, shadow)
	})
}

func TestUnalignedThroughCache(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f := open(t, fsys, filepath.Join(dir, "f"), vfs.Create)
		shadow := make([]byte, 64<<10)
		rng := rand.New(rand.NewPCG(4, 4))
		for i := range 200 {
			p := pattern(1+rng.IntN(9000), uint64(i))
			off := rng.IntN(len(shadow) - len(p))
			must(t, f.WriteAt(p, int64(off)))
			copy(shadow[off:], p)
		}
		wantData(t, f, 0, shadow)
		wantData(t, f, 4095, shadow[4095:4099])
	})
}

func TestDirectDemandsAlignment(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f := open(t, fsys, filepath.Join(dir, "f"), vfs.Create|vfs.Direct)
		p := vfs.AlignedBuffer(8192)
		for _, c := range []struct {
			p   []byte
			off int64
		}{{p[:512], 0}, {p[:4096], 512}, {p[512 : 512+4096], 0}, {p[:4096], -4096}} {
			wantErr(t, f.ReadAt(c.p, c.off), syscall.EINVAL)
			wantErr(t, f.WriteAt(c.p, c.off), syscall.EINVAL)
		}
	})
}

func TestBadRanges(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		wantErr(t, f.Punch(-4096, 4096), syscall.EINVAL)
		wantErr(t, f.Punch(0, 0), syscall.EINVAL)
		wantErr(t, f.Punch(0, -1), syscall.EINVAL)
		wantErr(t, f.Truncate(-1), syscall.EINVAL)
		_, err := f.NextData(-1)
		wantErr(t, err, syscall.EINVAL)
	})
}

func TestPunchGivesSpaceBack(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		data := pattern(256<<10, 5)
		must(t, f.WriteAt(data, 0))
		must(t, f.Datasync())
		before, err := f.Info()
		must(t, err)
		must(t, f.Punch(64<<10, 128<<10))
		after, err := f.Info()
		must(t, err)
		if after.Size != before.Size || after.Allocated > before.Allocated-(128<<10) {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		clear(data[64<<10 : 192<<10])
		wantData(t, f, 0, data)
		must(t, f.Punch(0, 1<<40)) // beyond the end: the size stays
		wantData(t, f, 0, make([]byte, 256<<10))
		if got := sizeOf(t, f); got != 256<<10 {
			t.Fatalf("size is %d", got)
		}
	})
}

func TestNextData(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		must(t, f.Truncate(1<<30))
		must(t, f.WriteAt(pattern(64<<10, 6), 1<<20))
		must(t, f.WriteAt(pattern(64<<10, 6), 512<<20))
		must(t, f.Datasync())
		for _, c := range []struct{ off, want int64 }{
			{0, 1 << 20}, {1 << 20, 1 << 20}, {1<<20 + 4096, 1<<20 + 4096}, {1<<20 + 64<<10, 512 << 20},
			{512<<20 + 64<<10, 1 << 30}, {1 << 30, 1 << 30}, {1 << 31, 1 << 30},
		} {
			if got, err := f.NextData(c.off); err != nil || got != c.want {
				t.Errorf("NextData(%d) = %d, %v, want %d", c.off, got, err, c.want)
			}
		}
	})
}

func TestConcurrentTransfers(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		const workers, blocks = 16, 32
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := range blocks {
					off := int64(i*workers+w) * 4096
					p := pattern(4096, uint64(off))
					if err := errors.Join(f.WriteAt(p, off), f.ReadAt(p, off)); err != nil || !bytes.Equal(p, pattern(4096, uint64(off))) {
						t.Errorf("block at %d: %v", off, err)
					}
					if i%8 == 0 && f.Datasync() != nil {
						t.Error("datasync failed")
					}
				}
			})
		}
		wg.Wait()
		for i := range workers * blocks {
			wantData(t, f, int64(i)*4096, pattern(4096, uint64(i)*4096))
		}
	})
}

func TestOpen(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		_, err := fsys.Open(name, 0)
		wantErr(t, err, fs.ErrNotExist)
		_, err = fsys.Open(name, vfs.ReadOnly)
		wantErr(t, err, fs.ErrNotExist)
		f := open(t, fsys, name, vfs.Create)
		must(t, f.WriteAt([]byte("kept"), 0))
		_, err = fsys.Open(name, vfs.Create|vfs.Exclusive)
		wantErr(t, err, fs.ErrExist)
		again := open(t, fsys, name, vfs.Create)
		wantData(t, again, 0, []byte("kept"))
		reader := open(t, fsys, name, vfs.ReadOnly)
		wantData(t, reader, 0, []byte("kept"))
		wantErr(t, reader.WriteAt([]byte("x"), 0), syscall.EBADF)
		_, err = fsys.Open(filepath.Join(name, "below"), vfs.Create)
		wantErr(t, err, syscall.ENOTDIR)
		_, err = fsys.Open(dir, vfs.ReadOnly)
		wantErr(t, err, syscall.EISDIR)
		_, err = fsys.Open(filepath.Join(dir, "missing", "f"), vfs.Create)
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestClosed(t *testing.T) {
	eachMode(t, func(t *testing.T, f vfs.File) {
		must(t, f.Close())
		p := vfs.AlignedBuffer(4096)
		_, infoErr := f.Info()
		_, nextErr := f.NextData(0)
		for _, err := range []error{
			f.ReadAt(p, 0), f.WriteAt(p, 0), f.Datasync(), f.Punch(0, 1), f.Truncate(0), f.Close(), infoErr, nextErr,
		} {
			wantErr(t, err, fs.ErrClosed)
		}
	})
}

func TestNames(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
		must(t, fsys.Mkdir(at("d")))
		wantErr(t, fsys.Mkdir(at("d")), fs.ErrExist)
		wantErr(t, fsys.Mkdir(at("x", "y")), fs.ErrNotExist)
		must(t, fsys.MkdirAll(at("d", "e", "f")))
		must(t, fsys.MkdirAll(at("d", "e", "f")))
		open(t, fsys, at("d", "file"), vfs.Create)
		wantErr(t, fsys.MkdirAll(at("d", "file", "g")), syscall.ENOTDIR)
		wantErr(t, fsys.Remove(at("d")), syscall.ENOTEMPTY)
		wantErr(t, fsys.Remove(at("gone")), fs.ErrNotExist)
		must(t, fsys.RemoveAll(at("gone")))

		entries, err := fsys.ReadDir(at("d"))
		must(t, err)
		if len(entries) != 2 || entries[0].Name() != "e" || !entries[0].IsDir() || entries[1].Name() != "file" || entries[1].IsDir() {
			t.Fatalf("entries: %v", entries)
		}
		_, err = fsys.ReadDir(at("d", "file"))
		wantErr(t, err, syscall.ENOTDIR)
		wantErr(t, fsys.SyncDir(at("d", "file")), syscall.ENOTDIR)
		wantErr(t, fsys.SyncDir(at("gone")), fs.ErrNotExist)
		must(t, fsys.SyncDir(at("d")))
		must(t, fsys.RemoveAll(at("d")))
		_, err = fsys.Stat(at("d"))
		wantErr(t, err, fs.ErrNotExist)
	})
}

func TestRename(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
		must(t, fsys.MkdirAll(at("a", "sub")))
		must(t, fsys.Mkdir(at("b")))
		f := open(t, fsys, at("a", "f"), vfs.Create)
		must(t, f.WriteAt([]byte("new"), 0))
		before, err := f.Info()
		must(t, err)
		g := open(t, fsys, at("b", "g"), vfs.Create)
		must(t, g.WriteAt([]byte("old"), 0))

		must(t, fsys.Rename(at("a", "f"), at("b", "g")))
		after, err := fsys.Stat(at("b", "g"))
		must(t, err)
		if !after.Same(before) || after.Size != 3 || after.Mount != before.Mount {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		wantData(t, g, 0, []byte("old")) // replaced, but still open
		wantErr(t, fsys.Rename(at("a", "f"), at("b", "h")), fs.ErrNotExist)
		wantErr(t, fsys.Rename(at("a"), at("b")), fs.ErrExist)
		wantErr(t, fsys.Rename(at("a"), at("b", "g")), syscall.ENOTDIR)
		wantErr(t, fsys.Rename(at("a"), at("a", "sub", "a")), syscall.EINVAL)
		must(t, fsys.Rename(at("a"), at("b", "moved")))
		info, err := fsys.Stat(at("b", "moved", "sub"))
		if err != nil || !info.Dir {
			t.Fatalf("%+v, %v", info, err)
		}
	})
}

func TestInfoAndSpace(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		f := open(t, fsys, filepath.Join(dir, "f"), vfs.Create)
		must(t, f.WriteAt(pattern(64<<10, 7), 1<<30))
		must(t, f.Datasync())
		info, err := f.Info()
		must(t, err)
		if info.Dir || info.Size != 1<<30+64<<10 || info.Allocated < 64<<10 || info.Allocated > 1<<20 || info.Inode == 0 {
			t.Fatalf("%+v", info)
		}
		space, err := fsys.Space(dir)
		must(t, err)
		if space.Device != info.Device || space.Total <= 0 || space.Available > space.Total || space.ReadOnly {
			t.Fatalf("%+v", space)
		}
		_, err = fsys.Space(filepath.Join(dir, "gone"))
		wantErr(t, err, fs.ErrNotExist)
		must(t, fsys.Remove(filepath.Join(dir, "f")))
		if removed, err := f.Info(); err != nil || !removed.Same(info) {
			t.Fatalf("%+v, %v", removed, err)
		}
	})
}

func TestLock(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "lock")
		lock, err := fsys.Lock(name, "a holder with a long name")
		must(t, err)
		_, err = fsys.Lock(name, "second")
		locked, ok := errors.AsType[*vfs.LockedError](err)
		if !ok || locked.Holder != "a holder with a long name" || locked.Name != name {
			t.Fatalf("%v", err)
		}
		must(t, lock.Unlock())
		must(t, lock.Unlock())
		lock, err = fsys.Lock(name, "third")
		must(t, err)
		content, err := vfs.ReadFile(fsys, name, 100)
		if err != nil || string(content) != "third" {
			t.Fatalf("%q, %v", content, err)
		}
		must(t, fsys.Remove(name)) // a lock on a removed file excludes nobody from the name
		other, err := fsys.Lock(name, "fourth")
		must(t, err)
		must(t, lock.Unlock())
		_, err = fsys.Lock(name, "fifth")
		if locked, ok := errors.AsType[*vfs.LockedError](err); !ok || locked.Holder != "fourth" {
			t.Fatalf("%v", err)
		}
		must(t, other.Unlock())
	})
}

func TestLockedFile(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		f := open(t, fsys, name, vfs.Create|vfs.Direct|vfs.Locked)
		_, err := fsys.Open(name, vfs.Direct|vfs.Locked)
		if locked, ok := errors.AsType[*vfs.LockedError](err); !ok || locked.Name != name {
			t.Fatalf("second open: %v", err)
		}
		other := open(t, fsys, name, vfs.Direct) // who does not ask for the lock does not need it
		must(t, other.Close())
		_, err = fsys.Open(name, vfs.Direct|vfs.Locked)
		if _, ok := errors.AsType[*vfs.LockedError](err); !ok {
			t.Fatalf("after a close of another: %v", err)
		}
		must(t, f.Close())
		must(t, open(t, fsys, name, vfs.Direct|vfs.Locked).Close())
	})
}

func TestWholeFiles(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "f")
		for _, text := range []string{"", "a longer content than the next", "short"} {
			must(t, vfs.WriteFile(fsys, name, []byte(text)))
			got, err := vfs.ReadFile(fsys, name, 100)
			if err != nil || string(got) != text {
				t.Fatalf("%q, %v", got, err)
			}
		}
		_, err := vfs.ReadFile(fsys, name, 4)
		wantErr(t, err, syscall.EFBIG)
		entries, err := fsys.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%v, %v", entries, err)
		}
	})
}

func TestErrorsNameTheFile(t *testing.T) {
	eachSystem(t, func(t *testing.T, fsys vfs.FS, dir string) {
		name := filepath.Join(dir, "gone")
		_, openErr := fsys.Open(name, 0)
		_, statErr := fsys.Stat(name)
		_, readErr := fsys.ReadDir(name)
		for _, err := range []error{openErr, statErr, readErr, fsys.Remove(name), fsys.SyncDir(name)} {
			if path, ok := errors.AsType[*fs.PathError](err); !ok || path.Path != name {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestBuffers(t *testing.T) {
	for _, n := range []int{0, 1, 512, 4095, 4096, 4097, 12288, 1 << 20, 8 << 20, 8<<20 + 1, 9 << 20} {
		for _, b := range [][]byte{vfs.AlignedBuffer(n), vfs.GetBuffer(n), vfs.GetBuffer(n)} {
			if len(b) != n {
				t.Fatalf("%d bytes for %d", len(b), n)
			}
			full := b[:cap(b)]
			if f := open(t, vfs.NewMem(), "/f", vfs.Create|vfs.Direct); n >= 4096 {
				must(t, f.WriteAt(full[:n/4096*4096], 0)) // Mem refuses what is not aligned
			}
			vfs.PutBuffer(b)
		}
	}
	vfs.PutBuffer(make([]byte, 100))
	b := vfs.GetBuffer(8192)
	vfs.PutBuffer(b[:10]) // a shorter slice from its beginning is the same buffer
	if c := slices.Max([]int{cap(vfs.GetBuffer(5000)), 0}); c != 8192 {
		t.Fatalf("capacity %d", c)
	}
}
