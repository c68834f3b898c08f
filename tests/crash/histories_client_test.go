package crash

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/tests/histories"
)

const (
	sectorSize = 512
	// windowSectors is the length of a window, two blocks: a range of sectors that clients meet in.
	windowSectors = 16
)

// guest uses the device as one of several clients, past the page cache, and records what it did and what it was answered.
type guest struct {
	id      int
	log     *histories.Log
	seed    uint64
	next    *atomic.Uint64 // numbers the writes of all guests
	windows []int64        // their first sectors
	random  *rand.Rand
	f       *os.File
	page    []byte // aligned
}

// errGone is the end of a device: an operation was answered with an error.
var errGone = errors.New("the device answers errors")

// open opens the device for the guest. close closes it.
func (g *guest) open(path string) (err error) {
	if g.f, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return err
	}
	g.page, err = unix.Mmap(-1, 0, windowSectors*sectorSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	return err
}

func (g *guest) close() { g.f.Close(); _ = unix.Munmap(g.page) }

// run does one thing after another until stop is closed, or returns errGone.
func (g *guest) run(stop <-chan struct{}) error {
	for !closed(stop) {
		if err := g.step(); err != nil {
			return err
		}
		time.Sleep(time.Duration(g.random.Int64N(int64(guestRests))))
	}
	return nil
}

// guestRests bounds the pause between two operations: histories are to be short enough to be judged.
const guestRests = 4 * time.Millisecond

func (g *guest) step() error {
	first, n := g.place()
	switch k := g.random.IntN(100); {
	case k < 38:
		return g.read(first, n)
	case k < 46:
		return g.flush()
	case k < 49:
		return g.zero(first, n)
	default:
		return g.write(first, n, k < 62)
	}
}

// place is a range of sectors within a window: half of the time of any length and offset, else one or two whole blocks.
func (g *guest) place() (first, n int64) {
	window := g.windows[g.random.IntN(len(g.windows))]
	if g.random.IntN(2) == 0 {
		const perBlock = blockSize / sectorSize
		return window + perBlock*g.random.Int64N(2), perBlock
	}
	n = 1 + g.random.Int64N(windowSectors)
	return window + g.random.Int64N(windowSectors-n+1), n
}

func (g *guest) write(first, n int64, durable bool) error {
	value, p := g.next.Add(1), g.page[:n*sectorSize]
	for i := range n {
		content(p[i*sectorSize:(i+1)*sectorSize], g.seed, value, uint64(first+i))
	}
	o := g.writing(first, n, histories.Value(value))
	o.Durable = durable
	flags := 0
	if durable {
		flags = unix.RWF_DSYNC
	}
	written, err := unix.Pwritev2(int(g.f.Fd()), [][]byte{p}, first*sectorSize, flags)
	return g.answered(o, err != nil || written != len(p), err)
}

func (g *guest) writing(first, n int64, value histories.Value) histories.Operation {
	values := make([]histories.Value, n)
	for i := range values {
		values[i] = value
	}
	return histories.Operation{Client: g.id, Kind: histories.Write, First: first, Values: values, Call: g.log.Now()}
}

// zero has the device zero the sectors, without data.
func (g *guest) zero(first, n int64) error {
	const blkZeroOut = 0x127f
	o, what := g.writing(first, n, histories.Zeros), [2]uint64{uint64(first * sectorSize), uint64(n * sectorSize)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, g.f.Fd(), blkZeroOut, uintptr(unsafe.Pointer(&what)))
	if errno != 0 {
		return g.answered(o, true, errno)
	}
	return g.answered(o, false, nil)
}

func (g *guest) flush() error {
	o := histories.Operation{Client: g.id, Kind: histories.Flush, Call: g.log.Now()}
	err := unix.Fdatasync(int(g.f.Fd()))
	return g.answered(o, err != nil, err)
}

func (g *guest) read(first, n int64) error {
	o, p := histories.Operation{Client: g.id, Kind: histories.Read, First: first, Call: g.log.Now()}, g.page[:n*sectorSize]
	got, err := g.f.ReadAt(p, first*sectorSize)
	o.Return = g.log.Now()
	if err != nil || got != len(p) {
		return fmt.Errorf("%w: read of %d sectors from %d on: %d bytes, %w", errGone, n, first, got, err)
	}
	for i := range n {
		value, err := g.recognize(p[i*sectorSize:(i+1)*sectorSize], first+i)
		if err != nil {
			return err
		}
		o.Values = append(o.Values, value)
	}
	g.log.Add(o)
	return nil
}

// recognize says which write the sector holds, whole and in its place.
func (g *guest) recognize(p []byte, sector int64) (histories.Value, error) {
	value, want := binary.LittleEndian.Uint64(p), make([]byte, sectorSize)
	if value != 0 {
		content(want, g.seed, value, uint64(sector))
	}
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("sector %d holds no write of ours; it begins with %x", sector, p[:16])
	}
	return histories.Value(value), nil
}

// answered records a write or a flush that has returned.
func (g *guest) answered(o histories.Operation, failed bool, err error) error {
	o.Return, o.Unanswered = g.log.Now(), failed
	g.log.Add(o)
	if failed {
		return fmt.Errorf("%w: %s of %d sectors from %d on: %w", errGone, o.Kind, len(o.Values), o.First, err)
	}
	return nil
}
