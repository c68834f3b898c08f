package crash

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// oracle writes to a filesystem and remembers what was synced: after a crash each block holds what was last synced or
// something written to it since, and each file is as it was last synced, or as it was changed since.
type oracle struct {
	buffered, direct *overwriter
	churn            *churner
	synced           atomic.Int64 // records that were acknowledged as durable
}

func newOracle(seed uint64) *oracle {
	o := &oracle{}
	o.buffered = newOverwriter("buffered", 0, seed, &o.synced)
	o.direct = newOverwriter("direct", unix.O_DIRECT|unix.O_DSYNC, seed+1, &o.synced)
	o.churn = &churner{random: rand.New(rand.NewPCG(seed+2, 2)), seed: seed + 2, files: map[string]*history{}, synced: &o.synced}
	return o
}

// run writes below dir until stop is closed or an error ends each of the writers; the errors are returned.
func (o *oracle) run(dir string, stop <-chan struct{}) error {
	var errs [3]error
	var all sync.WaitGroup
	for i, w := range []func(string) error{o.buffered.run(stop), o.direct.run(stop), o.churn.run(stop)} {
		all.Go(func() { errs[i] = w(dir) })
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// check reads everything and says what is not as it must be. What is there counts as synced from then on: it was read
// from the device, and a clean detach follows.
func (o *oracle) check(dir string) error {
	return errors.Join(o.buffered.check(dir), o.direct.check(dir), o.churn.check(dir))
}

// history is what a block or a file may hold: what was last synced, and everything since, by number. 0 is nothing.
type history struct {
	stable uint64
	since  []uint64
}

func (h *history) write(n uint64) { h.since = append(h.since, n) }

func (h *history) sync() {
	if len(h.since) > 0 {
		h.stable, h.since = h.since[len(h.since)-1], nil
	}
}

// settle takes what was found for what is there, and says whether that may be.
func (h *history) settle(found uint64) error {
	if found != h.stable && !slices.Contains(h.since, found) {
		return fmt.Errorf("holds write %d; write %d was synced, and since then came %v", found, h.stable, h.since)
	}
	h.stable, h.since = found, nil
	return nil
}

// content fills p with what write n puts at a place, so that it can be told from anything else.
func content(p []byte, seed, n, place uint64) {
	s := rand.NewPCG(seed^n<<20, place)
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], s.Uint64())
	}
	binary.LittleEndian.PutUint64(p, n)
}

// overwriter overwrites blocks of one file at random.
type overwriter struct {
	name   string
	flags  int
	seed   uint64
	random *rand.Rand
	next   uint64
	blocks []history
	synced *atomic.Int64
	buffer []byte
}

const (
	overwrittenBlocks = 1024
	runBlocksMax      = 16
)

func newOverwriter(name string, flags int, seed uint64, synced *atomic.Int64) *overwriter {
	w := &overwriter{name: name, flags: flags, seed: seed, random: rand.New(rand.NewPCG(seed, 1)), synced: synced}
	w.blocks = make([]history, overwrittenBlocks)
	w.buffer, _ = unix.Mmap(-1, 0, runBlocksMax*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned for O_DIRECT
	return w
}

func (w *overwriter) run(stop <-chan struct{}) func(dir string) error {
	return func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, w.name), os.O_CREATE|os.O_RDWR|w.flags, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		for !closed(stop) && err == nil {
			err = w.step(f)
		}
		return err
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// step writes some runs of blocks, and makes them durable.
func (w *overwriter) step(f *os.File) error {
	for range 1 + w.random.IntN(8) {
		first, n := w.random.IntN(len(w.blocks)-runBlocksMax), 1+w.random.IntN(runBlocksMax)
		for i := range n {
			w.next++
			w.blocks[first+i].write(w.next)
			content(w.buffer[i*blockSize:(i+1)*blockSize], w.seed, w.next, uint64(first+i))
		}
		if _, err := f.WriteAt(w.buffer[:n*blockSize], int64(first)*blockSize); err != nil {
			return err
		}
		if w.flags&unix.O_DSYNC != 0 {
			w.sync(first, n)
		}
	}
	if w.flags&unix.O_DSYNC != 0 {
		return nil
	}
	if err := w.flush(f); err != nil {
		return err
	}
	w.sync(0, len(w.blocks))
	return nil
}

func (w *overwriter) flush(f *os.File) error {
	if w.random.IntN(2) == 0 {
		return unix.Fdatasync(int(f.Fd()))
	}
	return f.Sync()
}

func (w *overwriter) sync(first, n int) {
	for i := range n {
		w.blocks[first+i].sync()
	}
	w.synced.Add(1)
}

func (w *overwriter) check(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, w.name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	p := make([]byte, blockSize)
	for i := range w.blocks {
		clear(p)
		if off := i * blockSize; off < len(have) {
			copy(p, have[off:])
		}
		if err := w.checkBlock(p, i); err != nil {
			errs = append(errs, fmt.Errorf("%s: block %d: %w", w.name, i, err))
		}
	}
	return few(errs)
}

func (w *overwriter) checkBlock(p []byte, i int) error {
	n := binary.LittleEndian.Uint64(p)
	want := make([]byte, blockSize)
	if n != 0 {
		content(want, w.seed, n, uint64(i))
	}
	if !bytes.Equal(p, want) {
		return fmt.Errorf("is no write of ours; it begins with %x", p[:16])
	}
	return w.blocks[i].settle(n)
}

// few keeps a report readable.
func few(errs []error) error {
	const most = 10
	if len(errs) > most {
		errs = append(errs[:most:most], fmt.Errorf("and %d more", len(errs)-most))
	}
	return errors.Join(errs...)
}

// churner makes, replaces and removes small files.
type churner struct {
	seed   uint64
	random *rand.Rand
	next   uint64
	files  map[string]*history // by name; write 0 is "not there"
	synced *atomic.Int64
}

const churnedFiles = 48

func (c *churner) run(stop <-chan struct{}) func(dir string) error {
	return func(dir string) error {
		dir = filepath.Join(dir, "churned")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		defer d.Close()
		witness, err := os.Create(filepath.Join(dir, "witness"))
		if err != nil {
			return err
		}
		defer witness.Close()
		for !closed(stop) && err == nil {
			err = c.step(dir, d, witness)
		}
		return err
	}
}

// step changes a file and syncs its directory, by which all changes of names so far are durable. The witness is synced after
// it: XFS that has shut down answers the sync of a directory with success, though it has thrown the changes away; that of a file
// it refuses.
func (c *churner) step(dir string, d, witness *os.File) error {
	name := fmt.Sprintf("%02d", c.random.IntN(churnedFiles))
	h := c.files[name]
	if h == nil {
		h = &history{}
		c.files[name] = h
	}
	if err := c.change(filepath.Join(dir, name), h); err != nil {
		return err
	}
	for _, f := range []*os.File{d, witness} {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	h.sync()
	c.synced.Add(1)
	return nil
}

func (c *churner) change(path string, h *history) error {
	if c.random.IntN(4) == 0 {
		h.write(0)
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	c.next++
	h.write(c.next)
	if err := writeFile(path+".new", c.text(c.next)); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// text is the content of the file of write n.
func (c *churner) text(n uint64) []byte {
	p := make([]byte, 8+n*7919%(48*kib)/8*8)
	content(p, c.seed, n, 0)
	return p
}

func writeFile(path string, p []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(p); err != nil {
		return err
	}
	return f.Sync()
}

func (c *churner) check(dir string) error {
	var errs []error
	for name, h := range c.files {
		if err := c.checkFile(filepath.Join(dir, "churned", name), h); err != nil {
			errs = append(errs, fmt.Errorf("file %s: %w", name, err))
		}
	}
	return few(errs)
}

func (c *churner) checkFile(path string, h *history) error {
	p, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return h.settle(0)
	}
	if err != nil {
		return err
	}
	if len(p) < 8 {
		return fmt.Errorf("has %d bytes, was never so short", len(p))
	}
	n := binary.LittleEndian.Uint64(p)
	if !bytes.Equal(p, c.text(n)) {
		return fmt.Errorf("says it is of write %d and differs from that (%d bytes)", n, len(p))
	}
	return h.settle(n)
}
