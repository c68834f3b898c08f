package device

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"
)

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
// dies; further probes join that one. See [Export] on who should not do this to a device.
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
