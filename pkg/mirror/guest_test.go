package mirror

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// guest is a random run in which engines die and the guest lives: its device asks the next engine what the one before did not
// answer. What was acknowledged must be there, flushed or not (I3).
type guest struct {
	*lab
	rng    *rand.Rand
	s      *Session
	live   atomic.Pointer[Session] // s, for the disks
	engine *engineLife             // that has s
	noting sync.Mutex
	events []string
	copies int
	stores []engine.ReplicaID

	fuse atomic.Int64 // how many more changes of the disks the engine lives; below zero: for ever
	torn int          // sectors of the last one that reach the disk
	sick atomic.Int32 // the store that takes nothing, -1: none
	bad  atomic.Int32 // the store that will lose what it has not synced, and say so, at its next sync; -1: none
	lost sync.Map     // stores that did, by ID, until they are in sync again

	truth   map[int64]*block
	pending []*request // not answered, in no order
	next    uint64
}

// engineLife is that of one engine process. A new one is on what the one before left.
type engineLife struct {
	mem   *vfs.Mem
	once  sync.Once
	dying atomic.Bool
	after chan *vfs.Mem // once it is dead: what it left
}

func newLife(mem *vfs.Mem) *engineLife { return &engineLife{mem: mem, after: make(chan *vfs.Mem, 1)} }

// kill ends the process, and then has finish do what was still on its way.
func (p *engineLife) kill(finish func(left *vfs.Mem)) {
	p.once.Do(func() {
		p.dying.Store(true)
		left := p.mem.Restart()
		finish(left)
		p.after <- left
	})
}

// block is what the guest knows of one.
type block struct {
	acked  sectors // what it was told is there
	stable sectors // what survives the loss of power
	since  []*request
}

// request is one of the guest's.
type request struct {
	block    int64
	from, to int // sectors
	value    uint64
	zero     bool // zeroes the block
	flush    bool
	answered bool
}

func (r *request) String() string {
	switch {
	case r.flush:
		return "flush"
	case r.zero:
		return fmt.Sprintf("zero block %d", r.block)
	}
	return fmt.Sprintf("write %d to block %d, sectors %d to %d", r.value, r.block, r.from, r.to)
}

const sectorBytes, blockSectors = 512, store.BlockSize / 512

func newGuest(t *testing.T, seed uint64) *guest {
	g := &guest{rng: rand.New(rand.NewPCG(seed, 11)), engine: newLife(vfs.NewMem()), truth: map[int64]*block{}}
	g.fuse.Store(-1)
	g.sick.Store(-1)
	g.bad.Store(-1)
	g.copies = 1 + 2*g.rng.IntN(2)
	g.lab = newLab(t, g.disk(), "/", g.copies, historyBlocks*store.BlockSize)
	for _, d := range g.dirs {
		g.stores = append(g.stores, engine.ReplicaID(d.ID().String()))
	}
	return g
}

func (g *guest) note(format string, args ...any) {
	g.noting.Lock()
	defer g.noting.Unlock()
	g.events = append(g.events, fmt.Sprintf(format, args...))
}

func (g *guest) fatalf(format string, args ...any) {
	g.t.Helper()
	g.t.Fatalf("%s\nhistory:\n  %s", fmt.Sprintf(format, args...), strings.Join(g.events, "\n  "))
}

// disk is what the present engine process sees.
func (g *guest) disk() vfs.FS {
	p := g.engine
	return vfs.Faulty(p.mem, func(op *vfs.Op) error {
		if !op.Kind.Alters() {
			return nil
		}
		if n := g.fuse.Load(); n >= 0 && g.fuse.Add(-1) < 0 {
			p.kill(func(left *vfs.Mem) { g.tear(left, op) })
		}
		return g.trouble(p.mem, op)
	})
}

// tear writes the first sectors of what a process was writing when it died.
func (g *guest) tear(left *vfs.Mem, op *vfs.Op) {
	if op.Kind != vfs.OpWrite || !strings.HasSuffix(op.Name, "/data") {
		return
	}
	f, err := left.Open(op.Name, 0)
	if err == nil {
		err = errors.Join(f.WriteAt(op.Data[:min(g.torn*sectorBytes, len(op.Data))], op.Offset), f.Close())
	}
	if err != nil {
		panic(err)
	}
}

func (g *guest) trouble(mem *vfs.Mem, op *vfs.Op) error {
	at := func(n int32) bool { return n >= 0 && strings.HasPrefix(op.Name, fmt.Sprintf("/s%d/", n)) }
	n := g.bad.Load()
	switch {
	case at(g.sick.Load()):
		return syscall.EIO
	case at(n) && op.Kind == vfs.OpDatasync && strings.HasSuffix(op.Name, "/data") && g.bad.CompareAndSwap(n, -1):
		if s := g.live.Load(); s != nil { // a real disk may lose it a moment before it says so; nobody could know then
			s.view.Load().replicas[n].Fail(syscall.EIO)
		}
		g.lost.Store(g.stores[n], true)
		if err := mem.LoseUnsynced(op.Name, nil); err != nil {
			return err
		}
		return syscall.EIO
	}
	return nil
}

// died says that the engine can serve no more.
func (g *guest) died() bool { return g.engine.dying.Load() || g.s.LostCause() != nil }

// have goes on with a session, whose pages of checksums do not all stay in memory.
func (g *guest) have(s *Session) {
	s.pages.mu.Lock()
	s.pages.max = 4
	s.pages.mu.Unlock()
	g.s = s
	g.live.Store(s)
}

// bury returns what a process left that was killed, or that ends because its session is lost or handed over.
func (g *guest) bury() *vfs.Mem {
	g.live.Store(nil)
	g.s.background.stop()
	if err := g.s.LostCause(); err != nil && !errors.Is(err, errYielded) {
		<-g.s.Lost()
	}
	g.engine.kill(func(*vfs.Mem) {})
	return <-g.engine.after
}

// start begins a new process, whose stores are those that work.
func (g *guest) start(mem *vfs.Mem) {
	g.engine = newLife(mem)
	g.fs = g.disk()
	g.lab.dirs = nil
	for i := range g.copies {
		if d, err := store.OpenDir(g.fs, fmt.Sprintf("/s%d", i), testInstallation); err == nil {
			g.lab.dirs = append(g.lab.dirs, d)
		}
	}
}

func (g *guest) config() OpenConfig {
	return OpenConfig{ID: testID, Stores: g.dirs, Purpose: ForDevice, Holder: "engine", Log: g.log}
}

// takeOver opens the next engine, which may die too.
func (g *guest) takeOver() {
	g.t.Helper()
	w := &Warm{After: g.s.epoch, Lossy: g.s.LossyMembers()}
	g.lost.Range(func(id, _ any) bool {
		w.Lossy = append(w.Lossy, id.(engine.ReplicaID))
		return true
	})
	for left := g.bury(); ; {
		g.light(40)
		g.start(left)
		c := g.config()
		c.Warm = w
		s, err := Open(context.Background(), c)
		switch {
		case err == nil:
			g.note("engine %d takes over; %d regions unsettled", s.epoch, s.regions.unsettled.Load())
			g.have(s)
			if g.rng.IntN(3) > 0 {
				s.background.wg.Go(func() { s.catchUp(s.background.ctx) })
			}
			return
		case errors.Is(err, engine.ErrDeviceLost):
			g.note("device lost: %v", err)
			g.engine.kill(func(*vfs.Mem) {})
			g.giveUp(<-g.engine.after)
			return
		case !g.engine.dying.Load() && g.sick.Swap(-1) < 0 && !errors.Is(err, engine.ErrUnavailable):
			g.fatalf("take-over: %v", err)
		}
		g.note("take-over failed: %v", err)
		g.engine.kill(func(*vfs.Mem) {})
		left = <-g.engine.after
	}
}

// light has the engine die after a while, or not.
func (g *guest) light(odds int) {
	g.fuse.Store(-1)
	g.torn = g.rng.IntN(blockSectors + 1)
	if g.rng.IntN(100) < odds {
		g.fuse.Store(g.rng.Int64N(30))
	}
}

// giveUp is what follows where no engine can take over: the device is gone, and what was not flushed with it.
func (g *guest) giveUp(left *vfs.Mem) {
	g.t.Helper()
	g.fuse.Store(-1)
	g.sick.Store(-1)
	g.bad.Store(-1)
	g.lost.Clear()
	g.start(left)
	if g.copies == 3 && g.rng.IntN(2) == 0 { // one disk does not come back, for now
		n := g.rng.IntN(3)
		g.dirs = slices.Delete(g.dirs, n, n+1)
	}
	s, err := Open(context.Background(), g.config())
	if errors.Is(err, engine.ErrUnavailable) { // the one with the newest configuration
		g.start(left)
		s, err = Open(context.Background(), g.config())
	}
	if err != nil {
		g.fatalf("attach: %v", err)
	}
	g.have(s)
	g.pending = nil
	for i, b := range g.truth {
		got, _ := g.fetch(i)
		for k, v := range got {
			if v != b.stable[k] && !slices.ContainsFunc(b.since, func(r *request) bool { return r.covers(k) && r.value == v }) {
				g.fatalf("block %d holds %v; flushed was %v, since then %v", i, got, b.stable, b.since)
			}
		}
		b.acked, b.stable, b.since = got, got, nil
	}
}

func (r *request) covers(sector int) bool { return r.from <= sector && sector < r.to }

// fetch reads a block. It is false where the engine died of that.
func (g *guest) fetch(i int64) (sectors, bool) {
	g.t.Helper()
	p := vfs.AlignedBuffer(store.BlockSize)
	var err error
	g.run(func() { err = g.s.ReadAt(p, i*store.BlockSize) })
	if err != nil && !g.died() {
		g.fatalf("reading block %d: %v", i, err)
	}
	return sectorsOf(p), err == nil
}

// run has the engine do something, and returns when that is over, be it by its death.
func (g *guest) run(do func()) {
	done := make(chan struct{})
	go func() { do(); close(done) }()
	g.await(done)
}

// look reads a block: it holds what was acknowledged, or what is still being asked for.
func (g *guest) look(i int64) {
	g.t.Helper()
	b := g.truth[i]
	got, ok := g.fetch(i)
	if !ok {
		return
	}
	for k, v := range got {
		if v != b.acked[k] && !slices.ContainsFunc(g.pending, func(r *request) bool {
			return !r.flush && r.block == i && r.covers(k) && r.value == v
		}) {
			g.fatalf("block %d holds %v; acknowledged was %v, asked for are %v", i, got, b.acked, g.pending)
		}
	}
}

func (g *guest) lookAtAll() {
	g.t.Helper()
	for i := range g.truth {
		g.look(i)
	}
}

// ask makes a request of a block that no other request in flight is for.
func (g *guest) ask(taken map[int64]bool) *request {
	r := &request{block: g.rng.Int64N(12) * 77, to: blockSectors}
	if g.rng.IntN(10) == 0 {
		r.block = g.rng.Int64N(historyBlocks)
	}
	if taken[r.block] {
		return &request{flush: true}
	}
	taken[r.block] = true
	if g.truth[r.block] == nil {
		g.truth[r.block] = &block{}
	}
	switch n := g.rng.IntN(20); {
	case n == 0:
		r.zero = true
		return r
	case n < 4:
		return &request{flush: true}
	case n < 9:
		r.from = g.rng.IntN(blockSectors)
		r.to = r.from + 1 + g.rng.IntN(blockSectors-r.from)
	}
	g.next++
	r.value = g.next
	if g.rng.IntN(8) == 0 { // what was there before: its old checksum may match
		r.value = g.truth[r.block].stable[r.from]
	}
	return r
}

func (g *guest) perform(r *request) error {
	switch {
	case r.flush:
		return g.s.Flush()
	case r.zero:
		return g.s.Zero(r.block*store.BlockSize, store.BlockSize)
	}
	p := vfs.AlignedBuffer((r.to - r.from) * sectorBytes)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.value)
	}
	return g.s.WriteAt(p, r.block*store.BlockSize+int64(r.from)*sectorBytes)
}

// serve has the engine work on requests at once, and takes over when it dies of it.
func (g *guest) serve(requests []*request) {
	g.t.Helper()
	flushed := map[int64]sectors{} // what was acknowledged before: that is what a flush is for
	for i, b := range g.truth {
		flushed[i] = b.acked
	}
	before := map[*request]bool{}
	for _, b := range g.truth {
		for _, r := range b.since {
			before[r] = r.answered
		}
	}
	errs := make([]error, len(requests))
	var wg sync.WaitGroup
	for i, r := range requests {
		if !r.flush {
			b := g.truth[r.block]
			if !slices.Contains(b.since, r) {
				b.since = append(b.since, r)
			}
		}
		wg.Go(func() { errs[i] = g.perform(r) })
	}
	g.run(wg.Wait)
	died := g.died()
	g.pending = slices.DeleteFunc(g.pending, func(r *request) bool { return slices.Contains(requests, r) })
	for i, r := range requests {
		g.note("%v: %v", r, errs[i])
		switch {
		case errs[i] == nil:
			g.acknowledge(r, flushed, before)
		case !died:
			g.fatalf("%v: %v", r, errs[i])
		default:
			g.pending = append(g.pending, r)
		}
	}
}

// await waits for the requests. An engine that waits for a majority is killed.
func (g *guest) await(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
			runtime.Gosched()
		}
		if g.s.Stalled() != "" {
			g.note("stalled: %s", g.s.Stalled())
			g.engine.kill(func(*vfs.Mem) {})
		}
		if g.died() {
			g.s.background.stop()
			<-done
			return
		}
	}
}

func (g *guest) acknowledge(r *request, flushed map[int64]sectors, before map[*request]bool) {
	r.answered = true
	if !r.flush {
		b := g.truth[r.block]
		for k := r.from; k < r.to; k++ {
			b.acked[k] = r.value
		}
		return
	}
	for i, content := range flushed {
		b := g.truth[i]
		b.stable = content
		b.since = slices.DeleteFunc(b.since, func(r *request) bool { return before[r] })
	}
}

// work is a few requests at once, some of them again.
func (g *guest) work() {
	taken := map[int64]bool{}
	var requests []*request
	for _, r := range g.pending {
		if g.rng.IntN(2) == 0 && !taken[r.block] {
			requests = append(requests, r)
		}
		taken[r.block] = true
	}
	for range 1 + g.rng.IntN(3) {
		requests = append(requests, g.ask(taken))
	}
	g.serve(requests)
}

func (g *guest) step() {
	g.t.Helper()
	switch n := g.rng.IntN(100); {
	case n < 70:
		g.work()
	case n < 80:
		for _, i := range slices.Sorted(maps.Keys(g.truth)) {
			if g.rng.IntN(4) == 0 && !g.died() {
				g.look(i)
			}
		}
	case n < 83 && g.copies == 3:
		g.note("a store fails")
		g.sick.Store(int32(g.rng.IntN(3)))
	case n < 85:
		g.note("a store loses its cache")
		g.bad.Store(int32(g.rng.IntN(g.copies)))
	case n < 90:
		g.note("bring back")
		g.sick.Store(-1)
		g.bad.Store(-1)
		g.run(func() { g.s.bringBack(g.s.background.ctx) })
	case n < 94:
		g.note("verify quiet")
		g.run(func() { g.s.verifyQuiet(context.Background(), 0) })
	case n < 96:
		g.yield()
	case n < 97:
		g.cutPower()
	case n < 98:
		g.interrupt()
	default:
		g.light(100)
		return
	}
	for g.died() {
		g.note("engine died: %v", g.s.LostCause())
		g.takeOver()
	}
	g.admitted()
}

// admitted forgets that stores lost their cache once they are in sync again, or out.
func (g *guest) admitted() {
	v := g.s.view.Load()
	for i, r := range v.replicas {
		if r == nil || !v.config.Members.Has(i) || r.Failed() == nil {
			g.lost.Delete(engine.ReplicaID(v.config.Voters[i].Store.String()))
		}
	}
}

// yield hands over as an upgrade does.
func (g *guest) yield() {
	g.note("yield")
	g.fuse.Store(-1)
	g.sick.Store(-1)
	if err := g.s.Yield(); err != nil && g.s.LossyMembers() == nil {
		g.fatalf("yield: %v", err)
	}
	g.takeOver()
}

// interrupt has the engine die in a barrier, or between one and the seal. The guest goes on.
func (g *guest) interrupt() {
	g.sick.Store(-1)
	if g.rng.IntN(2) == 0 { // with much that is unsettled
		g.engine.kill(func(*vfs.Mem) {})
		g.takeOver()
	}
	g.note("barrier")
	g.light(100)
	g.run(func() {
		if err := g.s.Stop(); err == nil {
			_, err = g.s.Evidence(context.Background(), nil)
			g.note("evidence: %v", err)
		}
	})
	g.engine.kill(func(*vfs.Mem) {})
	g.takeOver()
}

func (g *guest) cutPower() {
	g.note("power cut")
	g.fuse.Store(-1)
	g.giveUp(g.bury().CrashClone(g.rng))
}

// finish answers what is pending, detaches, and compares the digest with what is there.
func (g *guest) finish() {
	g.t.Helper()
	g.fuse.Store(-1)
	g.sick.Store(-1)
	g.bad.Store(-1)
	for g.died() {
		g.takeOver()
		g.fuse.Store(-1)
	}
	for len(g.pending) > 0 {
		g.serve([]*request{g.pending[0]})
	}
	g.lookAtAll()
	b := g.detach(g.s)
	if len(b.Unresolved) > 0 {
		g.fatalf("unresolved: %+v", b.Unresolved)
	}
	agreeing(g.t, b, g.s.Config().Members.Len())
	s, err := Open(context.Background(), g.config())
	if err != nil {
		g.fatalf("attach: %v", err)
	}
	g.s = s
	var sum digest.Sum
	p := vfs.AlignedBuffer(store.BlockSize)
	for i := range int64(historyBlocks) {
		if err := s.ReadAt(p, i*store.BlockSize); err != nil {
			g.fatalf("reading block %d: %v", i, err)
		}
		s.hash.Add(&sum, s.hash.Block(i, p))
	}
	if !digestOf(sum, s.Config().Size).Equal(b.Expected) {
		g.fatalf("the digest is not that of the content")
	}
	g.lookAtAll()
	s.Close()
}

var (
	guestSeeds = flag.Uint64("guest.seeds", 40, "how many random histories TestGuestSurvives runs")
	guestSeed  = flag.Uint64("guest.seed", 0, "the only one, where it is not 0")
)

// TestGuestSurvives: engines die at any change of the disks, in requests, flushes, take-overs, rebuilds and while settling, and hand
// over; stores fail and lose their caches. Nothing that was acknowledged is lost, and what the detach attests to is there.
func TestGuestSurvives(t *testing.T) {
	for seed := uint64(1); seed <= *guestSeeds; seed++ {
		if *guestSeed != 0 && seed != *guestSeed {
			continue
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			g := newGuest(t, seed)
			s, err := Open(context.Background(), g.config())
			if err != nil {
				t.Fatal(err)
			}
			g.have(s)
			for range 150 {
				g.step()
			}
			g.finish()
		})
	}
}
