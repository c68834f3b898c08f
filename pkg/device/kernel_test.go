package device

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openDevice opens it past the page cache.
func openDevice(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func pattern(n int, seed byte) []byte {
	b := aligned(n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ seed
	}
	return b
}

func TestBlockSize(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		t.Run(strconv.Itoa(bs), func(t *testing.T) {
			m := newMemory(t, 8<<20, 8<<20)
			r := newRig(t, m, bs)
			for name, want := range map[string]string{
				"logical_block_size":  strconv.Itoa(bs),
				"discard_granularity": "4096",
				"write_cache":         "write back", // else nobody would ever flush
				"rotational":          "0",
			} {
				got, err := os.ReadFile("/sys/block/" + strings.TrimPrefix(r.path, "/dev/") + "/queue/" + name)
				if err != nil || strings.TrimSpace(string(got)) != want {
					t.Errorf("%s is %q, want %q, %v", name, got, want, err)
				}
			}
			if s := run(t, "blockdev", "--getss", "--getsize64", r.path); s != strconv.Itoa(bs)+"\n8388608" {
				t.Errorf("blockdev says %q", s)
			}
			f := openDevice(t, r.path)
			want := pattern(4096, 1)[:bs]
			if _, err := f.WriteAt(want, 8<<20-int64(bs)); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(m.bytes[8<<20-bs:8<<20], want) {
				t.Error("the last block did not arrive")
			}
			f.Close()
		})
	}
	for _, bad := range []Config{{Name: "x", BlockSize: 1024}, {Name: "", BlockSize: 512}} {
		if _, err := Create(bad); err == nil {
			t.Errorf("%+v accepted", bad)
		}
	}
}

func TestDiscardAndZero(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	f := openDevice(t, r.path)
	defer f.Close()
	want := pattern(8<<20, 3)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	run(t, "blkdiscard", "-o", "1048576", "-l", "65536", r.path)
	if m.discards.Load() == 0 {
		t.Error("discard did not arrive")
	}
	clear(want[1<<20 : 1<<20+65536])
	run(t, "blkdiscard", "-z", "-o", "4194304", "-l", "12288", r.path)
	if m.zeroes.Load() == 0 {
		t.Error("write zeroes did not arrive")
	}
	clear(want[4<<20 : 4<<20+12288])
	got := aligned(8 << 20)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs from what was written and discarded: %v", err)
	}
}

func TestResizeOnline(t *testing.T) {
	const before, after = 8 << 20, 24 << 20
	m := newMemory(t, before, after)
	r := newRig(t, m, 4096)
	f := openDevice(t, r.path)
	defer f.Close()
	block := pattern(4096, 9)
	if _, err := f.WriteAt(block, 0); err != nil { // the kernel now doubts the size that it knows
		t.Fatal(err)
	}
	m.size.Store(after)
	n, err := r.export.Resize(soon(t))
	if err != nil || n != after {
		t.Fatalf("Resize: %d, %v", n, err)
	}
	if s := run(t, "blockdev", "--getsize64", r.path); s != strconv.Itoa(after) {
		t.Errorf("the kernel sees %s bytes", s)
	}
	if _, err := f.WriteAt(block, after-4096); err != nil || !bytes.Equal(m.bytes[after-4096:after], block) {
		t.Errorf("write into the new part: %v", err)
	}
}

func TestBackendError(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	f := openDevice(t, r.path)
	defer f.Close()
	block := pattern(4096, 2)
	for _, c := range []struct{ given, want error }{
		{errors.New("checksum of both copies is wrong"), unix.EIO},
		{unix.ENOSPC, unix.ENOSPC},
		{unix.ENOSYS, unix.EIO},
	} {
		m.failWith(c.given)
		if _, err := f.WriteAt(block, 0); !errors.Is(err, c.want) {
			t.Errorf("write while the backend says %v: %v", c.given, err)
		}
		if _, err := f.ReadAt(block, 0); err == nil {
			t.Errorf("read while the backend says %v succeeded", c.given)
		}
		// Twice: FUSE takes ENOSYS for "never ask again", and every later flush would succeed unasked.
		for range 2 {
			if err := f.Sync(); !errors.Is(err, unix.EIO) {
				t.Errorf("flush while the backend says %v: %v", c.given, err)
			}
		}
	}
	m.failWith(nil)
	if _, err := f.WriteAt(block, 0); err != nil {
		t.Errorf("after the errors: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("after the errors: %v", err)
	}
}

// Requests run side by side: as many as are sent, whatever each waits for.
func TestConcurrent(t *testing.T) {
	const writers, blocks = 32, 64
	m := newMemory(t, writers*blocks*4096, writers*blocks*4096)
	r := newRig(t, m, 4096)
	f := openDevice(t, r.path)
	defer f.Close()
	release := m.hold()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() { hammer(t, f, int64(w*blocks), blocks) })
	}
	eventually(t, "all writers are in the backend", func() bool { return r.server.Stats().Inflight == writers })
	release()
	all.Wait()
	eventually(t, "nothing is in flight", func() bool { return r.server.Stats().Inflight == 0 })
	if s := r.server.Stats(); s.Failed != 0 {
		t.Errorf("%+v", s)
	}
}

// hammer writes blocks of its own in random order and reads each back.
func hammer(t *testing.T, f *os.File, first, n int64) {
	for _, i := range rand.Perm(int(n)) {
		off := (first + int64(i)) * 4096
		want, got := pattern(4096, byte(off>>12)), aligned(4096)
		if _, err := f.WriteAt(want, off); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read at %d: differs, %v", off, err)
			return
		}
	}
}

func TestCloseInUse(t *testing.T) {
	m := newMemory(t, 64<<20, 64<<20)
	r := newRig(t, m, 4096)
	run(t, "mkfs.ext4", "-q", "-F", r.path)
	dir := t.TempDir()
	run(t, "mount", r.path, dir)
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	if err := r.export.Close(soon(t)); !errors.Is(err, ErrInUse) || !errors.Is(err, unix.EBUSY) {
		t.Errorf("close while mounted: %v", err)
	}
	writeSynced(t, dir+"/still", []byte("works"))
	run(t, "umount", dir)

	f := openDevice(t, r.path)
	if err := r.export.Close(soon(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("close while open: %v", err)
	}
	f.Close()
	// The refused close must not have left the device to vanish with its last user.
	if !Alive(soon(t), r.path) {
		t.Error("the device went away after a close that was refused")
	}
}

func TestCloseWritesBack(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	want := pattern(1<<20, 5)
	if err := os.WriteFile(r.path, want, 0); err != nil {
		t.Fatal(err)
	}
	if err := r.export.Close(soon(t)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.bytes[:1<<20], want) {
		t.Error("what lay in the page cache was lost")
	}
	if err := r.export.Close(soon(t)); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if _, err := r.export.Attach(soon(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("attach after close: %v", err)
	}
}

func TestAttach(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	r := &rig{t: t, export: create(t, 4096)}
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.export.Attach(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a server: %v", err)
	}
	if err := r.export.Close(soon(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("close while an attach waits: %v", err)
	}
	r.serve(newMemory(t, 8<<20, 8<<20), ServeOptions{})
	r.attach()
	again, err := r.export.Attach(soon(t))
	if err != nil || again != r.path || r.export.Path() != r.path {
		t.Errorf("again: %q, %v", again, err)
	}
	r.close()
}

func TestAttachRefusesSize(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	r := &rig{t: t, export: create(t, 4096)}
	r.serve(newMemory(t, 4096+512, 1<<20), ServeOptions{})
	if _, err := r.export.Attach(soon(t)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("attach of half a block: %v", err)
	}
	r.close()
}

// Abandon ends an attach that waits for a server which never comes.
func TestAbandon(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	e := create(t, 4096)
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.Attach(short); err == nil {
		t.Error("attached without a server")
	}
	e.Abandon()
	eventually(t, "the attach ends", func() bool {
		x := e.(*fuseExport)
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.attaching == nil
	})
}

// Several devices at once ask for free loop devices at the same time.
func TestManyDevices(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	const devices = 16
	rigs := make([]*rig, devices)
	var all sync.WaitGroup
	for i := range rigs {
		r := &rig{t: t, export: create(t, 4096)}
		r.serve(newMemory(t, 1<<20, 1<<20), ServeOptions{})
		t.Cleanup(r.close)
		rigs[i] = r
		all.Go(func() {
			if _, err := r.export.Attach(soon(t)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	paths := map[string]bool{}
	for _, r := range rigs {
		paths[r.export.Path()] = true
	}
	if len(paths) != devices {
		t.Errorf("%d devices at %v", devices, paths)
	}
}
