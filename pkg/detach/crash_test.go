package detach

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// errDied is what a program's calls come to once it has died: nothing more happens by its hand.
var errDied = errors.New("the process died")

// death ends a program at its n-th step: before the step, or after it with the answer lost. A step is a call of the
// engine or the kernel, or one call of the file system that alters the disk.
type death struct {
	mu    sync.Mutex
	at    int
	after bool
	steps int
	dead  bool
	name  string // the step at which it died
}

// step performs call unless the program is dead.
func (d *death) step(name string, call func() error) error {
	d.mu.Lock()
	if d.dead {
		d.mu.Unlock()
		return errDied
	}
	d.steps++
	dies := d.steps == d.at
	if dies {
		d.dead, d.name = true, name
	}
	d.mu.Unlock()
	if dies && !d.after {
		return errDied
	}
	err := call()
	if dies {
		return errDied
	}
	return err
}

func (d *death) hook(op *vfs.Op) error {
	if !op.Kind.Alters() {
		return d.look()
	}
	var decided error
	err := d.step("journal "+string(op.Kind), func() error { return nil })
	if err != nil && d.after && d.diedNow() {
		op.Then = func(error) error { return errDied }
		return decided
	}
	return err
}

// diedNow says, once, that the step just taken was the last one.
func (d *death) diedNow() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.after
	d.after = false
	return now
}

func (d *death) look() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDied
	}
	return nil
}

// mortal is the engine and the kernel as a program sees them that will die.
type mortal struct {
	engine.Control
	node engine.Node
	k    *kernel
	d    *death
}

func (m mortal) Get(ctx context.Context, id volume.ID) (v engine.Volume, err error) {
	return v, m.d.step("Get", func() error { v, err = m.Control.Get(ctx, id); return err })
}

func (m mortal) Receipts(ctx context.Context, id volume.ID) (r [][]byte, err error) {
	return r, m.d.step("Receipts", func() error { r, err = m.Control.Receipts(ctx, id); return err })
}

func (m mortal) Unpublish(ctx context.Context, a volume.Attachment) error {
	return m.d.step("Unpublish", func() error { return m.Control.Unpublish(ctx, a) })
}

func (m mortal) Fence(ctx context.Context, a volume.Attachment, o engine.FenceOptions) (p engine.FenceProof, err error) {
	return p, m.d.step("Fence", func() error { p, err = m.Control.Fence(ctx, a, o); return err })
}

func (m mortal) Evidence(ctx context.Context, a volume.Attachment, f func(engine.Progress)) (b engine.Barrier, err error) {
	return b, m.d.step("Evidence", func() error { b, err = m.Control.Evidence(ctx, a, f); return err })
}

func (m mortal) Seal(ctx context.Context, b engine.Barrier, receipt []byte) error {
	return m.d.step("Seal", func() error { return m.Control.Seal(ctx, b, receipt) })
}

func (m mortal) Quarantine(ctx context.Context, a volume.Attachment, b engine.Barrier) error {
	return m.d.step("Quarantine", func() error { return m.Control.Quarantine(ctx, a, b) })
}

type mortalNode struct{ mortal }

func (m mortalNode) Attach(ctx context.Context, a volume.Attachment) (engine.Device, error) {
	return engine.Device{}, errDied // not part of a detach
}

func (m mortalNode) Attached(ctx context.Context, id volume.ID) (d engine.Device, err error) {
	return d, m.d.step("Attached", func() error { d, err = m.node.Attached(ctx, id); return err })
}

func (m mortalNode) Barrier(ctx context.Context, a volume.Attachment) error {
	return m.d.step("Barrier", func() error { return m.node.Barrier(ctx, a) })
}

func (m mortalNode) Detach(ctx context.Context, a volume.Attachment) error {
	return m.d.step("Detach", func() error { return m.node.Detach(ctx, a) })
}

func (m mortalNode) Resize(ctx context.Context, a volume.Attachment) error {
	return m.node.Resize(ctx, a)
}

// Release implements Releaser.
func (m mortal) Release(ctx context.Context, e Entry, s DeviceState) error {
	return m.d.step("Release", func() error { return m.k.Release(ctx, e, s) })
}

// Holders implements Releaser.
func (m mortal) Holders(context.Context, Entry) []string { return nil }

// mortalise replaces the world's programs by ones that die.
func (w *world) mortalise(d *death) error {
	w.agent.Close()
	w.gate.Close()
	w.disk = w.disk.Restart()
	m := mortal{Control: w.mem, node: w.mem.On(nodeA), k: w.kernel, d: d}
	return w.tryStart(m, mortalNode{m}, m, vfs.Faulty(w.disk, d.hook))
}

// scenario is one way out, in the course of which the programs die.
type scenario struct {
	name  string
	setUp func(w *world)
	leave func(w *world) error // what the orchestrator asks for
	kind  receipt.Kind
}

func unstageAndUnpublish(w *world) error {
	if err := w.agent.Unstage(w.ctx(), vol, staging); err != nil {
		return err
	}
	if _, covered := w.covered(); !covered {
		return fmt.Errorf("NodeUnstage answered OK without a receipt in force")
	}
	return w.unpublish()
}

func scenarios() []scenario {
	return []scenario{
		{"clean", func(w *world) {}, unstageAndUnpublish, receipt.Clean},
		{"device lost", func(w *world) { w.mem.Kill(vol) }, unstageAndUnpublish, receipt.Fenced},
		{"forgotten", func(w *world) { time.Sleep(2 * time.Minute) }, (*world).unpublish, receipt.Clean},
		{"node lost", func(w *world) {
			w.silent, w.lost = errors.New("no route"), "node deleted"
		}, (*world).unpublish, receipt.Fenced},
		{"override", func(w *world) {
			w.show(podA)
			a := *w.volume().Attachment
			w.overrides[a] = Override{vol, a.Epoch, "reason", "admin"}
		}, (*world).unpublish, receipt.Forced},
		{"write-back error", func(w *world) { w.kernel.badWrite = true }, unstageAndUnpublish, receipt.Fenced},
		{"a replica gone", func(w *world) { w.mem.Down(w.mem.Replicas()[2]) }, unstageAndUnpublish, receipt.Degraded},
	}
}

// TestDeathAtEveryStep lets the programs die at each step of each way out, before the step and after it, with and
// without the power, starts new ones, and wants the way out to end with one chain of receipts and nothing left behind. No
// answer on the way may be OK without a receipt in force.
func TestDeathAtEveryStep(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			deaths, weaker := 0, 0
			for step := 1; ; step++ {
				died, weak := dieAround(t, s, step)
				if died == 0 {
					break
				}
				deaths, weaker = deaths+died, weaker+weak
			}
			t.Logf("%d deaths, %d of which weakened the receipt", deaths, weaker)
			if deaths < 20 || weaker > deaths/4 {
				t.Errorf("%d deaths, %d of which weakened the receipt", deaths, weaker)
			}
		})
	}
}

// dieAround dies at the step in every way; weaker counts those where the machine lived and the receipt is weaker all the same.
func dieAround(t *testing.T, s scenario, step int) (died, weaker int) {
	for _, after := range []bool{false, true} {
		for _, power := range []bool{false, true} {
			name, kind := dieAt(t, s, &death{at: step, after: after}, power)
			if name != "" {
				died++
			}
			if kind != s.kind && !power {
				weaker++
			}
		}
	}
	return died, weaker
}

// dieAt plays the scenario with the death, and returns the name of its step, empty where the way out ended before, and
// the kind of the receipt in the end.
func dieAt(t *testing.T, s scenario, end *death, power bool) (died string, kind receipt.Kind) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, d := w.use()
		w.must(w.mem.Write(vol, d.Writer, 2*4096, content(7))) // flushed long ago
		s.setUp(w)
		after := end.after
		err := w.mortalise(end)
		if err == nil {
			err = s.leave(w)
		}
		died = end.name
		where := fmt.Sprintf("step %d (%s, after=%t, power=%t)", end.at, died, after, power)
		w.honest(err, where)
		if died == "" && err != nil {
			t.Fatalf("without a death: %v", err)
		}
		kind = w.goOn(s, power, where)
	})
	return died, kind
}

// honest wants an OK to rest on a receipt.
func (w *world) honest(err error, where string) {
	w.t.Helper()
	if err != nil {
		return
	}
	if _, covered := w.covered(); !covered || w.volume().Attachment != nil {
		w.t.Fatalf("%s: OK without a receipt in force, attachment %v", where, w.volume().Attachment)
	}
}

// goOn starts new programs and lets the orchestrator ask again until all is done.
func (w *world) goOn(s scenario, power bool, where string) receipt.Kind {
	w.t.Helper()
	if power {
		w.reboot()
	} else {
		w.restart()
	}
	w.must(w.agent.Resume(w.ctx()))
	err := s.leave(w)
	w.honest(err, where+" afterwards")
	if err != nil {
		w.t.Fatalf("%s: afterwards: %v", where, err)
	}
	r, _ := w.covered()
	if !allowed(s.kind, r, power) {
		w.t.Fatalf("%s: receipt %s (%s), want %s", where, r.Kind, r.Reason, s.kind)
	}
	w.silent, w.lost = nil, ""
	w.kernel.unbind(podA)
	w.must(w.agent.RemoveTarget(w.ctx(), vol, podA))
	if err := w.agent.Unstage(w.ctx(), vol, staging); err != nil {
		w.t.Fatalf("%s: clearing the node: %v", where, err)
	}
	w.clear()
	w.reads(2, 7)
	if r.Kind == receipt.Clean || r.Kind == receipt.Degraded {
		d, err := w.mem.On(nodeA).Attached(w.ctx(), vol)
		w.must(err)
		got := make([]byte, 4096)
		w.must(w.mem.Read(vol, d.Writer, 0, got))
		if string(got) != string(content(1)) {
			w.t.Fatalf("%s: the receipt is %s and what was written is gone", where, r.Kind)
		}
	}
	return r.Kind
}

// allowed: a death can only make the outcome weaker, and without the machine's only where it fell into the writing back.
func allowed(want receipt.Kind, got receipt.Receipt, power bool) bool {
	return want == got.Kind || got.Kind == receipt.Fenced && (power || strings.Contains(got.Reason, unknownWriteback))
}
