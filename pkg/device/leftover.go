package device

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

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

// Leftovers lists the loop devices of ours that the kernel has, those that serve well included: see [Alive]. It asks no
// server. Needs root.
func Leftovers() ([]Leftover, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var all []Leftover
	for _, p := range bound {
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

// Health is whether a device answers.
type Health string

// What a device does with a request.
const (
	Answers Health = "answers" // a server serves it
	Waits   Health = "waits"   // nobody answered in time, but a process has the channel and a server may come
	Dead    Health = "dead"    // every request fails: nobody has the channel any more
)

// Probe reads one block past the page cache and waits until ctx ends. A device whose backend fails that very read is
// taken for Dead. Where the device Waits, one thread of this process and an open file stay with it until it answers or
// dies; further probes join that one.
func Probe(ctx context.Context, path string) Health {
	p, running := probes.LoadOrStore(path, &probe{done: make(chan struct{})})
	pr := p.(*probe)
	if !running {
		go pr.run(path)
	}
	select {
	case <-pr.done:
		return pr.health
	case <-ctx.Done():
		return Waits
	}
}

// Alive says whether the device answers before ctx ends: see [Probe].
func Alive(ctx context.Context, path string) bool { return Probe(ctx, path) == Answers }

// probes has the probe that runs for each path. A read that no server answers cannot be interrupted, so without this
// every call would cost a thread.
var probes sync.Map

// probe is one read. health is set when done is closed.
type probe struct {
	done   chan struct{}
	health Health
}

func (p *probe) run(path string) {
	p.health = Dead
	if readBlock(path) == nil {
		p.health = Answers
	}
	probes.Delete(path)
	close(p.done)
}

func readBlock(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := unix.Pread(fd, aligned(blockSizeMax), 0)
	if err == nil && n == 0 {
		return unix.ENXIO // bound to nothing
	}
	return err
}

// Remove takes away a block device of ours whose server and holder are gone. ErrServed where it answers, or does not
// before ctx ends; ErrInUse where it is still mounted or open; ErrForeign where it is not ours. No device is no error.
func Remove(ctx context.Context, path string) error {
	fd, err := openOwn(path, "", unix.O_RDONLY)
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
	if err := unbindLoop(context.WithoutCancel(ctx), path, ""); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}

// deviceSize returns the size in bytes of an open block device.
func deviceSize(fd int) (int64, error) {
	var n uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n))); e != 0 {
		return 0, fmt.Errorf("size of block device: %w", e)
	}
	return int64(n), nil
}
