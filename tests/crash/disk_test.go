package crash

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is an ext4 of its own for one store, on a loop device, so that it can be full, read-only, or gone.
type disk struct {
	t     *testing.T
	image string
	loop  string
	path  string // where it is mounted
	store string // the directory that is the store
}

// newDisk makes and mounts one. Call it before newMachine, so that it is taken away after it.
func newDisk(t *testing.T, size int64) *disk {
	t.Helper()
	needsRoot(t)
	dir := t.TempDir()
	d := &disk{t: t, image: filepath.Join(dir, "image"), path: filepath.Join(dir, "mnt")}
	d.store = filepath.Join(d.path, "store")
	d.must(os.WriteFile(d.image, nil, 0o600))
	d.must(os.Truncate(d.image, size))
	d.must(os.Mkdir(d.path, 0o700))
	d.run("mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	t.Cleanup(d.remove)
	d.mount()
	d.must(os.Mkdir(d.store, 0o700))
	return d
}

func (d *disk) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *disk) run(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (d *disk) mount() {
	d.t.Helper()
	d.loop = d.run("losetup", "--find", "--show", "--direct-io=on", d.image)
	d.run("mount", "-t", "ext4", d.loop, d.path)
}

func (d *disk) remount(how string) {
	d.t.Helper()
	d.run("mount", "-o", "remount,"+how, d.path)
}

// pull has every request to the disk fail from now on, as if its cable had been pulled.
func (d *disk) pull() {
	d.t.Helper()
	f, err := os.Open(d.path)
	d.must(err)
	defer f.Close()
	const shutdown, withoutFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	d.must(unix.IoctlSetPointerInt(int(f.Fd()), shutdown, withoutFlush))
}

// freeze has every write to the disk wait until thaw.
func (d *disk) freeze() (thaw func()) {
	d.t.Helper()
	const freeze, unfreeze = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW
	set := func(how uint) error {
		f, err := os.Open(d.path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.IoctlSetPointerInt(int(f.Fd()), how, 0)
	}
	d.must(set(freeze))
	frozen := true
	d.t.Cleanup(func() {
		if frozen {
			_ = set(unfreeze)
		}
	})
	return func() { d.t.Helper(); frozen = false; d.must(set(unfreeze)) }
}

// unplug unmounts it, as its owner does before mounting it again.
func (d *disk) unplug() error {
	if err := unix.Unmount(d.path, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.path, err)
	}
	d.run("losetup", "--detach", d.loop)
	d.loop = "" // somebody else may have that number at once
	return nil
}

// fillBut leaves that much free.
func (d *disk) fillBut(free int64) func() {
	d.t.Helper()
	all := d.fill()
	name := filepath.Join(d.path, "filler")
	info, err := os.Stat(name)
	d.must(err)
	d.must(os.Truncate(name, info.Size()-free))
	return all
}

// fill leaves no byte free; the returned function gives them back.
func (d *disk) fill() func() {
	d.t.Helper()
	name := filepath.Join(d.path, "filler")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_SYNC, 0o600)
	d.must(err)
	defer f.Close()
	for size := 1 << 20; size >= 1<<10; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			d.must(err)
		}
	}
	return func() { d.must(os.Remove(name)) }
}

func (d *disk) remove() {
	if d.loop == "" {
		return
	}
	_ = unix.Unmount(d.path, unix.MNT_DETACH)
	_ = exec.Command("losetup", "--detach", d.loop).Run()
}
