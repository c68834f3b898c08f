package mount

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	k8smount "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"
)

// Usage is what a filesystem holds. Sizes are in bytes.
type Usage struct {
	Total, Used, Available          int64
	Inodes, InodesUsed, InodesAvail int64 // 0 where the filesystem has no limit, as btrfs
}

// Usage asks the filesystem at path.
func (m *Mounter) Usage(path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := int64(st.Bsize)
	return Usage{
		Total: int64(st.Blocks) * unit, Used: int64(st.Blocks-st.Bfree) * unit, Available: int64(st.Bavail) * unit,
		Inodes: int64(st.Files), InodesUsed: int64(st.Files - st.Ffree), InodesAvail: int64(st.Ffree),
	}, nil
}

// DeviceSize returns the size of a block device in bytes.
func (m *Mounter) DeviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, io.SeekEnd)
}

// Same says that both paths are the same block device.
func Same(a, b string) bool {
	da, erra := deviceOf(a)
	db, errb := deviceOf(b)
	return erra == nil && errb == nil && da == db
}

// IsBlock says that path is a block device.
func IsBlock(path string) bool {
	_, err := deviceOf(path)
	return err == nil
}

// Grow makes the filesystem of device, mounted read-write at path, fill the device.
func (m *Mounter) Grow(ctx context.Context, device, path string) error {
	return m.jobs.do(ctx, "grow", path, func() error {
		r := k8smount.NewResizeFs(utilexec.New())
		need, err := r.NeedResize(device, path)
		if err != nil || !need {
			return err
		}
		if _, err := r.Resize(device, path); err != nil {
			return fmt.Errorf("grow the filesystem at %s: %w", path, err)
		}
		return nil
	})
}

// SetReadOnly makes the kernel refuse, or take again, writes to the device from whoever opens it.
func (m *Mounter) SetReadOnly(device string, on bool) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
		return fmt.Errorf("set %s read-only to %t: %w", device, on, err)
	}
	return nil
}

// ReadOnly says whether the kernel refuses writes to the device.
func (m *Mounter) ReadOnly(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	v, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	return v != 0, err
}
