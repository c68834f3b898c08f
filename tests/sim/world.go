package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Sizes of the mirror engine's format, which the simulator needs to know for bit rot.
const (
	regionBlocks              = 1024
	regionBytes  volume.Bytes = regionBlocks * blockBytes
	entriesBytes              = regionBlocks * 32
	frameBytes                = entriesBytes + regionBlocks*blockBytes
)

// world is one run: a machine with its disks, the programs on it, a guest that uses a volume, whoever asks for attachments, and what goes
// wrong. Nothing in it is random but by the seed, and its clock is simulated.
type world struct {
	seed       uint64
	dice       *dice
	plan       *plan
	trace      *trace
	numbers    vfs.Numbers
	root       *disk
	disks      []*disk
	kernel     *kernel
	guest      *guest
	invariants *invariants
	programs   *programs
	background sync.WaitGroup

	mu         sync.Mutex // guards the rest; held for memory only
	faults     map[fault]int
	failure    error
	operations int
	isHealed   bool
	silent     error
	lostReason string
	lastLoss   time.Time // when a disk last lost its cache and said so
	gaveUp     bool      // an engine ended by itself: what it had read back last was not what it had just written

	// Of the attachment there is now.
	device     *attached
	alive      bool             // the guest has not seen it die
	newest     *receipt.Receipt // that came into force
	overridden *detach.Override
	excused    bool // the device may be gone, or be fenced: its host died, the power failed, or somebody said that the node is lost
}

func newWorld(seed uint64, mode traceMode) *world {
	w := &world{seed: seed, dice: newDice(seed), trace: newTrace(mode), kernel: newKernel(), faults: map[fault]int{}}
	w.plan = newPlan(w.dice)
	w.trace.add(func() string { return w.plan.String() })
	w.root = &disk{mem: w.numbers.NewMem()}
	for i := range w.plan.stores {
		name := fmt.Sprintf("/s%d", i)
		if err := w.root.mem.Mkdir(name); err != nil {
			panic(err)
		}
		d := &disk{name: name, mem: w.newStoreDisk(name), once: map[vfs.Kind]error{}, lies: map[fault]int{}}
		if i == w.plan.liar {
			for f, n := range w.plan.lies {
				d.lies[f] = n
			}
		}
		w.disks = append(w.disks, d)
	}
	if err := errors.Join(w.root.mem.Mkdir(stateDir), w.root.mem.SyncDir("/")); err != nil {
		panic(err)
	}
	w.guest, w.invariants = newGuest(w), newInvariants(w)
	w.programs = newPrograms(w)
	return w
}

// newStoreDisk is an empty disk, mounted at the directory.
func (w *world) newStoreDisk(name string) *vfs.Mem {
	mem := w.numbers.NewMem()
	if err := errors.Join(mem.Mkdir(name), mem.SyncDir("/")); err != nil {
		panic(err)
	}
	return mem
}

// diskAt is the disk that a path leads to.
func (w *world) diskAt(name string) *disk {
	for _, d := range w.disks {
		if strings.HasPrefix(name, d.name) && (len(name) == len(d.name) || name[len(d.name)] == '/') {
			d.mu.Lock()
			away := d.away
			d.mu.Unlock()
			if away {
				return w.root // what is seen then is the directory at which it was mounted
			}
			return d
		}
	}
	return w.root
}

// run is the whole life of the world. It returns what was wrong.
func (w *world) run() error {
	w.programs.start()
	w.heals(true) // nothing has gone wrong yet
	o := &orchestrator{w: w, r: w.dice.stream("orchestrator")}
	end, over := make(chan struct{}), make(chan struct{})
	if o.create() {
		s := &saboteur{w: w, r: w.dice.stream("saboteur")}
		w.heals(false)
		go func() { defer close(over); s.run(end) }()
		for range w.plan.rounds {
			if !o.round(w.plan.stay) || w.healed() {
				break
			}
		}
		close(end)
		<-over
		w.last(o)
	}
	w.background.Wait()
	w.programs.stop()
	return w.failure
}

// last is a round without faults, in which everything is read.
func (w *world) last(o *orchestrator) {
	if w.failed() {
		return
	}
	at, ok := o.publish()
	if !ok {
		return
	}
	d, ok := o.stage(at)
	if !ok {
		return
	}
	if d != nil {
		err := o.patiently("reading everything", func() error { return w.guest.readAll(d, w.plan.regions*regionBlocks) })
		if w.forgiven(err) != nil {
			w.fail("reading everything after all faults have gone: %v", err)
		}
		d.close()
	}
	o.leave(at)
}

func (w *world) ctx() context.Context { return context.Background() }

// fail notes what is wrong; the first counts.
func (w *world) fail(format string, args ...any) {
	w.trace.add(func() string { return "WRONG: " + fmt.Sprintf(format, args...) })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		w.failure = fmt.Errorf(format, args...)
		if w.trace.mode == traceAll {
			w.trace.add(goroutines)
		}
	}
}

func (w *world) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure != nil
}

func (w *world) count(f fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[f]++
}

// heals notes whether nothing goes wrong any more.
func (w *world) heals(now bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isHealed = now
}

func (w *world) healed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.isHealed
}

// check looks at the invariants that the disks show.
func (w *world) check() { w.invariants.check() }

// silence has the node not answer the gate; lost has the gate believe that it is gone.
func (w *world) silence(lost bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = errors.New("node does not answer")
	if lost {
		w.lostReason, w.excused = "its power is off, an operator says", true
	}
}

func (w *world) speak() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent, w.lostReason = nil, ""
}

func (w *world) isSilent() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.silent
}

func (w *world) nodeLost() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lostReason, w.lostReason != ""
}

func (w *world) nodeIsLost() bool { _, lost := w.nodeLost(); return lost }

// broken is how many stores do not work now.
func (w *world) broken() (n int) {
	for _, d := range w.disks {
		if d.broken() {
			n++
		}
	}
	return n
}

func (d *disk) broken() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.away || d.sick || d.before != nil || d.full
}

// brokenOne is a store that does not work, or the given one.
func (w *world) brokenOne(else_ *disk) *disk {
	for _, d := range w.disks {
		if d.broken() {
			return d
		}
	}
	return else_
}

// rots says that what a disk has may change at any time, also where nobody has written: by itself, or by a write that goes astray. Only
// the scrub of the whole volume finds that.
func (w *world) rots(d *disk) bool {
	return w.plan.liar >= 0 && d == w.disks[w.plan.liar] && (w.plan.has(bitRot) || w.plan.lies[misdirected] > 0)
}

// forgiven returns nil where a request may fail that way and the guest goes on.
func (w *world) forgiven(err error) error {
	switch {
	case err == nil, errors.Is(err, syscall.ENOSPC):
		return nil
	case errors.Is(err, errDeviceDead), errors.Is(err, errDetaching):
		return err
	case errors.Is(err, syscall.EIO) && (w.plan.has(readError) || w.plan.profile == ruin):
		return nil // of the last good copy, or of all at once
	}
	w.fail("the guest is told %v", err)
	return err
}

// trace is what has happened.
type trace struct {
	mode  traceMode
	start time.Time

	mu    sync.Mutex
	lines []string
	hash  uint64
}

// traceMode says what is kept of a trace.
type traceMode int

// Modes. A trace costs more than the run, so that it is kept only of a seed that is run again.
const (
	traceNothing traceMode = iota
	traceHash
	traceAll
)

func newTrace(mode traceMode) *trace { return &trace{mode: mode, start: time.Now()} }

// add adds a line. Lines of one moment are hashed in any order.
func (t *trace) add(line func() string) {
	if t.mode == traceNothing {
		return
	}
	text := fmt.Sprintf("%14v %s", time.Since(t.start), line())
	h := fnv.New64a()
	h.Write([]byte(text)) //nolint:errcheck // never fails
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hash += h.Sum64()
	if t.mode == traceAll {
		t.lines = append(t.lines, text)
	}
}

func (t *trace) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n")
}

func (w *world) parameters() map[string]string {
	p := map[string]string{mirror.ParameterReplicas: fmt.Sprint(w.plan.replicas), mirror.ParameterVerify: "off"}
	if w.plan.sectors {
		p[mirror.ParameterBlockSize] = "512"
	}
	if w.plan.verify > 0 {
		p[mirror.ParameterVerify] = w.plan.verify.Truncate(time.Second).String()
	}
	return p
}

// Write has the programs' logs in the trace.
func (t *trace) Write(p []byte) (int, error) {
	t.add(func() string { return "log: " + strings.TrimSpace(string(p)) })
	return len(p), nil
}

// goroutines is what each of them does now.
func goroutines() string {
	all := make([]byte, 4<<20)
	return string(all[:runtime.Stack(all, true)])
}
