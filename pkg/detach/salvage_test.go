package detach

import (
	"context"
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// lostMajority is a volume of which one stale replica is left, and the decision for that one.
func (w *world) lostMajority() Salvage {
	w.t.Helper()
	w.use()
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.unpublish())
	replicas := w.mem.Replicas()
	w.mem.Down(replicas[0])
	d, err := w.mem.On(nodeA).Attach(w.ctx(), w.publish())
	w.must(err)
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.mem.Forget(vol)
	w.mem.Down(replicas[1])
	w.mem.Down(replicas[2])
	w.mem.Up(replicas[0])
	return Salvage{Volume: vol, From: replicas[0], Reason: "two disks burnt", Actor: "ann"}
}

// TestSalvageLeavesATrace: the receipt is forced and tells who decided, why, and for what; the same decision again is done already, and
// another one is refused.
func TestSalvageLeavesATrace(t *testing.T) {
	w := newWorld(t)
	o := w.lostMajority()
	w.refused(w.unpublish(), engine.ErrUnavailable, "belay salvage "+string(vol))
	for _, bad := range []Salvage{{Volume: vol, From: o.From, Reason: " ", Actor: "ann"}, {Volume: vol, From: o.From, Reason: "because"}} {
		_, err := w.gate.Salvage(w.ctx(), bad, nil)
		w.refused(err, ErrOverride, string(vol))
	}
	r, err := w.gate.Salvage(w.ctx(), o, nil)
	w.must(err)
	if r.Kind != receipt.Forced || r.Clean || r.Reason != o.Reason || r.Actor != "ann" || r.Name != "the claim" || r.Salvaged == nil || r.Salvaged.From != o.From || r.Salvaged.Replicas != 3 {
		t.Fatalf("receipt %+v, %+v", r, r.Salvaged)
	}
	again, err := w.gate.Salvage(w.ctx(), o, nil)
	w.must(err)
	if !again.At.Equal(r.At) || again.Writer != r.Writer {
		t.Errorf("the same decision again: %+v, was %+v", again, r)
	}
	other := o
	other.From = w.mem.Replicas()[1]
	_, err = w.gate.Salvage(w.ctx(), other, nil)
	w.refused(err, engine.ErrNotNeeded)
	if got, covered := w.covered(); !covered || got.Kind != receipt.Forced || !w.said.has("receipt forced") {
		t.Errorf("covered %v by %+v", covered, got)
	}
	w.reads(0, 1)
}

// TestSalvageOutlivesItsCaller: whoever asked may leave; the next one finds it done.
func TestSalvageOutlivesItsCaller(t *testing.T) {
	w := newWorld(t)
	o := w.lostMajority()
	ctx, cancel := context.WithCancel(w.ctx())
	cancel()
	if _, err := w.gate.Salvage(ctx, o, nil); err != nil && !errors.Is(err, ErrInProgress) {
		t.Fatal(err)
	}
	r, err := w.gate.Salvage(w.ctx(), o, nil)
	w.must(err)
	if raws, err := w.mem.Receipts(w.ctx(), vol); err != nil || len(raws) != 2 || r.Salvaged == nil {
		t.Errorf("%d receipts, want the detach's and one of the salvage: %v", len(raws), err)
	}
}

// pendingOnly is an engine that dies before it seals a salvage.
type pendingOnly struct{ engine.Control }

func (pendingOnly) Seal(context.Context, engine.Barrier, []byte) error {
	return errors.New("killed")
}

// TestSalvageCutShortBeforeItsReceipt: nobody can use the volume before the receipt is in force, and the same decision finishes it.
func TestSalvageCutShortBeforeItsReceipt(t *testing.T) {
	w := newWorld(t)
	o := w.lostMajority()
	w.agent.Close()
	w.gate.Close()
	w.start(pendingOnly{w.mem}, w.mem.On(nodeA), w.kernel, w.disk)
	if _, err := w.gate.Salvage(w.ctx(), o, nil); err == nil {
		t.Fatal("the seal was lost, and nobody noticed")
	}
	w.restart()
	if _, err := w.mem.Publish(w.ctx(), vol, nodeA, engine.PublishOptions{}); !errors.Is(err, engine.ErrQuarantined) {
		t.Fatalf("publish of a volume whose salvage is pending: %v", err)
	}
	r, err := w.gate.Salvage(w.ctx(), o, nil)
	w.must(err)
	if r.Salvaged == nil || r.Salvaged.Replicas != 3 {
		t.Errorf("receipt %+v", r)
	}
	w.reads(0, 1)
}

// TestSalvageRefusedInUse: a volume with a writer is salvaged by nobody.
func TestSalvageRefusedInUse(t *testing.T) {
	w := newWorld(t)
	_, d := w.use()
	_, err := w.gate.Salvage(w.ctx(), Salvage{Volume: vol, From: w.mem.Replicas()[0], Reason: "because", Actor: "ann"}, nil)
	w.refused(err, engine.ErrAttached)
	w.must(w.mem.Write(vol, d.Writer, 0, content(3)))
	_, err = w.gate.Salvage(w.ctx(), Salvage{Volume: volume.ID("other"), From: w.mem.Replicas()[0], Reason: "because", Actor: "ann"}, nil)
	w.refused(err, engine.ErrNotFound)
}
