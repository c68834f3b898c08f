package explorer

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/belay-storage/belay/pkg/vfs"
)

// expectation is what must be true of any disks that are left at a point.
type expectation interface {
	// check lets disks come up, and returns what is wrong with them, nil where nothing is. s says what happened to them; remake makes them
	// anew each time. It may run beside others.
	check(t *testing.T, s state, remake func() *disks) (verdict, error)
}

// verdict is what became of disks that are as they should be.
type verdict int

const (
	opened  verdict = iota // it came up
	unknown                // it said that it cannot tell, or that there is nothing, where that is right
)

// crashKind says what happened to the disks.
type crashKind int

const (
	killed crashKind = iota // the process alone died: everything that was written is there
	oneOff                  // and one disk lost its cache
	allOff                  // the power of everything failed
)

// point is a moment at which the machine may fail.
type point struct {
	before string // the call that was about to be made
	syncs  bool   // it makes something durable
	names  []string
	images []*vfs.Image // of the disks of these names
	expect expectation
}

// recorder takes an image of the disks before each call that alters one. Calls that are under way at once are put in an order that a
// seed decides, each made alone. So a recording is the same each time it is made.
type recorder struct {
	disks  *disks
	rng    *rand.Rand         // which of several calls is next; nil: the first by name
	expect func() expectation // at present; nil: nothing is recorded yet
	lost   atomic.Uint32      // disks on which every call fails, a bit each
	points []point

	mu      sync.Mutex
	waiting []*turn
	wake    chan struct{}
	stop    chan struct{}
	done    chan struct{}
}

// turn is a call that waits to be the next.
type turn struct {
	op  vfs.Op
	now chan struct{}
}

var errDead = errors.New("the process is dead")

// process is a process on the recorder's disks. It can die.
type process struct {
	fs   vfs.FS
	dead atomic.Bool
}

func newRecorder(d *disks, seed uint64) *recorder {
	r := &recorder{disks: d, wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	if seed != 0 {
		r.rng = rand.New(rand.NewPCG(seed, 4))
	}
	go r.schedule()
	return r
}

// end stops the recorder, with the last point.
func (r *recorder) end() {
	close(r.stop)
	<-r.done
	r.point("the end", true)
}

// start begins a process on what the one before left.
func (r *recorder) start() *process {
	r.disks = r.disks.restart()
	p := &process{}
	p.fs = vfs.Faulty(r.disks, func(op *vfs.Op) error {
		if p.dead.Load() {
			return errDead
		}
		if i := r.disks.index(op.Name); i >= 0 && r.lost.Load()>>i&1 == 1 && op.Kind != vfs.OpClose && op.Kind != vfs.OpUnlock {
			return syscall.EIO
		}
		if alters(op) {
			r.turn(op)
			if p.dead.Load() {
				return errDead
			}
		}
		return nil
	})
	return p
}

// alters says whether the call may change a disk or how durable that is.
func alters(op *vfs.Op) bool {
	return op.Kind.Alters() && op.Kind != vfs.OpLock && (op.Kind != vfs.OpOpen || op.Mode&vfs.Create != 0)
}

// syncs says whether the call makes something durable.
func syncs(k vfs.Kind) bool { return k == vfs.OpDatasync || k == vfs.OpSyncDir }

// turn waits until the call may be made. It is over before another one may.
func (r *recorder) turn(op *vfs.Op) {
	t := &turn{op: *op, now: make(chan struct{})}
	r.mu.Lock()
	r.waiting = append(r.waiting, t)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	<-t.now
}

// schedule lets one call be made at a time: the next one once all goroutines wait for something.
func (r *recorder) schedule() {
	defer close(r.done)
	for {
		select {
		case <-r.stop:
			return
		case <-r.wake:
		}
		for {
			synctest.Wait()
			t := r.pick()
			if t == nil {
				break
			}
			r.point(fmt.Sprintf("%s %s %d+%d", t.op.Kind, t.op.Name, t.op.Offset, t.op.Len), syncs(t.op.Kind))
			close(t.now)
		}
	}
}

func (r *recorder) pick() *turn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return nil
	}
	slices.SortStableFunc(r.waiting, func(a, b *turn) int {
		return cmp.Or(cmp.Compare(a.op.Name, b.op.Name), cmp.Compare(a.op.Kind, b.op.Kind), cmp.Compare(a.op.Offset, b.op.Offset))
	})
	i := 0
	if r.rng != nil {
		i = r.rng.IntN(len(r.waiting))
	}
	t := r.waiting[i]
	r.waiting = slices.Delete(r.waiting, i, i+1)
	return t
}

func (r *recorder) point(before string, syncs bool) {
	if r.expect == nil {
		return
	}
	p := point{before: before, syncs: syncs, names: r.disks.names, expect: r.expect()}
	for _, m := range r.disks.mems {
		p.images = append(p.images, m.Freeze())
	}
	r.points = append(r.points, p)
}
