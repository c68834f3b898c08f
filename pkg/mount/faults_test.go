package mount

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// failing returns a formatted loop device of a file system that has no room left: what is written to a new place fails
// with an I/O error, as on a disk that died for writing.
func failing(t *testing.T, m *Mounter, fsType string) string {
	t.Helper()
	root(t)
	dir := t.TempDir()
	must(t, unix.Mount("small", dir, "tmpfs", 0, "size=128m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	file := filepath.Join(dir, "disk")
	f, err := os.Create(file)
	must(t, errors.Join(err, f.Truncate(size(fsType)<<20), f.Close()))
	device := attachLoop(t, file)
	must(t, m.Format(t.Context(), fsType, device, false))
	return device
}

// fill takes the room behind the device away.
func fill(t *testing.T, device string) {
	t.Helper()
	file := filepath.Join(filepath.Dir(sh(t, "losetup", "-n", "-O", "BACK-FILE", device)), "filler")
	f, err := os.Create(file)
	must(t, err)
	defer f.Close()
	for chunk := make([]byte, 1<<20); err == nil; _, err = f.Write(chunk) {
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func entry(device, staging, fsType string) detach.Entry {
	return detach.Entry{
		Attachment: volume.Attachment{Volume: "data", Node: "node-a", Epoch: 1}, Staging: staging, Access: detach.Mount, FSType: fsType,
		Device: device, Phase: detach.Unstaging,
	}
}

// A write-back that failed is told by Sync, though the write itself and, on some file systems, the unmount succeed.
func TestSyncTellsOfFailedWriteBack(t *testing.T) {
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) {
			m := newMounter(t)
			device := failing(t, m, fsType)
			path := mounted(t, m, fsType, device)
			fill(t, device)
			must(t, os.WriteFile(filepath.Join(path, "f"), bytes.Repeat([]byte("x"), 16<<20), 0o644))
			if err := m.Sync(t.Context(), path); err == nil {
				t.Error("sync succeeded though nothing could be written")
			}
		})
	}
}

func TestReleaseTellsOnceAndGoesOn(t *testing.T) {
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) {
			m := newMounter(t)
			device := failing(t, m, fsType)
			path := mounted(t, m, fsType, device)
			fill(t, device)
			must(t, os.WriteFile(filepath.Join(path, "f"), bytes.Repeat([]byte("x"), 16<<20), 0o644))
			e := entry(device, path, fsType)
			err := NewReleaser(m).Release(t.Context(), e, detach.DeviceAlive)
			if !errors.Is(err, detach.ErrWriteback) {
				t.Fatalf("release: %v", err)
			}
			e.Unflushed = err.Error()
			err = NewReleaser(m).Release(t.Context(), e, detach.DeviceAlive)
			if errors.Is(err, engine.ErrDeviceLost) { // the flush of the device fails as well
				err = NewReleaser(m).Release(t.Context(), e, detach.DeviceLost)
			}
			must(t, err)
			if held, err := m.Held(t.Context(), device); err != nil || len(held) > 0 {
				t.Errorf("held after release: %v, %v", held, err)
			}
		})
	}
}

func TestRelease(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		ctx := t.Context()
		must(t, m.Format(ctx, fsType, device, false))
		path := mounted(t, m, fsType, device)
		e := entry(device, path, fsType)
		r := NewReleaser(m)
		target := filepath.Join(t.TempDir(), "target")
		must(t, os.Mkdir(target, 0o755))
		must(t, m.Bind(ctx, path, target, nil))
		t.Cleanup(func() { _ = unix.Unmount(target, 0) })
		stays := func(word string) {
			t.Helper()
			if err := r.Release(ctx, e, detach.DeviceAlive); !errors.Is(err, detach.ErrHeld) || !strings.Contains(err.Error(), word) {
				t.Errorf("release while held by %s: %v", word, err)
			}
			if _, still, err := m.At(path); err != nil || !still {
				t.Errorf("a refused release unmounted: %v", err)
			}
		}
		stays(target) // not in the journal
		e.Targets = []detach.Target{{Path: target}}
		stays(target)
		must(t, m.Unmount(ctx, target))
		pid := holdOpen(t, filepath.Join(path, "f"))
		stays("sleep")
		if held := r.Holders(ctx, e); !slices.ContainsFunc(held, func(s string) bool { return strings.Contains(s, "sleep") }) {
			t.Errorf("holders: %v", held)
		}
		must(t, unix.Kill(pid, unix.SIGKILL))
		eventually(t, func() bool {
			held, _ := m.Held(ctx, device)
			return !slices.ContainsFunc(held, func(h Holder) bool { return h.PID == pid })
		})
		for range 2 {
			must(t, r.Release(ctx, e, detach.DeviceAlive))
		}
		if held := r.Holders(ctx, e); len(held) > 0 {
			t.Errorf("holders after release: %v", held)
		}
	})
}

func TestReleaseOfADeadDevice(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		path := mounted(t, m, fsType, device)
		must(t, os.WriteFile(filepath.Join(path, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o644))
		must(t, os.Truncate(sh(t, "losetup", "-n", "-O", "BACK-FILE", device), 0))
		must(t, NewReleaser(m).Release(t.Context(), entry(device, path, fsType), detach.DeviceLost))
		if _, still, err := m.At(path); err != nil || still {
			t.Errorf("still mounted: %v", err)
		}
	})
}

// After a reboot the number of the device belongs to somebody else.
func TestReleaseWithoutDeviceLeavesOthersAlone(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	e := entry(device, filepath.Join(t.TempDir(), "gone"), "ext4")
	must(t, NewReleaser(m).Release(t.Context(), e, detach.DeviceNone))
	if _, still, err := m.At(path); err != nil || !still {
		t.Errorf("another volume was unmounted: %v", err)
	}
}

func TestReleaseLeavesForeignMountsAlone(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	path := t.TempDir()
	must(t, unix.Mount("foreign", path, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(path, 0) })
	if err := NewReleaser(m).Release(t.Context(), entry(device, path, "ext4"), detach.DeviceAlive); !errors.Is(err, detach.ErrHeld) || !strings.Contains(err.Error(), "foreign") {
		t.Errorf("release: %v", err)
	}
	if _, still, err := m.At(path); err != nil || !still {
		t.Errorf("unmounted: %v", err)
	}
}

func TestClosedAndFaults(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		path := mounted(t, m, fsType, device)
		must(t, os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o644))
		f, err := os.Open(filepath.Join(path, "f"))
		must(t, errors.Join(err, f.Sync(), f.Close()))
		if err := m.Closed(t.Context(), fsType, device); !errors.Is(err, ErrDamaged) {
			t.Errorf("closed while mounted and written to: %v", err)
		}
		if fsType != "btrfs" {
			shutDown(t, path)
			if faults, err := m.Faults(path, true); err != nil || len(faults) == 0 {
				t.Errorf("faults after a shutdown: %v, %v", faults, err)
			}
			if err := m.Sync(t.Context(), path); err == nil {
				t.Error("sync of a shut-down filesystem succeeded")
			}
			must(t, m.Unmount(t.Context(), path)) // and says nothing
			if err := m.Closed(t.Context(), fsType, device); !errors.Is(err, ErrDamaged) {
				t.Errorf("closed after a shutdown: %v", err)
			}
			must(t, m.Mount(t.Context(), device, path, fsType, nil)) // replays
		}
		must(t, m.Unmount(t.Context(), path))
		must(t, m.Closed(t.Context(), fsType, device))
		if r, err := m.Check(t.Context(), fsType, device, nil); err != nil || !r.Clean {
			t.Errorf("check: %+v, %v", r, err)
		}
	})
}

// shutDown stops the filesystem as a fatal error would, without flushing its log.
func shutDown(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	const goingDown, withoutLog = 0x8004587D, 2 // XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), goingDown, withoutLog))
}

func TestFaultsOfExt4(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	must(t, os.WriteFile("/sys/fs/ext4/"+filepath.Base(device)+"/trigger_fs_error", []byte("a test"), 0o200))
	faults, err := m.Faults(path, true)
	if err != nil || !slices.ContainsFunc(faults, func(s string) bool { return strings.Contains(s, "ext4 has found 1 errors") }) ||
		!slices.ContainsFunc(faults, func(s string) bool { return strings.Contains(s, "read-only") || strings.Contains(s, "emergency_ro") }) {
		t.Errorf("faults: %v, %v", faults, err)
	}
	must(t, m.Unmount(t.Context(), path))
	if err := m.Closed(t.Context(), "ext4", device); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "errors") {
		t.Errorf("closed: %v", err)
	}
}

func TestCheckReportsAndChangesNothing(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	must(t, os.WriteFile(filepath.Join(path, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o644))
	must(t, m.Unmount(t.Context(), path))
	sh(t, "debugfs", "-w", "-R", "clri f", device)
	before := sh(t, "md5sum", device)
	r, err := m.Check(t.Context(), "ext4", device, nil)
	if err != nil || r.Clean || r.Output == "" {
		t.Errorf("check: %+v, %v", r, err)
	}
	if after := sh(t, "md5sum", device); after != before {
		t.Error("the check changed the device")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Check(ctx, "ext4", device, nil); err == nil {
		t.Error("a check that could not run reports")
	}
	if _, err := m.Check(t.Context(), "ext4", filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a check of nothing reports")
	}
}

// Waiting for the kernel ends with the context, the work does not: who asks again joins it, and what comes after it on the
// same path waits for it.
func TestWaitingEndsWithTheContext(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	must(t, os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o644))
	must(t, m.Freeze(t.Context(), path))
	release, waiting := make(chan struct{}), make(chan struct{})
	stuck := func() error { close(waiting); <-release; return unix.EIO }
	first := make(chan error, 1)
	go func() { first <- m.jobs.do(context.Background(), "sync", path, stuck) }()
	<-waiting
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.Sync(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("sync: %v", err)
	}
	if err := m.Unmount(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("unmount overtook a sync: %v", err)
	}
	must(t, m.Thaw(t.Context(), path)) // does not wait in line
	close(release)
	if err := <-first; !errors.Is(err, unix.EIO) {
		t.Errorf("the first: %v", err)
	}
	eventually(t, func() bool { _, still, err := m.At(path); return err == nil && !still })
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a`: "/a", `/a\040b`: "/a b", `\134040`: `\040`, `/x\011\012y`: "/x\t\ny", `\04`: `\04`, `\`: `\`, `\999`: `\999`} {
		if got := unescape(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestSuperblockFaults(t *testing.T) {
	ext4 := func(state uint16, incompat, errors uint32) []byte {
		sb := make([]byte, superSize)
		binary.LittleEndian.PutUint16(sb[0x38:], 0xEF53)
		binary.LittleEndian.PutUint16(sb[0x3A:], state)
		binary.LittleEndian.PutUint32(sb[0x60:], incompat)
		binary.LittleEndian.PutUint32(sb[0x194:], errors)
		return sb
	}
	btrfs := func(flags, log uint64) []byte {
		sb := make([]byte, superSize)
		copy(sb[0x40:], "_BHRfS_M")
		binary.LittleEndian.PutUint64(sb[0x38:], flags)
		binary.LittleEndian.PutUint64(sb[0x60:], log)
		return sb
	}
	for name, c := range map[string]struct{ got, want string }{
		"ext4 clean":    {ext4Fault(ext4(1, 0, 0)), ""},
		"ext4 journal":  {ext4Fault(ext4(1, 4, 0)), "journal"},
		"ext4 state":    {ext4Fault(ext4(0, 0, 0)), "not marked clean"},
		"ext4 errors":   {ext4Fault(ext4(1, 0, 3)), "3 errors"},
		"ext4 flag":     {ext4Fault(ext4(3, 0, 0)), "errors"},
		"ext4 nothing":  {ext4Fault(make([]byte, superSize)), "no ext4"},
		"ext4 short":    {ext4Fault(nil), "short"},
		"btrfs clean":   {btrfsFault(btrfs(1, 0)), ""},
		"btrfs log":     {btrfsFault(btrfs(1, 4096)), "log tree"},
		"btrfs errors":  {btrfsFault(btrfs(1<<2, 0)), "errors"},
		"btrfs nothing": {btrfsFault(make([]byte, superSize)), "no btrfs"},
		"btrfs short":   {btrfsFault(make([]byte, 100)), "short"},
		"btrfs counts":  {strings.Join(btrfsErrors("write_errs 2\nread_errs 0\nflush_errs 1\n"), ", "), "2 write_errs, btrfs counts 1 flush_errs"},
	} {
		if c.want == "" && c.got != "" || !strings.Contains(c.got, c.want) {
			t.Errorf("%s: got %q, want %q", name, c.got, c.want)
		}
	}
}
