// Package mount formats, mounts, freezes and unmounts filesystems on Linux, and proves that nothing holds a device.
//
// It never unmounts lazily or by force, never repairs a filesystem beyond the journal replay that the kernel does at
// mount (a mark of errors, where a check finds none, is taken away), and never formats a device on which anything is found unless told that an earlier format was cut off.
package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	k8smount "k8s.io/mount-utils"
)

// Errors of this package.
var (
	// ErrBusy: refused; something uses the mount. *BusyError names it.
	ErrBusy = errors.New("in use")
	// ErrNotEmpty: refused; the device carries a filesystem or data.
	ErrNotEmpty = errors.New("not empty")
	// ErrUnsupported: refused; no such filesystem here.
	ErrUnsupported = errors.New("filesystem not supported")
	// ErrDamaged: the filesystem has found errors, has shut itself down, or was not closed cleanly.
	ErrDamaged = errors.New("filesystem damaged")
)

// Filesystems that can be made, checked and grown, the default first.
var Filesystems = []string{"ext4", "xfs", "btrfs"}

// Config is what a Mounter needs.
type Config struct {
	Log *slog.Logger // required
	// Owned says that a process belongs to the storage itself (an engine, its host): its open descriptors of a device
	// do not count as holding it. nil: the processes that run this very executable.
	Owned func(pid int) bool
}

// Mounter does the work. Its methods may run concurrently. Those that take a context and may wait for the device
// stop waiting when it ends, and not the work: the same call again joins it.
type Mounter struct {
	log   *slog.Logger
	owned func(pid int) bool
	sys   k8smount.Interface
	jobs  joiner

	mu   sync.Mutex
	kept map[string]*os.File // by mount point: opened right after the mount, so that syncfs reports every write-back error
}

// New returns a Mounter.
func New(c Config) *Mounter {
	if c.Owned == nil {
		c.Owned = sameExecutable()
	}
	// Without systemd: a scope of its own would add nothing, since no filesystem here has a daemon of its own.
	return &Mounter{log: c.Log, owned: c.Owned, sys: k8smount.NewWithoutSystemd(""), kept: map[string]*os.File{}}
}

// Mount mounts the filesystem of device on the directory path and keeps a descriptor of it for Sync. The kernel
// replays the journal. Options are those of mount(8). Nothing may be mounted on path.
func (m *Mounter) Mount(ctx context.Context, device, path, fsType string, options []string) error {
	if !slices.Contains(Filesystems, fsType) {
		return fmt.Errorf("mount %s on %s: %q: %w; known are %s", device, path, fsType, ErrUnsupported, strings.Join(Filesystems, ", "))
	}
	return m.jobs.do(ctx, fmt.Sprint("mount ", device, options, " on"), path, func() error {
		if err := m.unoccupied(path); err != nil {
			return err
		}
		if err := m.sys.Mount(device, path, fsType, options); err != nil {
			return fmt.Errorf("mount %s (%s) on %s: %w", device, fsType, path, err)
		}
		m.log.Debug("mounted", "device", device, "path", path, "fsType", fsType, "options", options)
		return m.keep(path)
	})
}

// Bind shows the directory source at the directory target too. Options are those of one mount point (ro, noexec,
// noatime, …); others are left out, since they belong to the filesystem.
func (m *Mounter) Bind(ctx context.Context, source, target string, options []string) error {
	return m.bind(ctx, source, target, append([]string{"bind"}, perMount(options)...))
}

// BindDevice shows the block device at the file target. A read-only bind does not keep anybody from writing to a
// device: see SetReadOnly.
func (m *Mounter) BindDevice(ctx context.Context, device, target string) error {
	return m.bind(ctx, device, target, []string{"bind"})
}

func (m *Mounter) bind(ctx context.Context, source, target string, options []string) error {
	return m.jobs.do(ctx, fmt.Sprint("mount ", source, options, " on"), target, func() error {
		if err := m.unoccupied(target); err != nil {
			return err
		}
		if err := m.sys.Mount(source, target, "", options); err != nil {
			return m.undoBind(source, target, err)
		}
		return nil
	})
}

// undoBind takes away what a bind left behind that failed at its second step, the options: a read-only target must not
// stay writable.
func (m *Mounter) undoBind(source, target string, cause error) error {
	if _, mounted, err := m.At(target); err == nil && mounted {
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			cause = fmt.Errorf("%w; and taking it away again: %w", cause, err)
		}
	}
	return fmt.Errorf("bind mount %s on %s: %w", source, target, cause)
}

func (m *Mounter) unoccupied(path string) error {
	e, mounted, err := m.At(path)
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("mount on %s: %w: %s (%s) is mounted there", path, ErrBusy, e.Source, e.FSType)
	}
	return nil
}

// Unmount takes the topmost mount off path; none is no error. *BusyError where something uses it. It waits until the
// kernel has written what it must, and never falls back to a lazy or forced unmount.
func (m *Mounter) Unmount(ctx context.Context, path string) error {
	return m.jobs.do(ctx, "unmount", path, func() error { return m.unmount(path) })
}

func (m *Mounter) unmount(path string) error {
	e, mounted, err := m.At(path)
	if err != nil || !mounted {
		return err
	}
	kept := m.drop(path)
	switch err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); {
	case err == nil:
		m.log.Debug("unmounted", "path", path, "source", e.Source)
		return nil
	case errors.Is(err, unix.EBUSY):
		busy := &BusyError{Path: path, Holders: m.usersOf(e)}
		if kept {
			return errors.Join(busy, m.keep(path))
		}
		return busy
	default:
		return fmt.Errorf("unmount %s (%s): %w", path, e.Source, err)
	}
}

// BusyError says what keeps a mount or a device from being released. It wraps ErrBusy and EBUSY.
type BusyError struct {
	Path    string // mount point or device
	Holders []Holder
}

func (e *BusyError) Error() string {
	if len(e.Holders) == 0 {
		return e.Path + " is in use, by whom could not be seen from here"
	}
	const most = 8
	names := make([]string, 0, most+1)
	for _, h := range e.Holders[:min(most, len(e.Holders))] {
		names = append(names, h.String())
	}
	if more := len(e.Holders) - most; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return e.Path + " is in use by " + strings.Join(names, ", ")
}

// Unwrap makes errors.Is work with ErrBusy and EBUSY.
func (e *BusyError) Unwrap() []error { return []error{ErrBusy, unix.EBUSY} }

// perMount are the options that a bind mount can have of its own.
func perMount(options []string) []string {
	known := []string{"ro", "rw", "noexec", "exec", "nosuid", "suid", "nodev", "dev", "noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "nosymfollow"}
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool { return !slices.Contains(known, o) })
}

// sameExecutable says that a process runs the same file as this one.
func sameExecutable() func(pid int) bool {
	mine, err := os.Stat("/proc/self/exe")
	if err != nil {
		return func(int) bool { return false }
	}
	return func(pid int) bool {
		theirs, err := os.Stat(filepath.Join(procPath(pid), "exe"))
		return err == nil && os.SameFile(mine, theirs)
	}
}
