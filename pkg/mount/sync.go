package mount

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sync makes everything written to the filesystem at path durable, and fails where any write-back since the mount
// has failed. The kernel tells such an error once to each descriptor that was open when it happened; hence the one kept
// since the mount. After a restart of this process a new one is used, which learns of errors that nobody was told yet.
func (m *Mounter) Sync(ctx context.Context, path string) error {
	return m.jobs.do(ctx, "sync", path, func() error { return m.withRoot(path, "syncfs", unix.Syncfs) })
}

// Freeze makes the filesystem at path durable and consistent and stops all writing to it until Thaw. One that is frozen
// already is EBUSY.
func (m *Mounter) Freeze(ctx context.Context, path string) error {
	return m.jobs.do(ctx, "freeze", path, func() error {
		return m.withRoot(path, "freeze", func(fd int) error { return unix.IoctlSetInt(fd, fiFreeze, 0) })
	})
}

// Thaw ends Freeze. A filesystem that is not frozen is EINVAL.
func (m *Mounter) Thaw(ctx context.Context, path string) error {
	// Not in line behind others: a sync may be waiting for this.
	return m.jobs.do(ctx, "thaw", "frozen "+path, func() error {
		return m.withRoot(path, "thaw", func(fd int) error { return unix.IoctlSetInt(fd, fiThaw, 0) })
	})
}

// FIFREEZE and FITHAW of linux/fs.h.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// SyncDevice writes out what the page cache holds of the device and flushes it.
func (m *Mounter) SyncDevice(ctx context.Context, device string) error {
	return m.jobs.do(ctx, "sync", device, func() error {
		f, err := os.OpenFile(device, os.O_RDONLY, 0)
		if err != nil {
			return fmt.Errorf("sync device: %w", err)
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync device %s: %w", device, err)
		}
		return nil
	})
}

// withRoot runs do on the kept descriptor of the mount's root directory, or on a new one that is kept from then on.
func (m *Mounter) withRoot(path, what string, do func(fd int) error) error {
	f, err := m.root(path)
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	defer f.Close()
	if err := do(int(f.Fd())); err != nil {
		return fmt.Errorf("%s %s: %w", what, path, err)
	}
	return nil
}

// root returns a second descriptor of the same open file, so that an unmount meanwhile does not close it under the call.
func (m *Mounter) root(path string) (*os.File, error) {
	if f, err := m.duplicate(path); f != nil || err != nil {
		return f, err
	}
	if _, mounted, err := m.At(path); err != nil {
		return nil, err
	} else if !mounted {
		return nil, fmt.Errorf("nothing is mounted there: %w", unix.EINVAL)
	}
	if err := m.keep(path); err != nil {
		return nil, err
	}
	return m.duplicate(path)
}

// duplicate returns nil where no descriptor is kept.
func (m *Mounter) duplicate(path string) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.kept[path]
	if f == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the kept descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func (m *Mounter) keep(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.kept[path]; old != nil {
		_ = old.Close() // a directory: closing it cannot lose anything
	}
	m.kept[path] = f
	return nil
}

// drop says whether a descriptor was kept.
func (m *Mounter) drop(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.kept[path]
	delete(m.kept, path)
	if f != nil {
		_ = f.Close()
	}
	return f != nil
}
