package device

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	backingPrefix = "belay:"
	// backingMax is what the kernel keeps of a loop device's name: LO_NAME_SIZE less the terminating zero.
	backingMax = unix.LO_NAME_SIZE - 1

	// bindTries is how often a free loop device is asked for: others may take it between the question and the use.
	bindTries = 100

	// letGo is how long a device may be held by those who open every new device for a moment, like udev.
	letGo     = time.Second
	pollEvery = 5 * time.Millisecond
)

// backingName is what a loop device of the volume is called in its status. Names that do not fit end in their hash.
func backingName(volume string) string {
	name := backingPrefix + volume
	if len(name) <= backingMax {
		return name // also where volume came out of this function, cut
	}
	sum := sha256.Sum256([]byte(volume))
	tail := "~" + hex.EncodeToString(sum[:6])
	return name[:backingMax-len(tail)] + tail
}

// bindLoop puts a free loop device on file.
func bindLoop(file int, c Config) (string, error) {
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open /dev/loop-control (is the module loop loaded?): %w: %w", ErrUnsupported, err)
	}
	defer unix.Close(control)
	for range bindTries {
		n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("find a free loop device: %w", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		if err = configureLoop(path, file, c); err == nil {
			return path, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return "", err
		}
	}
	return "", fmt.Errorf("others took every free loop device in %d tries: %w", bindTries, unix.EBUSY)
}

func configureLoop(path string, file int, c Config) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s (is /dev the host's?): %w", path, err)
	}
	defer unix.Close(fd)
	l := unix.LoopConfig{Fd: uint32(file), Size: uint32(c.BlockSize)}
	l.Info.Flags = unix.LO_FLAGS_DIRECT_IO
	copy(l.Info.File_name[:backingMax], backingName(c.Name))
	if err := unix.IoctlLoopConfigure(fd, &l); err != nil {
		return fmt.Errorf("configure %s: %w", path, err)
	}
	if err := directIO(fd); err != nil {
		_ = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0) // nobody knows of the device yet
		return fmt.Errorf("configure %s: %w", path, err)
	}
	return nil
}

// directIO makes sure of it, since the kernel falls back to its page cache without a word.
func directIO(fd int) error {
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return err
	}
	if info.Flags&unix.LO_FLAGS_DIRECT_IO == 0 {
		return fmt.Errorf("no direct I/O on the loop device: %w", ErrUnsupported)
	}
	return nil
}

// boundTo returns the name of what the open loop device is bound to; "" and no error where it is free.
func boundTo(fd int) (string, error) {
	info, err := unix.IoctlLoopGetStatus64(fd)
	if errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("loop status: %w", err)
	}
	name, _, _ := bytes.Cut(info.File_name[:], []byte{0})
	return string(name), nil
}

// openOwn opens the loop device at path, checks that it is the volume's, and returns -1 where it is free or missing.
// The error wraps ENXIO while the kernel is taking the device away. An empty volume stands for any of ours.
func openOwn(path, volume string, flags int) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return -1, nil
	}
	if errors.Is(err, unix.EBUSY) {
		return -1, fmt.Errorf("%s is mounted or claimed: %w", path, ErrInUse)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	name, err := boundTo(fd)
	if own := strings.HasPrefix(name, backingPrefix) && (volume == "" || name == backingName(volume)); err == nil && own {
		return fd, nil
	}
	unix.Close(fd)
	if err == nil && name != "" {
		err = fmt.Errorf("%s is bound to %q: %w", path, name, ErrForeign)
	}
	return -1, err
}

// ownedBy returns an error unless path is a loop device of the volume.
func ownedBy(path, volume string) error {
	fd, err := openOwn(path, volume, unix.O_RDONLY)
	if err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("%s is not bound: %w", path, unix.ENXIO)
	}
	return unix.Close(fd)
}

// unbindLoop takes the loop device away and returns when it is gone. With ErrInUse it is as it was before.
//
// The kernel's LOOP_CLR_FD succeeds while others have the device open and then takes it away behind the last of them, so
// the exclusive open comes first, which mounts exclude, and the automatic clearing is taken back where somebody stays.
func unbindLoop(ctx context.Context, path, volume string) error {
	fd, err := openOwn(path, volume, unix.O_RDWR|unix.O_EXCL)
	switch {
	case err == nil && fd < 0:
		return nil
	case err == nil:
		err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
		unix.Close(fd) // writes back what the page cache holds
	}
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("clear %s: %w", path, err)
	}
	if gone, err := waitGone(ctx, path, volume, letGo); gone || err != nil {
		return err
	}
	return keepLoop(path, volume)
}

// waitGone polls for up to d until the loop device is not the volume's any more.
func waitGone(ctx context.Context, path, volume string, d time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		fd, err := openOwn(path, volume, unix.O_RDONLY)
		switch {
		case errors.Is(err, ErrForeign) || err == nil && fd < 0:
			return true, nil
		case err == nil:
			unix.Close(fd)
		case !errors.Is(err, unix.ENXIO):
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(pollEvery):
		}
	}
}

// keepLoop takes the automatic clearing back. Where the device went away meanwhile that is no error.
func keepLoop(path, volume string) error {
	fd, err := openOwn(path, volume, unix.O_RDONLY)
	if fd < 0 || err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return fmt.Errorf("loop status: %w", err)
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(fd, info); err != nil {
		return fmt.Errorf("keep %s: %w", path, err)
	}
	return fmt.Errorf("somebody has %s open: %w", path, ErrInUse)
}

// refreshCapacity has the loop device take the file's size, which the kernel asks the server for.
func refreshCapacity(path, volume string) (int64, error) {
	fd, err := openOwn(path, volume, unix.O_RDWR) // reads the status, which has the size refreshed on kernels before 6.16
	if err != nil {
		return 0, err
	}
	if fd < 0 {
		return 0, fmt.Errorf("%s is not bound: %w", path, unix.ENXIO)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return 0, fmt.Errorf("set capacity of %s: %w", path, err)
	}
	return deviceSize(fd)
}

// deviceSize returns the size in bytes of an open block device.
func deviceSize(fd int) (int64, error) {
	var n uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n))); e != 0 {
		return 0, fmt.Errorf("size of block device: %w", e)
	}
	return int64(n), nil
}
