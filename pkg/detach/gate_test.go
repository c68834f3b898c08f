package detach

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/receipt"
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
		{"node lost by a policy", rowNodePresumed},
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
