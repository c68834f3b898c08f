package mount

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts real filesystems")
	}
}

func newMounter(t *testing.T) *Mounter {
	t.Helper()
	return New(Config{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})), Owned: func(int) bool { return false }})
}

// sh runs a command that must succeed and returns what it printed.
func sh(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// loop returns a loop device of that many MiB on a sparse file. Whatever is mounted from it is taken away at the end.
func loop(t *testing.T, mib int64) string {
	t.Helper()
	root(t)
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(mib<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	return attachLoop(t, file)
}

func attachLoop(t *testing.T, file string) string {
	t.Helper()
	device := sh(t, "losetup", "-f", "--show", file)
	t.Cleanup(func() {
		m := New(Config{Log: slog.New(slog.DiscardHandler)})
		for range 20 {
			left, _ := m.Of(device)
			if len(left) == 0 {
				break
			}
			for _, e := range slices.Backward(left) {
				_ = unix.Unmount(e.Path, 0)
			}
		}
		sh(t, "losetup", "-d", device)
	})
	return device
}

func size(fsType string) int64 { return map[string]int64{"ext4": 64, "xfs": 320, "btrfs": 256}[fsType] }

func eachFS(t *testing.T, test func(t *testing.T, m *Mounter, fsType, device string)) {
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) { test(t, newMounter(t), fsType, loop(t, size(fsType))) })
	}
}

func mounted(t *testing.T, m *Mounter, fsType, device string, options ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mnt dir") // a blank: the kernel escapes it
	must(t, os.MkdirAll(path, 0o755))
	must(t, m.Mount(t.Context(), device, path, fsType, options))
	t.Cleanup(func() { // before the directory is removed: t.TempDir's cleanup must not reach into a mount
		m.drop(path)
		for unix.Unmount(path, 0) == nil {
		}
	})
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFormatMountUnmount(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		ctx := t.Context()
		if s, err := m.Signature(ctx, device); err != nil || !s.Empty() {
			t.Fatalf("signature of a blank device: %v, %v", s, err)
		}
		must(t, m.Format(ctx, fsType, device, false))
		if s, err := m.Signature(ctx, device); err != nil || s.FSType != fsType {
			t.Fatalf("signature after format: %v, %v", s, err)
		}
		path := mounted(t, m, fsType, device, "noatime")
		e, ok, err := m.At(path)
		if err != nil || !ok || e.FSType != fsType || !e.Shows(device) || e.ReadOnly() || !slices.Contains(e.Options, "noatime") {
			t.Fatalf("at: %+v, %t, %v", e, ok, err)
		}
		must(t, os.WriteFile(filepath.Join(path, "f"), []byte("kept"), 0o644))
		must(t, m.Sync(ctx, path))
		if u, err := m.Usage(path); err != nil || u.Total < size(fsType)<<20/2 || u.Available <= 0 {
			t.Errorf("usage: %+v, %v", u, err)
		}
		if faults, err := m.Faults(path, true); err != nil || faults != nil {
			t.Errorf("faults: %v, %v", faults, err)
		}
		must(t, m.Unmount(ctx, path))
		must(t, m.Unmount(ctx, path)) // again
		must(t, m.Closed(ctx, fsType, device))
		if r, err := m.Check(ctx, fsType, device, nil); err != nil || !r.Clean {
			t.Errorf("check: %+v, %v", r, err)
		}
		if held, err := m.Held(ctx, device); err != nil || len(held) != 0 {
			t.Errorf("held after unmount: %v, %v", held, err)
		}
		path = mounted(t, m, fsType, device, "ro")
		if e, _, _ := m.At(path); !e.ReadOnly() {
			t.Errorf("mounted ro, listed %+v", e)
		}
		if b, err := os.ReadFile(filepath.Join(path, "f")); err != nil || string(b) != "kept" {
			t.Errorf("read back %q, %v", b, err)
		}
	})
}

func TestFormatRefusesWhatIsThere(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		before := sh(t, "blkid", "-p", "-s", "UUID", "-o", "value", device)
		for _, other := range Filesystems {
			if err := m.Format(t.Context(), other, device, false); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), fsType) {
				t.Errorf("format %s over %s: %v", other, fsType, err)
			}
		}
		if after := sh(t, "blkid", "-p", "-s", "UUID", "-o", "value", device); after != before {
			t.Error("the filesystem was replaced")
		}
		must(t, m.Format(t.Context(), fsType, device, true))
		if after := sh(t, "blkid", "-p", "-s", "UUID", "-o", "value", device); after == before {
			t.Error("format again did nothing")
		}
	})
}

func TestFormatRefusesDataWithoutSignature(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	for _, off := range []int64{8192, 64<<20 - 512} {
		f, err := os.OpenFile(device, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt([]byte("precious"), off)
		must(t, errors.Join(err, f.Sync(), f.Close()))
		if err := m.Format(t.Context(), "ext4", device, false); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("data at %d: %v", off, err)
		}
		must(t, zero(device))
	}
	sh(t, "mkswap", device)
	if s, err := m.Signature(t.Context(), device); err != nil || !strings.Contains(s.Other, "swap") {
		t.Errorf("swap: %v, %v", s, err)
	}
	if err := m.Format(t.Context(), "ntfs", device, false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("ntfs: %v", err)
	}
}

// An unreadable device must not look empty.
func TestSignatureOfADeadDevice(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	file := sh(t, "losetup", "-n", "-O", "BACK-FILE", device)
	must(t, os.Truncate(file, 4096)) // what is behind the device vanishes; the device still has 64 MiB
	if s, err := m.Signature(t.Context(), device); err == nil {
		t.Errorf("signature of a device that cannot be read: %v", s)
	}
}

func TestUnmountNamesWhoUsesIt(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		path := mounted(t, m, fsType, device)
		tail := holdOpen(t, filepath.Join(path, "log"))
		err := m.Unmount(t.Context(), path)
		busy, ok := errors.AsType[*BusyError](err)
		if !ok || !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
			t.Fatalf("unmount with an open file: %v", err)
		}
		if !slices.ContainsFunc(busy.Holders, func(h Holder) bool { return h.PID == tail && h.Command == "sleep" }) {
			t.Errorf("process %d not named: %v", tail, err)
		}
		must(t, m.Sync(t.Context(), path)) // the kept descriptor is back
		held, err := m.Held(t.Context(), device)
		must(t, err)
		for _, kind := range []Kind{HeldByMount, HeldByFilesystem, HeldByProcess} {
			if !slices.ContainsFunc(held, func(h Holder) bool { return h.Kind == kind }) {
				t.Errorf("no holder of kind %s in %v", kind, held)
			}
		}
	})
}

// holdOpen starts a process that has the file open and returns its number.
func holdOpen(t *testing.T, path string) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer f.Close()
	cmd := exec.Command("sleep", "300")
	cmd.Stdin = f
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	return cmd.Process.Pid
}

func TestHeldByProcessOnTheDevice(t *testing.T) {
	m, device := newMounter(t), loop(t, 16)
	if held, err := m.Held(t.Context(), device); err != nil || len(held) != 0 {
		t.Fatalf("free device: %v, %v", held, err)
	}
	pid := holdOpen(t, device)
	held, err := m.Held(t.Context(), device)
	if err != nil || len(held) != 1 || held[0].PID != pid || held[0].Kind != HeldByProcess {
		t.Errorf("held: %v, %v", held, err)
	}
	mine := New(Config{Log: slog.New(slog.DiscardHandler), Owned: func(p int) bool { return p == pid }})
	if held, err := mine.Held(t.Context(), device); err != nil || len(held) != 0 {
		t.Errorf("the storage's own process counts: %v, %v", held, err)
	}
}

func TestHeldByBindOfTheNode(t *testing.T) {
	m, device := newMounter(t), loop(t, 16)
	target := filepath.Join(t.TempDir(), "block")
	must(t, os.WriteFile(target, nil, 0o600))
	must(t, m.BindDevice(t.Context(), device, target))
	t.Cleanup(func() { _ = unix.Unmount(target, 0) })
	if !IsBlock(target) || !Same(target, device) {
		t.Error("the target is not the device")
	}
	held, err := m.Held(t.Context(), device)
	if err != nil || len(held) == 0 || held[0].Name != target {
		t.Errorf("held: %v, %v", held, err)
	}
	must(t, m.Unmount(t.Context(), target))
	if held, err := m.Held(t.Context(), device); err != nil || len(held) != 0 {
		t.Errorf("held after unmount: %v, %v", held, err)
	}
}

// A mount that only another mount namespace sees keeps the superblock: umount here succeeds, and the device is held.
func TestHeldInAnotherNamespace(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		path := mounted(t, m, fsType, device)
		other := exec.Command("unshare", "--mount", "--propagation", "private", "sleep", "300")
		must(t, other.Start())
		t.Cleanup(func() { _ = other.Process.Kill(); _, _ = other.Process.Wait() })
		eventually(t, func() bool { return command(other.Process.Pid) == "sleep" })
		must(t, m.Unmount(t.Context(), path))
		held, err := m.Held(t.Context(), device)
		must(t, err)
		if !slices.ContainsFunc(held, func(h Holder) bool { return h.Kind == HeldByMount && h.PID == other.Process.Pid && h.Name == path }) {
			t.Errorf("the other namespace is not named: %v", held)
		}
		must(t, other.Process.Kill())
		_, _ = other.Process.Wait()
		eventually(t, func() bool { held, err := m.Held(t.Context(), device); return err == nil && len(held) == 0 })
	})
}

// A lazy unmount by somebody else hides the mount; the kernel's own lists and the memory maps still know.
func TestHeldAfterSomebodysLazyUnmount(t *testing.T) {
	eachFS(t, func(t *testing.T, m *Mounter, fsType, device string) {
		must(t, m.Format(t.Context(), fsType, device, false))
		path := mounted(t, m, fsType, device)
		pid := holdOpen(t, filepath.Join(path, "f"))
		m.drop(path)
		must(t, unix.Unmount(path, unix.MNT_DETACH))
		held, err := m.Held(t.Context(), device)
		if err != nil || !slices.ContainsFunc(held, func(h Holder) bool { return h.Kind == HeldByFilesystem }) {
			t.Errorf("held: %v, %v", held, err)
		}
		if fsType != "btrfs" && !slices.ContainsFunc(held, func(h Holder) bool { return h.PID == pid }) {
			t.Errorf("process %d not named: %v", pid, held)
		}
	})
}

func TestHeldByDeviceAbove(t *testing.T) {
	m, device := newMounter(t), loop(t, 16)
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	must(t, err)
	held, err := m.Held(t.Context(), device)
	if err != nil || len(held) != 1 || held[0].Kind != HeldByClaim {
		t.Errorf("held: %v, %v", held, err)
	}
	must(t, unix.Close(fd))
}

// A loop device on the device is in none of the kernel's lists of holders.
func TestHeldByLoopAbove(t *testing.T) {
	m, device := newMounter(t), loop(t, 16)
	above := sh(t, "losetup", "-f", "--show", device)
	held, err := m.Held(t.Context(), device)
	if err != nil || !slices.Contains(held, Holder{Kind: HeldByDevice, Name: above}) {
		t.Errorf("held: %v, %v", held, err)
	}
	sh(t, "losetup", "-d", above) // once: afterwards its number may be somebody else's
	if held, err := m.Held(t.Context(), device); err != nil || len(held) != 0 {
		t.Errorf("held after it is gone: %v, %v", held, err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 10 s")
		}
	}
}

func TestBindReadOnly(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	target := filepath.Join(t.TempDir(), "target")
	must(t, os.Mkdir(target, 0o755))
	must(t, m.Bind(t.Context(), path, target, []string{"ro", "noexec", "data=ordered"}))
	t.Cleanup(func() { _ = unix.Unmount(target, 0) })
	e, _, err := m.At(target)
	if err != nil || !e.ReadOnly() || !slices.Contains(e.Options, "noexec") || !e.Shows(device) {
		t.Errorf("bind: %+v, %v", e, err)
	}
	if err := os.WriteFile(filepath.Join(target, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a read-only bind: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(path, "f"), nil, 0o644))
	if err := m.Bind(t.Context(), path, target, nil); !errors.Is(err, ErrBusy) {
		t.Errorf("bind on an occupied target: %v", err)
	}
	err = m.Unmount(t.Context(), path)
	must(t, err) // the bind keeps the filesystem, not the mount
	if held, _ := m.Held(t.Context(), device); len(held) == 0 {
		t.Error("a bind mount is left, and the device counts as free")
	}
}

func TestFreeze(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	must(t, m.Freeze(t.Context(), path))
	thawed := make(chan error, 1)
	go func() { thawed <- os.WriteFile(filepath.Join(path, "f"), []byte("x"), 0o644) }()
	select {
	case err := <-thawed:
		t.Errorf("wrote to a frozen filesystem: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	// A caller that gives up leaves the work running, and the next one joins it.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Sync(ctx, filepath.Join(path, "..", "nowhere")); err == nil {
		t.Error("sync where nothing is mounted succeeded")
	}
	must(t, m.Thaw(t.Context(), path))
	must(t, <-thawed)
	if err := m.Thaw(t.Context(), path); !errors.Is(err, unix.EINVAL) {
		t.Errorf("thaw of what is not frozen: %v", err)
	}
}

func TestGrow(t *testing.T) {
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) {
			m, device := newMounter(t), loop(t, size(fsType))
			must(t, m.Format(t.Context(), fsType, device, false))
			path := mounted(t, m, fsType, device)
			before, err := m.Usage(path)
			must(t, err)
			must(t, m.Grow(t.Context(), device, path)) // nothing to grow: no error
			must(t, os.Truncate(sh(t, "losetup", "-n", "-O", "BACK-FILE", device), 2*size(fsType)<<20))
			sh(t, "losetup", "-c", device)
			err = m.Grow(t.Context(), device, path)
			if fsType == "ext4" && !mayResizeExt4(t) {
				if err == nil || !strings.Contains(err.Error(), "Permission denied") {
					t.Errorf("ext4 without CAP_SYS_RESOURCE: %v", err)
				}
				return
			}
			must(t, err)
			after, err := m.Usage(path)
			if err != nil || after.Total < before.Total*3/2 {
				t.Errorf("from %d to %d, %v", before.Total, after.Total, err)
			}
		})
	}
}

// mayResizeExt4 says whether this process has CAP_SYS_RESOURCE, which the kernel wants for growing a mounted ext4.
func mayResizeExt4(t *testing.T) bool {
	t.Helper()
	h, d := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	must(t, unix.Capget(&h, &d[0]))
	return d[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestSetReadOnly(t *testing.T) {
	m, device := newMounter(t), loop(t, 16)
	must(t, m.SetReadOnly(device, true))
	if ro, err := m.ReadOnly(device); err != nil || !ro {
		t.Errorf("read-only: %t, %v", ro, err)
	}
	if f, err := os.OpenFile(device, os.O_RDWR, 0); err == nil {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("wrote to a read-only device")
		}
		_ = f.Close()
	}
	must(t, m.SetReadOnly(device, false))
	if n, err := m.DeviceSize(device); err != nil || n != 16<<20 {
		t.Errorf("size %d, %v", n, err)
	}
}

func BenchmarkHeld(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	file := filepath.Join(b.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<24)); err != nil {
		b.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).Output()
	if err != nil {
		b.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	defer func() { _ = exec.Command("losetup", "-d", device).Run() }()
	m := New(Config{Log: slog.New(slog.DiscardHandler)})
	for b.Loop() {
		if held, err := m.Held(b.Context(), device); err != nil || len(held) > 0 {
			b.Fatal(held, err)
		}
	}
}
