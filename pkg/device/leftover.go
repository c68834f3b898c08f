package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Leftover is a loop device of ours that is bound, whoever serves it.
type Leftover struct {
	Path string
	// Volume is the name it was created with. Names over 57 bytes are cut and end in '~' and a hash: compare with Of.
	Volume string
}

// Of says whether the device was created for the volume.
func (l Leftover) Of(volume string) bool { return backingPrefix+l.Volume == backingName(volume) }

// Remove is [Remove] for this volume's device only. Prefer it: a path is soon another device's.
func (l Leftover) Remove(ctx context.Context) error { return remove(ctx, l.Path, l.Volume) }

// Abort is [Abort] for this volume's device only. Prefer it: a path is soon another device's.
func (l Leftover) Abort() error { return abort(l.Path, l.Volume) }

// Leftovers lists the loop devices of ours that the kernel has, those that serve well included: see [Alive]. It asks no
// server. Needs root.
func Leftovers() ([]Leftover, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []Leftover
	for _, p := range bound {
		// Ours are on the root of a mount without a place. Others are not even asked: theirs may wait for a dead server.
		if file, err := os.ReadFile(p); err != nil || strings.TrimSpace(string(file)) != "/" {
			continue // an error: it went away meanwhile
		}
		path := "/dev/" + strings.Split(p, "/")[3]
		name, err := nameOf(path)
		if err != nil {
			return nil, err
		}
		if volume, ours := strings.CutPrefix(name, backingPrefix); ours {
			all = append(all, Leftover{Path: path, Volume: volume})
		}
	}
	return all, nil
}

// LeftoversOf lists those of the volume: see [Leftovers].
func LeftoversOf(volume string) ([]Leftover, error) {
	all, err := Leftovers()
	return slices.DeleteFunc(all, func(l Leftover) bool { return !l.Of(volume) }), err
}

// RemoveLeftovers is [Remove] for every block device of the volume. None is no error.
func RemoveLeftovers(ctx context.Context, volume string) error {
	all, err := LeftoversOf(volume)
	errs := []error{err}
	for _, l := range all {
		errs = append(errs, l.Remove(ctx))
	}
	return errors.Join(errs...)
}

// nameOf returns what the loop device is bound to, "" where it has gone meanwhile.
func nameOf(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) {
		return "", nil
	}
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	name, err := boundTo(fd)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return name, nil
}

// Remove takes away a block device of ours whose server and holder are gone. ErrServed where it answers, or does not
// before ctx ends; ErrInUse where it is still mounted or open; ErrForeign where it is not ours. No device is no error.
func Remove(ctx context.Context, path string) error { return remove(ctx, path, "") }

func remove(ctx context.Context, path, volume string) error {
	fd, err := openOwn(path, volume, unix.O_RDONLY)
	if fd < 0 && (err == nil || errors.Is(err, unix.ENXIO)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	unix.Close(fd)
	if h := Probe(ctx, path); h != Dead {
		return fmt.Errorf("remove %s: it %s: %w", path, h, ErrServed)
	}
	if err := unbindLoop(context.WithoutCancel(ctx), path, volume); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// Abort has every request to the device fail from now on, those that wait included, whoever has its channel: a server's
// Serve ends, and processes that hang in a request come back. The device stays, dead, until [Remove]. ErrForeign where it
// is not ours; no device is no error.
func Abort(path string) error { return abort(path, "") }

func abort(path, volume string) error {
	fd, err := openOwn(path, volume, unix.O_RDONLY)
	if fd < 0 && (err == nil || errors.Is(err, unix.ENXIO)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("abort: %w", err)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return fmt.Errorf("abort %s: loop status: %w", path, err)
	}
	// The connection is called after the minor number of the file system's device.
	if err := abortConnection(unix.Minor(info.Device)); err != nil {
		return fmt.Errorf("abort %s: %w", path, err)
	}
	return nil
}

// abortConnection uses the control file system through a mount of its own, so that none must exist.
func abortConnection(minor uint32) error {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fusectl: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat(root, fmt.Sprintf("%d/abort", minor), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // the connection has ended already
	}
	if err != nil {
		return fmt.Errorf("fusectl: connection %d: %w", minor, err)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("1"))
	return err
}
