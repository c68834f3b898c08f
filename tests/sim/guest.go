package sim

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

const (
	sectorBytes  = 512
	blockBytes   = 4096
	blockSectors = blockBytes / sectorBytes
)

// blockDevice is what the guest uses. A call returns when it is answered.
type blockDevice interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Zero(off, n int64) error
	Flush() error
}

// guest writes and reads a device and knows, from what it was told and nothing else, what each sector may hold. Its truth lives as
// long as the volume; devices come and go.
type guest struct {
	w *world

	mu     sync.Mutex // guards the rest; held for memory only
	blocks map[int64]*truth
	recent map[int64]*truth // those with writes that the newest flush does not cover
	next   uint64           // value that no sector was written with yet

	proven  map[int64]bool   // blocks that nobody has written since a receipt: their checksums are on the disks, whoever dies
	rotten  map[int64]bool   // blocks of which some disk has rotted
	givenUp map[int64]bool   // of these, what an operator has let go
	flushes uint64           // begun
	settled map[int64]uint64 // by block: the flush, of those that have ended, that began last
}

// truth is what the guest knows of a block.
type truth [blockSectors]sector

// sector is what the guest knows of a sector.
type sector struct {
	// now are the values that a read may return: one, unless the device died or a write failed.
	now []uint64
	// stable are the values that the newest flush may have made stable.
	stable []uint64
	// since are the writes that the newest flush does not cover, answered or not.
	since []*guestWrite
	// split: a write failed half-way, so that copies may differ until the next one.
	split bool
}

type guestWrite struct {
	value    uint64
	answered bool
}

func newGuest(w *world) *guest {
	return &guest{w: w, blocks: map[int64]*truth{}, recent: map[int64]*truth{}, settled: map[int64]uint64{}, rotten: map[int64]bool{}, proven: map[int64]bool{}}
}

func (g *guest) block(i int64) *truth {
	b := g.blocks[i]
	if b == nil {
		b = &truth{}
		for k := range b {
			b[k] = sector{now: []uint64{0}, stable: []uint64{0}}
		}
		g.blocks[i] = b
	}
	return b
}

// workload is the guest's program on one device: some streams that each have blocks of their own.
type workload struct {
	g      *guest
	device blockDevice
	size   int64 // blocks
	stop   chan struct{}
	wg     sync.WaitGroup

	mu     sync.Mutex
	failed error // of the device
}

// run starts the streams.
func (g *guest) run(device blockDevice, size int64, streams int) *workload {
	l := &workload{g: g, device: device, size: size, stop: make(chan struct{})}
	for i := range streams {
		r := g.w.dice.stream(fmt.Sprintf("guest %d", i))
		l.wg.Go(func() { l.stream(r, int64(i), int64(streams)) })
	}
	return l
}

// end stops the streams and returns once every request is answered, with the error of the device if it had one.
func (l *workload) end() error {
	close(l.stop)
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

func (l *workload) stream(r *rand.Rand, mine, of int64) {
	for {
		select {
		case <-l.stop:
			return
		case <-time.After(l.pause(r)):
		}
		if err := l.step(r, mine, of); err != nil {
			l.mu.Lock()
			l.failed = err
			l.mu.Unlock()
			return
		}
	}
}

// pause is how long a stream does nothing: what is not written for a while is verified in the background.
func (l *workload) pause(r *rand.Rand) time.Duration {
	if l.g.w.plan.rests && r.IntN(40) == 0 {
		return between(r, time.Second, 20*time.Second)
	}
	return between(r, 10*time.Microsecond, l.g.w.plan.think)
}

// choose returns a block of the stream: mostly one of a few.
func (l *workload) choose(r *rand.Rand, mine, of int64) int64 {
	i := r.Int64N(5) * 257
	if r.IntN(8) == 0 {
		i = r.Int64N(l.size)
	}
	i -= i % of
	return min(i+mine, l.size-of+mine)
}

func (l *workload) step(r *rand.Rand, mine, of int64) error {
	i := l.choose(r, mine, of)
	switch n := r.IntN(20); {
	case n < 3:
		return l.flush()
	case n < 4:
		return l.change(i, 0, blockSectors, 0, func() error { return l.device.Zero(i*blockBytes, blockBytes) })
	case n < 9:
		return l.read(i)
	case n < 13 && l.g.w.plan.sectors:
		from := r.IntN(blockSectors)
		return l.write(r, i, from, from+1+r.IntN(blockSectors-from))
	}
	return l.write(r, i, 0, blockSectors)
}

func (l *workload) write(r *rand.Rand, i int64, from, to int) error {
	l.g.mu.Lock()
	l.g.next++
	value := l.g.next
	if s := l.g.block(i)[from]; r.IntN(8) == 0 { // what was there before: its old checksum may match
		value = s.stable[0]
	}
	l.g.mu.Unlock()
	p := vfs.AlignedBuffer((to - from) * sectorBytes)
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], value)
	}
	return l.change(i, from, to, value, func() error { return l.device.WriteAt(p, i*blockBytes+int64(from)*sectorBytes) })
}

// change makes sectors of a block hold a value.
func (l *workload) change(i int64, from, to int, value uint64, do func() error) error {
	g, this := l.g, &guestWrite{value: value}
	g.mu.Lock()
	g.recent[i] = g.block(i)
	delete(g.proven, i)
	for k := from; k < to; k++ {
		s := &g.block(i)[k]
		s.since = append(s.since, this)
	}
	g.mu.Unlock()
	err := do()
	l.g.w.trace.add(func() string {
		return fmt.Sprintf("guest: block %d, sectors %d to %d become %d: %v", i, from, to, value, err)
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w.operations++
	for k := from; k < to; k++ {
		s := &g.block(i)[k]
		if err == nil {
			s.now, s.split, this.answered = []uint64{value}, false, true
		} else {
			s.now, s.split = append(slices.Clone(s.now), value), true
		}
	}
	return g.w.forgiven(err)
}

func (l *workload) read(i int64) error {
	p := vfs.AlignedBuffer(blockBytes)
	err := l.device.ReadAt(p, i*blockBytes)
	if err != nil {
		return l.g.w.forgiven(err)
	}
	l.g.check(i, p)
	return nil
}

// check compares what was read with what may be there.
func (g *guest) check(i int64, p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.w.operations++
	if g.givenUp[i] {
		return
	}
	b := g.block(i)
	for k := range b {
		got, whole := sectorValue(p[k*sectorBytes : (k+1)*sectorBytes])
		s := &b[k]
		if !whole || !slices.Contains(s.now, got) {
			g.w.fail("block %d, sector %d holds %d (whole: %t); it may hold %v; stable is %v", i, k, got, whole, s.now, s.stable)
		}
		if !s.split {
			s.now = []uint64{got}
		}
	}
}

// sectorValue is what a sector was written with; whole is false where it is torn.
func sectorValue(p []byte) (value uint64, whole bool) {
	value = binary.LittleEndian.Uint64(p)
	for at := 8; at < len(p); at += 8 {
		if binary.LittleEndian.Uint64(p[at:]) != value {
			return value, false
		}
	}
	return value, true
}

// flush makes stable what was answered before it.
func (l *workload) flush() error {
	covered := l.g.answered()
	err := l.device.Flush()
	l.g.w.trace.add(func() string { return fmt.Sprintf("guest: flush: %v", err) })
	l.g.w.operations++
	if err == nil {
		l.g.settle(covered)
	}
	return l.g.w.forgiven(err)
}

// covered is what a flush that begins now makes stable.
type covered struct {
	flush  uint64
	now    map[int64][blockSectors][]uint64
	before map[*guestWrite]bool
}

func (g *guest) answered() covered {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flushes++
	c := covered{g.flushes, map[int64][blockSectors][]uint64{}, map[*guestWrite]bool{}}
	for i, b := range g.recent {
		var now [blockSectors][]uint64
		for k, s := range b {
			now[k] = s.now
			for _, w := range s.since {
				if w.answered {
					c.before[w] = true
				}
			}
		}
		c.now[i] = now
	}
	return c
}

// settle makes stable what is covered.
func (g *guest) settle(c covered) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, now := range c.now {
		if g.settled[i] > c.flush {
			continue // one that began later has ended before
		}
		g.settled[i] = c.flush
		b, left := g.blocks[i], 0
		for k := range b {
			b[k].stable = now[k]
			b[k].since = slices.DeleteFunc(b[k].since, func(w *guestWrite) bool { return c.before[w] })
			left += len(b[k].since)
		}
		if left == 0 {
			delete(g.recent, i)
		}
	}
}

// detached: the volume was detached in good order, which is a flush of everything.
func (g *guest) detached() { g.settle(g.answered()) }

// lost: the device is gone, and what was not stable may be.
func (g *guest) lost() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.blocks {
		for k := range b {
			s := &b[k]
			s.now = slices.Clone(s.stable)
			for _, w := range s.since {
				if !slices.Contains(s.now, w.value) {
					s.now = append(s.now, w.value)
				}
			}
			s.split = false
		}
	}
}

// attached: a cold attach has made whatever is there stable; nothing is known of it before it is read.
func (g *guest) attached() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, b := range g.blocks {
		for k := range b {
			b[k].stable, b[k].since, b[k].split = b[k].now, nil, false
		}
	}
	clear(g.recent)
}

// readAll reads every block that was ever touched, and some others.
func (g *guest) readAll(d blockDevice, size int64) error {
	g.mu.Lock()
	touched := slices.Sorted(maps.Keys(g.blocks))
	g.mu.Unlock()
	for i := int64(0); i < size; i += 511 {
		touched = append(touched, i)
	}
	p := vfs.AlignedBuffer(blockBytes)
	for _, i := range touched {
		if err := d.ReadAt(p, i*blockBytes); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		g.check(i, p)
	}
	return nil
}
