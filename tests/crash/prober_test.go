package crash

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// prober is a guest that writes a block, waits until it is durable, and reads another back, over and over, past the page cache. It
// remembers how long each operation took: the longest around an event is the pause that the guest sees.
type prober struct {
	seed uint64

	mu     sync.Mutex
	slow   []operationTime // those that are worth remembering, oldest first
	begun  time.Time       // of the operation that runs now
	done   int64
	ended  bool
	failed error
	stop   chan struct{}
	over   chan struct{}
}

// operationTime is when an operation of the guest began and ended.
type operationTime struct{ begun, ended time.Time }

const (
	probedBlocks = 256
	// slowAfter: what is faster is no pause of anybody.
	slowAfter = 500 * time.Microsecond
)

// probe begins to write and read a file of the volume.
func (s *subject) probe() *prober { return s.probeFile("probed", unix.O_DSYNC) }

func (s *subject) probeFile(name string, flags int) *prober {
	p := &prober{seed: s.random.Uint64(), stop: make(chan struct{}), over: make(chan struct{})}
	go func() {
		err := p.run(filepath.Join(s.Target, name), flags)
		p.mu.Lock()
		p.ended, p.failed = true, err
		p.mu.Unlock()
		close(p.over)
	}()
	return p
}

func (p *prober) run(path string, flags int) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_DIRECT|flags, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(page) }()
	random, written := rand.New(rand.NewPCG(p.seed, 3)), [probedBlocks]uint64{}
	for n := uint64(1); !closed(p.stop); n++ {
		at := random.IntN(probedBlocks)
		content(page, p.seed, n, uint64(at))
		if err := p.timed(func() error { _, err := f.WriteAt(page, int64(at)*blockSize); return err }); err != nil {
			return fmt.Errorf("write of block %d: %w", at, err)
		}
		written[at] = n
		if at = random.IntN(probedBlocks); written[at] == 0 {
			continue
		}
		if err := p.timed(func() error { _, err := f.ReadAt(page, int64(at)*blockSize); return err }); err != nil {
			return fmt.Errorf("read of block %d: %w", at, err)
		}
		if err := p.compare(page, written[at], at); err != nil {
			return err
		}
	}
	return p.all(f, page, written[:])
}

// all reads back everything that was written.
func (p *prober) all(f *os.File, page []byte, written []uint64) error {
	for at, n := range written {
		if n == 0 {
			continue
		}
		if _, err := f.ReadAt(page, int64(at)*blockSize); err != nil {
			return fmt.Errorf("read of block %d: %w", at, err)
		}
		if err := p.compare(page, n, at); err != nil {
			return err
		}
	}
	return f.Close()
}

func (p *prober) compare(page []byte, n uint64, at int) error {
	want := make([]byte, blockSize)
	content(want, p.seed, n, uint64(at))
	if !bytes.Equal(page, want) {
		return fmt.Errorf("block %d holds write %d, and not write %d, which was the last that was synced", at, binary.LittleEndian.Uint64(page), n)
	}
	return nil
}

func (p *prober) timed(operation func() error) error {
	begun := time.Now()
	p.mu.Lock()
	p.begun = begun
	p.mu.Unlock()
	err := operation()
	ended := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done++; ended.Sub(begun) >= slowAfter {
		p.slow = append(p.slow, operationTime{begun, ended})
	}
	return err
}

// count is how many operations have ended.
func (p *prober) count() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// longest is the longest operation that ran at any moment between two, and when it began, once all that began before the second have ended. It forgets
// what ended before the first.
func (p *prober) longest(ctx context.Context, from, to time.Time) (begun time.Time, took time.Duration, err error) {
	for {
		most, settled, err := p.look(from, to)
		if settled || err != nil {
			return most.begun, most.ended.Sub(most.begun), err
		}
		select {
		case <-p.over:
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return begun, 0, fmt.Errorf("an operation has not ended: %w", context.Cause(ctx))
		}
	}
}

func (p *prober) look(from, to time.Time) (most operationTime, settled bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return most, false, errors.Join(errors.New("the prober has ended"), p.failed)
	}
	if p.begun.Before(to) {
		return most, false, nil
	}
	for len(p.slow) > 0 && p.slow[0].ended.Before(from) {
		p.slow = p.slow[1:]
	}
	for _, o := range p.slow {
		if o.begun.Before(to) && o.ended.Sub(o.begun) > most.ended.Sub(most.begun) {
			most = o
		}
	}
	return most, true, nil
}

// finish ends the prober; it has read back everything that it wrote.
func (p *prober) finish() (operations int64, err error) {
	close(p.stop)
	<-p.over
	return p.done, p.failed
}
