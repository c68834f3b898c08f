package detach

import (
	"errors"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// The rows of TestRows in which a node, replicas or data are lost, and those in which a person decides.

func rowNodeLost(w *world) {
	_, d := w.use()
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.silent, w.lost = errors.New("connection refused"), "out-of-service taint"
	w.must(w.unpublish())
	r := w.detached(receipt.Fenced)
	if !strings.Contains(r.Reason, "out-of-service taint") || r.Clean {
		w.t.Errorf("receipt %+v", r)
	}
	if err := w.mem.Write(vol, d.Writer, 4096, content(9)); !errors.Is(err, engine.ErrStaleEpoch) {
		w.t.Errorf("the lost node's writer: %v", err)
	}
	w.reads(1, 2)
	// The node comes back: what is left of its stay is cleared, and it does not touch the volume.
	w.silent, w.lost = nil, ""
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	if _, found, _ := w.agent.Entry(vol); found || w.kernel.mounts[staging] {
		w.t.Error("remains on the node that was lost")
	}
}

func rowNodeSilent(w *world) {
	_, d := w.use()
	w.silent = errors.New("connection refused")
	w.refused(w.unpublish(), ErrNodeSilent, string(nodeA), "connection refused", "belay fence")
	w.must(w.mem.Write(vol, d.Writer, 0, content(2))) // nobody was fenced
}

// rowNodePresumed: a policy's belief fences who is gone, and nobody that the engine finds alive.
func rowNodePresumed(w *world) {
	_, d := w.use()
	w.silent, w.presumed = errors.New("connection refused"), "its Lease has expired"
	w.refused(w.unpublish(), ErrHeld, "its writer lives after all", "out-of-service")
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.mem.Kill(vol)
	w.must(w.unpublish())
	if r := w.detached(receipt.Fenced); !strings.Contains(r.Reason, "its Lease has expired") {
		w.t.Errorf("receipt %+v", r)
	}
	w.reads(1, 2)
}

func rowNodeLostAnswers(w *world) {
	w.create()
	w.stage(w.publish())
	w.show(podA)
	w.lost = "out-of-service taint, by mistake"
	w.refused(w.unpublish(), ErrHeld, podA)
}

func rowUnavailable(w *world) {
	w.use()
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	a := *w.volume().Attachment
	w.stage(a)
	w.kernel.write(1, 2)
	replicas := w.mem.Replicas()
	w.mem.Down(replicas[0])
	w.mem.Down(replicas[1])
	w.refused(w.unpublish(), engine.ErrUnavailable, "bring the missing replicas back")
	synced := w.kernel.synced
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), engine.ErrUnavailable)
	if !w.kernel.mounts[staging] || w.kernel.synced != synced {
		w.t.Error("touched without a quorum")
	}
	w.mem.Down(replicas[2])
	w.refused(w.unpublish(), engine.ErrUnavailable)
	for _, r := range replicas {
		w.mem.Up(r)
	}
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.reads(1, 2)
}

// spoil makes the block of every copy differ from its checksum, each in another way.
func (w *world) spoil(index int64) {
	for i, r := range w.mem.Replicas() {
		w.mem.Flip(vol, r, volume.Bytes(index*4096), byte(1)<<i)
	}
}

func rowDisagree(w *world) {
	a, d := w.use()
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.spoil(1)
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrDataLoss, "offset 4096")
	if !w.said.has("quarantined") || w.volume().State != engine.Quarantined {
		w.t.Fatalf("not quarantined: %v", w.volume().State)
	}
	w.refused(w.unpublish(), ErrDataLoss, "belay fence")
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrDataLoss)
	w.must(w.gate.Override(w.ctx(), Override{vol, a.Epoch, "the data is in the backup", "admin"}))
	w.must(w.unpublish())
	r := w.detached(receipt.Forced)
	if len(r.Unresolved) != 1 || r.Unresolved[0].Offset != 4096 {
		w.t.Errorf("unresolved %+v", r.Unresolved)
	}
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.clear()
}

func rowDisagreeLost(w *world) {
	_, d := w.use()
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.spoil(1)
	w.silent, w.lost = errors.New("no route"), "node deleted"
	w.refused(w.unpublish(), ErrDataLoss, "offset 4096", "quarantined")
	if w.volume().State != engine.Quarantined {
		w.t.Fatal("not quarantined")
	}
	if _, covered := w.covered(); covered {
		w.t.Fatal("a receipt for copies that disagree")
	}
}

func rowOverride(w *world) {
	a, d := w.use()
	w.show(podA)
	w.overrides[a] = Override{vol, a.Epoch + 1, "reason", "admin"}
	w.refused(w.unpublish(), ErrHeld)
	w.overrides[a] = Override{vol, a.Epoch, " ", "admin"}
	w.refused(w.unpublish(), ErrHeld)
	w.overrides[a] = Override{vol, a.Epoch, "rack is on fire", "admin"}
	w.must(w.unpublish())
	r := w.detached(receipt.Forced)
	if r.Reason != "rack is on fire" || r.Actor != "admin" {
		w.t.Errorf("receipt %+v", r)
	}
	if err := w.mem.Write(vol, d.Writer, 4096, content(9)); !errors.Is(err, engine.ErrStaleEpoch) {
		w.t.Errorf("the overridden writer: %v", err)
	}
	// One shot: the next attachment is another epoch, whatever the override still says.
	w.hide(podA)
	b := w.publish()
	w.stage(b)
	w.overrides[b] = w.overrides[a]
	w.refused(w.unpublish(), ErrHeld)
}

func rowOverrideCall(w *world) {
	a, _ := w.use()
	w.show(podA)
	override := func(o Override) error { return w.gate.Override(w.ctx(), o) }
	w.refused(override(Override{vol, a.Epoch + 1, "reason", "admin"}), ErrOverride, "epoch")
	w.refused(override(Override{vol, a.Epoch, "", "admin"}), ErrOverride, "reason")
	w.refused(override(Override{vol, a.Epoch, "reason", ""}), ErrOverride, "answers for it")
	w.refused(override(Override{"other", a.Epoch, "reason", "admin"}), engine.ErrNotFound)
	w.must(override(Override{vol, a.Epoch, "reason", "admin"}))
	w.refused(override(Override{vol, a.Epoch, "reason", "admin"}), ErrOverride, "needs none")
	w.must(w.unpublish())
	w.refused(override(Override{vol, a.Epoch, "reason", "admin"}), ErrOverride, "attached nowhere")
	w.detached(receipt.Forced)
}

func rowOverrideUnavailable(w *world) {
	a, _ := w.use()
	w.mem.Down(w.mem.Replicas()[0])
	w.mem.Down(w.mem.Replicas()[1])
	w.refused(w.gate.Override(w.ctx(), Override{vol, a.Epoch, "reason", "admin"}), engine.ErrUnavailable)
}

func rowDegraded(w *world) {
	w.use()
	w.mem.Down(w.mem.Replicas()[1])
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.unpublish())
	r := w.detached(receipt.Degraded)
	if !r.Clean || r.Replicas != 3 {
		w.t.Errorf("receipt %+v", r)
	}
	w.reads(0, 1)
}
