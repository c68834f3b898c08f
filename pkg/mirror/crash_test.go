package mirror

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// crashSeeds is how many random histories TestRandomHistories runs.
const crashSeeds = 60

// history is one random run against a model: for each block the value that is promised and those that may be there
// since.
type history struct {
	*lab
	rng    *rand.Rand
	mem    *vfs.Mem
	sick   atomic.Int32 // the store whose disk fails, -1: none
	s      *Session
	stable map[int64]sectors
	maybe  map[int64][]uint64
	next   uint64
	events []string
}

// sectors are the values of a block's sectors: a power cut may leave some of an unflushed write and not others.
type sectors [store.BlockSize / 512]uint64

func whole(v uint64) (out sectors) {
	for i := range out {
		out[i] = v
	}
	return out
}

func sectorsOf(p []byte) (out sectors) {
	for i := range out {
		out[i] = binary.LittleEndian.Uint64(p[i*512:])
	}
	return out
}

func (v sectors) bytes() []byte {
	p := vfs.AlignedBuffer(store.BlockSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v[i/512])
	}
	return p
}

const historyBlocks = 4 * store.RegionBlocks

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{rng: rand.New(rand.NewPCG(seed, 7)), mem: vfs.NewMem(), stable: map[int64]sectors{}, maybe: map[int64][]uint64{}}
	h.sick.Store(-1)
	h.lab = newLab(t, h.disk(), "/", 3, historyBlocks*store.BlockSize)
	return h
}

// disk is the present memory disk, on which calls to the sick store fail.
func (h *history) disk() vfs.FS {
	return vfs.Faulty(h.mem, func(op *vfs.Op) error {
		if n := h.sick.Load(); n >= 0 && strings.HasPrefix(op.Name, fmt.Sprintf("/s%d/", n)) && op.Kind.Alters() {
			return syscall.EIO
		}
		return nil
	})
}

func (h *history) note(format string, args ...any) {
	h.events = append(h.events, fmt.Sprintf(format, args...))
}

func (h *history) fatalf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("%s\nhistory:\n  %s", fmt.Sprintf(format, args...), strings.Join(h.events, "\n  "))
}

func (h *history) attach() {
	h.t.Helper()
	s, err := h.tryOpen(ForDevice)
	if err != nil {
		h.fatalf("attach: %v", err)
	}
	h.s = s
	h.check()
}

// check reads every block that was ever written: it must hold the promised value or one written since; whichever it is, it is
// the promised one from now on, for the attach has made it durable.
func (h *history) check() {
	h.t.Helper()
	p := vfs.AlignedBuffer(store.BlockSize)
	for b, allowed := range h.maybe {
		if err := h.s.ReadAt(p, b*store.BlockSize); err != nil {
			h.fatalf("block %d: %v", b, err)
		}
		got := sectorsOf(p)
		ok := bytes.Equal(p, got.bytes())
		for i, v := range got {
			ok = ok && (v == h.stable[b][i] || slices.Contains(allowed, v))
		}
		if !ok {
			h.fatalf("block %d holds %d; promised is %d, since then %v", b, got, h.stable[b], allowed)
		}
		h.stable[b], h.maybe[b] = got, nil
	}
}

func (h *history) write() {
	h.next++
	b := h.rng.Int64N(historyBlocks)
	if h.rng.IntN(4) > 0 { // most of the time the same few blocks
		b = h.rng.Int64N(16) * 77
	}
	v := h.next
	h.maybe[b] = append(h.maybe[b], v)
	h.note("write %d to block %d", v, b)
	if err := h.s.WriteAt(whole(v).bytes(), b*store.BlockSize); err != nil {
		h.fatalf("write: %v", err)
	}
}

func (h *history) zero() {
	b := h.rng.Int64N(16) * 77
	h.maybe[b] = append(h.maybe[b], 0)
	h.note("zero block %d", b)
	if err := h.s.Zero(b*store.BlockSize, store.BlockSize); err != nil {
		h.fatalf("zero: %v", err)
	}
}

func (h *history) flush() {
	h.note("flush")
	if err := h.s.Flush(); err != nil {
		h.fatalf("flush: %v", err)
	}
	for b, values := range h.maybe {
		if len(values) > 0 {
			h.stable[b], h.maybe[b] = whole(values[len(values)-1]), nil
		}
	}
}

// crash ends the session as a death of its process or a power cut would, and goes on with what is left.
func (h *history) crash(power bool) {
	h.note("crash, power %v", power)
	h.s.background.stop()
	old := h.s
	h.sick.Store(-1)
	if power {
		h.mem = h.mem.CrashClone(h.rng)
	} else {
		h.mem = h.mem.Restart()
	}
	old.Close()
	h.reopen()
}

func (h *history) reopen() {
	h.fs = h.disk()
	h.openDirs(3)
	h.attach()
}

func (h *history) seal() {
	h.note("detach")
	h.flush()
	b := h.detach(h.s)
	if len(b.Unresolved) > 0 {
		h.fatalf("unresolved: %+v", b.Unresolved)
	}
	if n := h.s.Config().Members.Len(); n < 2 {
		h.fatalf("sealed with %d members", n)
	}
	agreeing(h.t, b, h.s.Config().Members.Len())
	h.sick.Store(-1)
	h.openDirs(3)
	h.attach()
}

func (h *history) step() {
	switch n := h.rng.IntN(100); {
	case n < 60:
		h.write()
	case n < 68:
		h.zero()
	case n < 80:
		h.flush()
	case n < 84:
		h.check2()
	case n < 87:
		h.sicken()
	case n < 93:
		h.crash(n%2 == 0)
	case n < 96:
		h.note("bring back")
		h.sick.Store(-1)
		h.s.bringBack(h.s.background.ctx)
	case n < 98:
		h.note("verify quiet")
		h.s.verifyQuiet(h.s.background.ctx, 0)
	default:
		h.seal()
	}
}

// check2 reads one block through the live session: it must hold the newest value.
func (h *history) check2() {
	b := h.rng.Int64N(16) * 77
	want := h.stable[b]
	if v := h.maybe[b]; len(v) > 0 {
		want = whole(v[len(v)-1])
	}
	p := vfs.AlignedBuffer(store.BlockSize)
	if err := h.s.ReadAt(p, b*store.BlockSize); err != nil {
		h.fatalf("read: %v", err)
	}
	if !bytes.Equal(p, want.bytes()) {
		h.fatalf("block %d holds %d, want %d", b, sectorsOf(p), want)
	}
}

// sicken makes one store fail where all three are in sync, so that a majority is left.
func (h *history) sicken() {
	if h.s.Config().Members.Len() < 3 {
		return
	}
	n := int32(h.rng.IntN(3))
	h.note("store %d fails", n)
	h.sick.Store(n)
}

// TestRandomHistories: after any mixture of writes, flushes, store failures, process deaths and power cuts everything that was flushed
// is there (I1), nothing is there that was never written, and a detach finds the members equal (I8).
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(crashSeeds) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := newHistory(t, seed)
			h.attach()
			for range 150 {
				h.step()
			}
			h.seal()
			h.s.Close()
		})
	}
}

// TestFlushJoinsOnlyFlushes: a flush that comes while too many checksums wait for one is a flush nevertheless.
func TestFlushJoinsOnlyFlushes(t *testing.T) {
	const stride = store.EntriesPerPage * store.BlockSize // every write has its own page of entries
	const most = 64
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, (most+8)*stride)
	s := l.open(ForDevice)
	s.background.stop() // its flushes would be in the way
	s.pages.dirtyMax = most
	for i := range int64(most) {
		mustWrite(t, s, pattern(uint64(i), 4096), i*stride)
	}
	s.flushes.turn.Lock() // what comes now waits, and who comes later joins it
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.WriteAt(pattern(1, 4096), most*stride); err != nil {
			t.Error(err)
		}
	})
	for s.flushes.waiting() == nil {
		runtime.Gosched()
	}
	wg.Go(func() {
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(10 * time.Millisecond) // for the second to join; where it comes late the test proves less
	s.flushes.turn.Unlock()
	wg.Wait()
	l.fs = mem.CrashClone(nil) // everything is lost that was not synced
	l.openDirs(3)
	s = l.open(ForDevice)
	for i := range int64(most) {
		mustRead(t, s, pattern(uint64(i), 4096), i*stride)
	}
}

// waiting is the run that the next caller would join.
func (g *group) waiting() *flight {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.next
}

// TestUnavailableTouchesNothing: without a majority an attach is refused, and works again when the stores are back.
func TestUnavailableTouchesNothing(t *testing.T) {
	l := newLab(t, vfs.NewMem(), "/", 3, 16*volume.MiB)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, 8192), 4096)
	l.detach(s)
	all := l.dirs
	l.dirs = all[:1]
	if _, err := l.tryOpen(ForDevice); err == nil || !strings.Contains(err.Error(), "too few replicas") {
		t.Fatalf("attach with one of three stores: %v", err)
	}
	l.dirs = all
	s = l.open(ForDevice)
	mustRead(t, s, pattern(1, 8192), 4096)
}

// TestSecondWriterIsLockedOut: the kernel's locks keep a second session out while the first lives.
func TestSecondWriterIsLockedOut(t *testing.T) {
	l := newLab(t, vfs.OS(), t.TempDir(), 3, 16*volume.MiB)
	s := l.open(ForDevice)
	if _, err := l.tryOpen(ForDevice); err == nil || !strings.Contains(err.Error(), "held by") {
		t.Fatalf("second attach: %v", err)
	}
	s.Close()
	l.open(ForDevice)
}

// TestFencedWriterStops: a session whose replicas have promised a newer epoch behind its back cannot change anything that counts.
func TestFencedWriterStops(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, 16*volume.MiB)
	old := l.open(ForDevice)
	mustWrite(t, old, pattern(1, 4096), 0)
	if err := old.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, r := range old.view.Load().voters() { // as if the locks had not held
		if err := r.Promise(old.epoch + 5); err != nil {
			t.Fatal(err)
		}
	}
	if err := old.Stop(); !errors.Is(err, errFenced) {
		t.Fatalf("barrier of a fenced writer: %v", err)
	}
	if b, err := old.Evidence(t.Context(), nil); err == nil {
		t.Fatalf("evidence of a fenced writer: %+v", b)
	}
	if err := old.WriteAt(pattern(2, 4096), 0); err == nil {
		t.Error("a fenced writer may still write")
	}
}
