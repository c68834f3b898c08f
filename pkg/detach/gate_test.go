package detach

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// TestRows walks through the table of DESIGN.md, "What the CSI calls answer": one subtest a row, or a variant of one.
func TestRows(t *testing.T) {
	rows := []struct {
		name string
		run  func(w *world)
	}{
		{"unknown volume", rowUnknownVolume},
		{"not published", rowNotPublished},
		{"published to another node", rowOtherNode},
		{"never staged", rowNeverStaged},
		{"any node", rowAnyNode},
		{"sealed with a receipt", rowReceipt},
		{"an old receipt is not one for a new writer", rowOldReceipt},
		{"receipt of an unknown key", rowForeignReceipt},
		{"published to a pod", rowPublished},
		{"staged and never published", rowStagedNeverPublished},
		{"being staged", rowStaging},
		{"kubelet forgot: unstaging without a receipt", rowForgotUnstaging},
		{"kubelet forgot: device lost", rowForgotLost},
		{"kubelet forgot: machine restarted", rowForgotRebooted},
		{"kubelet forgot: no target for long", rowForgotIdle},
		{"device lost under a pod", rowLostUnderPod},
		{"device without a journal entry", rowNoJournal},
		{"neither device nor journal entry", rowNoTrace},
		{"damaged journal entry", rowDamagedJournal},
		{"barrier running", rowBarrierRunning},
		{"node lost, with a reason", rowNodeLost},
		{"node silent, without a reason", rowNodeSilent},
		{"node declared lost, and answers", rowNodeLostAnswers},
		{"fewer than a majority", rowUnavailable},
		{"digests disagree", rowDisagree},
		{"digests disagree on a lost node", rowDisagreeLost},
		{"override", rowOverride},
		{"override by the operator's own call", rowOverrideCall},
		{"override against a majority gone", rowOverrideUnavailable},
		{"fewer replicas than the volume should have", rowDegraded},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { r.run(newWorld(t)) })
		})
	}
}

func (w *world) unpublish() error { return w.gate.Unpublish(w.ctx(), vol, nodeA) }

func rowUnknownVolume(w *world) { w.must(w.unpublish()) }

func rowNotPublished(w *world) {
	w.create()
	w.must(w.unpublish())
	w.must(w.gate.Unpublish(w.ctx(), vol, ""))
}

func rowOtherNode(w *world) {
	w.create()
	a := w.publish()
	w.must(w.gate.Unpublish(w.ctx(), vol, nodeB))
	if v := w.volume(); v.Attachment == nil || *v.Attachment != a {
		w.t.Fatalf("unpublishing from another node closed %v", a)
	}
}

func rowNeverStaged(w *world) {
	w.create()
	w.publish()
	w.silent = errors.New("nobody may ask the node for this")
	w.must(w.unpublish())
	if w.volume().Attachment != nil {
		w.t.Fatal("still attached")
	}
	for range 10 {
		w.must(w.unpublish())
	}
}

func rowAnyNode(w *world) {
	w.use()
	w.refused(w.gate.Unpublish(w.ctx(), vol, ""), ErrHeld, string(nodeA))
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.gate.Unpublish(w.ctx(), vol, ""))
	w.detached(receipt.Clean)
}

func rowReceipt(w *world) {
	w.use()
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.silent = errors.New("nobody may ask the node for this")
	for range 3 {
		w.must(w.unpublish())
	}
	r := w.detached(receipt.Clean)
	if r.Name != "the claim" || r.Attachment.Node != nodeA || len(r.Evidence) != 3 || r.Verified == 0 {
		w.t.Errorf("receipt %+v", r)
	}
	w.silent = nil
	w.clear()
	w.reads(0, 1)
}

func rowOldReceipt(w *world) {
	a, _ := w.use()
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.stage(a) // the same attachment once more: its receipt says nothing of this writer
	w.refused(w.unpublish(), ErrHeld, staging)
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.stage(w.publish()) // the next attachment: neither of both receipts is for it
	w.refused(w.unpublish(), ErrHeld, staging)
}

func rowForeignReceipt(w *world) {
	a, _ := w.use()
	w.must(w.mem.On(nodeA).Barrier(w.ctx(), a))
	b, err := w.mem.Evidence(w.ctx(), a, nil)
	w.must(err)
	w.must(w.mem.Seal(w.ctx(), b, []byte("somebody says so")))
	w.refused(w.unpublish(), ErrHeld, "not to be trusted", "belay fence")
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld, "not to be trusted")
	w.must(w.gate.Override(w.ctx(), Override{vol, a.Epoch, "key lost", "admin"}))
	w.must(w.unpublish())
}

func rowPublished(w *world) {
	w.create()
	w.stage(w.publish())
	w.show(podA)
	w.kernel.write(0, 1)
	w.refused(w.unpublish(), ErrHeld, string(vol), string(nodeA), staging, podA, "NodeUnpublishVolume")
	if !w.said.has("refused") || w.said.has("started") || w.kernel.synced > 0 {
		w.t.Errorf("a refusal did more than refuse: %v", w.said.seen)
	}
}

func rowStagedNeverPublished(w *world) {
	w.create()
	w.stage(w.publish())
	time.Sleep(24 * time.Hour)
	w.refused(w.unpublish(), ErrHeld, staging, "not published yet", "NodeUnstageVolume")
}

func rowStaging(w *world) {
	w.create()
	a := w.publish()
	w.must(w.agent.BeginStage(w.ctx(), entry(a)))
	d, err := w.mem.On(nodeA).Attach(w.ctx(), a)
	w.must(err)
	w.refused(w.unpublish(), ErrHeld, "being staged")
	w.mem.Kill(vol)
	w.refused(w.unpublish(), ErrHeld, "being staged since")
	time.Sleep(2 * time.Minute)
	w.must(w.unpublish())
	r := w.detached(receipt.Fenced)
	if r.Writer <= d.Writer {
		w.t.Errorf("receipt by %d does not cover writer %d", r.Writer, d.Writer)
	}
	w.clear()
}

func rowForgotUnstaging(w *world) {
	w.use()
	w.kernel.inUse = "a shell"
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld, "a shell")
	w.refused(w.unpublish(), ErrHeld, "a shell")
	w.kernel.inUse = ""
	w.restart()
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.clear()
	w.reads(0, 1)
}

func rowForgotLost(w *world) {
	_, d := w.use()
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.mem.Kill(vol)
	w.must(w.unpublish())
	r := w.detached(receipt.Fenced)
	if r.Clean || !strings.Contains(r.Reason, "lost") {
		w.t.Errorf("receipt %+v", r)
	}
	w.clear()
	w.reads(1, 2)
}

func rowForgotRebooted(w *world) {
	w.create()
	d := w.stage(w.publish())
	w.show(podA) // its mount goes with the machine; the journal does not know
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.reboot()
	w.must(w.agent.Resume(w.ctx()))
	w.must(w.unpublish())
	w.detached(receipt.Fenced)
	w.clear()
	w.reads(1, 2)
}

func rowForgotIdle(w *world) {
	w.use()
	time.Sleep(12 * time.Second)
	w.refused(w.unpublish(), ErrHeld, "12s ago", "finished from the stage journal", "1m0s")
	w.restart() // the journal remembers when the last target went
	time.Sleep(49 * time.Second)
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.clear()
	w.reads(0, 1)
}

func rowLostUnderPod(w *world) {
	w.create()
	w.stage(w.publish())
	w.show(podA)
	w.mem.Kill(vol)
	w.refused(w.unpublish(), ErrHeld, podA)
	w.hide(podA)
	w.must(w.unpublish())
	w.detached(receipt.Fenced)
}

func rowNoJournal(w *world) {
	w.use()
	w.must(w.disk.Remove(stateDir + "/journal/" + string(vol) + ".json"))
	w.refused(w.unpublish(), ErrHeld, "/memory/", "no entry")
	w.must(w.agent.Unstage(w.ctx(), vol, staging)) // the orchestrator's call has what is needed
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.clear()
	w.reads(0, 1)
}

func rowNoTrace(w *world) {
	_, d := w.use()
	w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
	w.must(w.disk.Remove(stateDir + "/journal/" + string(vol) + ".json"))
	w.reboot()
	w.must(w.unpublish())
	w.detached(receipt.Fenced)
	w.clear()
	w.reads(1, 2)
}

func rowDamagedJournal(w *world) {
	w.use()
	w.damageEntry()
	w.refused(w.unpublish(), ErrHeld, "damaged", "checksum")
	w.restart()
	w.refused(w.agent.Resume(w.ctx()), ErrJournal, string(vol))
	w.must(w.agent.Unstage(w.ctx(), vol, staging))
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	w.clear()
	w.reads(0, 1)
	if _, err := w.disk.Stat(stateDir + "/journal/" + string(vol) + ".json.damaged"); err != nil {
		w.t.Errorf("the damaged entry was not kept: %v", err)
	}
}

func (w *world) damageEntry() {
	f, err := w.disk.Open(stateDir+"/journal/"+string(vol)+".json", 0)
	w.must(err)
	defer f.Close()
	p := make([]byte, 1)
	w.must(f.ReadAt(p, 60))
	p[0] ^= 1
	w.must(f.WriteAt(p, 60))
	w.must(f.Datasync())
}

func rowBarrierRunning(w *world) {
	a, d := w.use()
	for i := range int64(8) {
		w.must(w.mem.Write(vol, d.Writer, i*4096, content(byte(i))))
	}
	w.faults = func() { time.Sleep(10 * time.Second) }
	ctx, cancel := context.WithTimeout(w.ctx(), 15*time.Second)
	defer cancel()
	start := time.Now()
	w.refused(w.agent.Unstage(ctx, vol, staging), ErrInProgress, "verify 4 KiB of 32 KiB", "running for 14s")
	if ctx.Err() != nil || time.Since(start) < 14*time.Second {
		w.t.Errorf("answered after %v: too late for the answer to arrive, or too early", time.Since(start))
	}
	w.refused(w.gate.Unpublish(timeout(w, 20*time.Second), vol, nodeA), ErrInProgress, "verify", string(vol))
	w.refused(w.agent.BeginStage(timeout(w, time.Second), entry(a)), ErrInProgress, "must be detached first")
	w.refused(w.agent.AddTarget(w.ctx(), vol, Target{Path: podA}), ErrInProgress)
	w.must(w.unpublish())
	w.detached(receipt.Clean)
	if got := time.Since(start); got != 80*time.Second {
		w.t.Errorf("took %v: 8 blocks at 10s each were to be verified once", got)
	}
}

func timeout(w *world, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.ctx(), d)
	w.t.Cleanup(cancel)
	return ctx
}

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

func TestWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, err := w.gate.Why(w.ctx(), vol)
		w.refused(err, engine.ErrNotFound, string(vol))
		w.use()
		w.show(podA)
		why(w, Held, "pvc-1 (the claim)", "to node node-a", "mounted at "+podA, "Healthy", "memory-2", "receipts   none", "NodeUnpublishVolume")
		w.hide(podA)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		why(w, Close, "sealed: nobody can write", "the newest clean of 2000-01-01", "ControllerUnpublishVolume")
		w.must(w.unpublish())
		if r := why(w, Done, "attached   no"); !r.Detached || r.Receipts != 1 || r.Receipt.Kind != receipt.Clean {
			t.Errorf("report %+v", r)
		}
		w.mem.Down(w.mem.Replicas()[0])
		w.mem.Down(w.mem.Replicas()[1])
		if r := why(w, Unavailable, "cannot be told", "Unreachable", "bring the missing replicas back"); r.Detached {
			t.Error("detached, says a minority")
		}
	})
}

func why(w *world, want Action, words ...string) Report {
	w.t.Helper()
	r, err := w.gate.Why(w.ctx(), vol)
	w.must(err)
	if r.Answer != want {
		w.t.Errorf("answer %s, want %s", r.Answer, want)
	}
	text := r.Text()
	for _, word := range words {
		if !strings.Contains(text, word) {
			w.t.Errorf("does not say %q:\n%s", word, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines > 24 {
		w.t.Errorf("%d lines are more than a screen:\n%s", lines, text)
	}
	if _, err := json.Marshal(r); err != nil {
		w.t.Error(err)
	}
	return r
}
