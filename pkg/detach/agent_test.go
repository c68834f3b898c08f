package detach

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// inWorld runs the test in a world of its own, with a clock of its own.
func inWorld(t *testing.T, run func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { run(newWorld(t)) })
}

func TestUnstageOfNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		w.must(w.agent.Unstage(w.ctx(), vol, staging)) // unknown volume
		w.create()
		w.must(w.agent.Unstage(w.ctx(), vol, staging)) // not published
		w.publish()
		w.must(w.agent.Unstage(w.ctx(), vol, staging)) // never staged
		if w.said.has("started") {
			t.Error("a barrier for nothing")
		}
	})
}

func TestUnstageIsIdempotent(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		for range 3 {
			w.must(w.agent.Unstage(w.ctx(), vol, staging))
		}
		raws, err := w.mem.Receipts(w.ctx(), vol)
		w.must(err)
		if len(raws) != 1 {
			t.Fatalf("%d receipts", len(raws))
		}
		w.clear()
	})
}

func TestUnstageAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if err := w.agent.Unstage(w.ctx(), vol, staging); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() { _ = w.unpublish() })
		}
		all.Wait()
		w.must(w.unpublish())
		w.detached(receipt.Clean)
		if raws, _ := w.mem.Receipts(w.ctx(), vol); len(raws) != 1 {
			t.Fatalf("%d receipts", len(raws))
		}
	})
}

// TestUnstageWithoutAReceiptIsNeverOK: what was staged after a receipt needs one of its own, also where nothing was written.
func TestUnstageWithoutAReceiptIsNeverOK(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.stage(a)
		w.kernel.inUse = "a shell"
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld, "a shell")
		w.kernel.inUse = ""
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		if raws, _ := w.mem.Receipts(w.ctx(), vol); len(raws) != 2 {
			t.Fatalf("%d receipts", len(raws))
		}
	})
}

func TestUnstageElsewhere(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.refused(w.agent.Unstage(w.ctx(), vol, "/staging/other"), ErrHeld, staging)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
	})
}

func TestUnstageUnderATarget(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.show(podA)
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld, podA)
		e, _, err := w.agent.Entry(vol)
		w.must(err)
		if e.Phase != Staged {
			t.Fatalf("phase %s: the volume cannot be used any more, and nothing was touched", e.Phase)
		}
		w.show("/pods/b/mount") // another pod comes
		w.hide("/pods/b/mount")
		w.hide(podA)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.clear()
	})
}

func TestUnstageForgetsTargetsThatAreNotMounted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.must(w.agent.AddTarget(w.ctx(), vol, Target{Path: podA})) // and the process died before the mount
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.clear()
	})
}

func TestUnstageOfALostDevice(t *testing.T) {
	inWorld(t, func(w *world) {
		_, d := w.use()
		w.must(w.mem.Write(vol, d.Writer, 4096, content(2)))
		w.mem.Kill(vol)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.must(w.unpublish())
		w.detached(receipt.Fenced)
		w.clear()
		w.reads(1, 2)
	})
}

// TestDeviceDiesAtTheBarrier: the device goes while evidence is collected.
func TestDeviceDiesAtTheBarrier(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		once := sync.OnceFunc(func() { w.mem.Kill(vol) })
		w.faults = once
		err := w.agent.Unstage(w.ctx(), vol, staging)
		if err != nil { // the run in which it died may fail; the next one may not
			w.must(w.agent.Unstage(w.ctx(), vol, staging))
		}
		w.must(w.unpublish())
		// It had flushed before it died: nothing is lost, and the receipt may say so.
		w.detached(receipt.Clean)
		w.reads(0, 1)
	})
}

// succeeded is a node whose engine process dies right after it was stopped, the first times, and is followed by another.
type succeeded struct {
	engine.Node
	mem   *enginetest.Memory
	times int
}

func (n *succeeded) Barrier(ctx context.Context, a volume.Attachment) error {
	err := n.Node.Barrier(ctx, a)
	if err == nil && n.times > 0 {
		n.times--
		n.mem.Succeed(a.Volume)
	}
	return err
}

// TestEngineDiesBehindTheBarrier: the engine that was stopped dies, and the next one serves the device. It is stopped, too, and
// nobody is shut out for it.
func TestEngineDiesBehindTheBarrier(t *testing.T) {
	for _, c := range []struct{ times, calls int }{{1, 1}, {proofTries - 1, 1}, {proofTries, 2}, {2*proofTries + 1, 3}} {
		inWorld(t, func(w *world) {
			w.use()
			w.agent.Close()
			w.gate.Close()
			w.start(w.mem, &succeeded{w.mem.On(nodeA), w.mem, c.times}, w.kernel, w.disk)
			for range c.calls - 1 {
				w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrInProgress, "ask again")
			}
			w.must(w.agent.Unstage(w.ctx(), vol, staging))
			w.must(w.unpublish())
			w.detached(receipt.Clean)
			if w.said.has("fenced") {
				t.Error("shut out, although the device was alive")
			}
			w.clear()
			w.reads(0, 1)
		})
	}
}

// TestEngineDiesWhileItTestifies is the same in the middle of the evidence.
func TestEngineDiesWhileItTestifies(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.faults = sync.OnceFunc(func() { w.mem.Succeed(vol) })
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.must(w.unpublish())
		w.detached(receipt.Clean)
		if w.said.has("fenced") {
			t.Error("shut out, although the device was alive")
		}
		w.reads(0, 1)
	})
}

func TestWritebackErrorIsTold(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.kernel.badWrite = true
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.must(w.unpublish())
		r := w.detached(receipt.Fenced)
		if r.Clean || !strings.Contains(r.Reason, "syncfs") {
			t.Errorf("receipt %+v", r)
		}
	})
}

func TestFinishOfAnotherAttachment(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		a.Epoch++
		w.refused(w.agent.Finish(w.ctx(), a), engine.ErrStaleEpoch)
		a.Volume = "other"
		w.must(w.agent.Finish(w.ctx(), a))
	})
}

// TestFinishLooksForItself: between the gate's question and its order a pod may have come.
func TestFinishLooksForItself(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		time.Sleep(time.Hour)
		w.show(podA)
		w.refused(w.agent.Finish(w.ctx(), a), ErrHeld, podA)
	})
}

func TestResumeGoesOn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.kernel.inUse = "a shell"
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld)
		w.kernel.inUse = ""
		w.restart()
		w.must(w.agent.Resume(w.ctx()))
		synctest.Wait()
		w.clear()
		w.must(w.unpublish())
		w.detached(receipt.Clean)
	})
}

// TestCloseLeavesTheRestToTheNext: a job that the end of the program cuts short is not OK, and not lost.
func TestCloseLeavesTheRestToTheNext(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.faults = func() { time.Sleep(time.Minute) }
		answer := make(chan error, 1)
		go func() { answer <- w.agent.Unstage(context.Background(), vol, staging) }()
		time.Sleep(time.Second)
		w.agent.Close()
		w.refused(<-answer, ErrInProgress, "the next one goes on")
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrInProgress, "about to end")
		w.restart()
		w.must(w.agent.Resume(w.ctx()))
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.must(w.unpublish())
		w.detached(receipt.Clean)
	})
}

// TestFailureIsRemembered: who comes while a new run is under way hears why the last one failed.
func TestFailureIsRemembered(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.kernel.inUse = "a shell"
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld)
		if s, _ := w.agent.Status(w.ctx(), vol); !strings.Contains(s.Job.Failed, "a shell") {
			t.Errorf("status %+v", s.Job)
		}
		w.kernel.inUse = ""
		w.faults = func() { time.Sleep(time.Minute) }
		w.refused(w.agent.Unstage(timeout(w, 5*time.Second), vol, staging), ErrInProgress, "the run before failed", "a shell")
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
	})
}

func TestConfigsAreChecked(t *testing.T) {
	if _, err := NewAgent(AgentConfig{Node: nodeA}); err == nil {
		t.Error("an agent without an engine")
	}
	if _, err := NewGate(GateConfig{}); err == nil {
		t.Error("a gate without an engine")
	}
	inWorld(t, func(w *world) {
		c := w.agent.c
		c.ForgottenAfter = -1
		if _, err := NewAgent(c); err == nil {
			t.Error("a negative time")
		}
		c.ForgottenAfter, c.Boot, c.Clock, c.Log = 0, "", nil, nil
		a, err := NewAgent(c)
		w.must(err)
		if a.c.ForgottenAfter != ForgottenAfter || a.c.Clock == nil || a.c.Log == nil {
			t.Errorf("defaults %+v", a.c)
		}
	})
}

func TestGateWithManyVolumes(t *testing.T) {
	inWorld(t, func(w *world) {
		var all sync.WaitGroup
		for _, id := range []volume.ID{"a", "b", "c", "d", "e", "f", "g", "h"} {
			_, err := w.mem.Create(w.ctx(), engine.Spec{ID: id, Size: size})
			w.must(err)
			all.Go(func() {
				for range 3 {
					w.lifecycle(id)
				}
			})
		}
		all.Wait()
	})
}

func (w *world) lifecycle(id volume.ID) {
	ctx := w.ctx()
	a, err := w.mem.Publish(ctx, id, nodeA, engine.PublishOptions{})
	check := func(err error) {
		if err != nil {
			w.t.Errorf("volume %s: %v", id, err)
		}
	}
	check(err)
	e := Entry{Attachment: a, Staging: "/staging/" + string(id), Access: Block}
	check(w.agent.BeginStage(ctx, e))
	d, err := w.mem.On(nodeA).Attach(ctx, a)
	check(err)
	check(w.mem.Write(id, d.Writer, 0, content(3)))
	check(w.agent.FinishStage(ctx, id, d.Path))
	if err := w.gate.Unpublish(ctx, id, nodeA); !errors.Is(err, ErrHeld) {
		w.t.Errorf("volume %s: %v", id, err)
	}
	check(w.agent.Unstage(ctx, id, e.Staging))
	check(w.gate.Unpublish(ctx, id, nodeA))
}

func TestNodeBootIsRead(t *testing.T) {
	if _, err := vfs.OS().Stat("/proc/sys/kernel/random/boot_id"); err == nil && len(kernelBoot()) < 30 {
		t.Errorf("boot ID %q", kernelBoot())
	}
}

// hasty is an engine that calls a volume sealed while a writer is attached.
type hasty struct{ engine.Control }

func (h hasty) Get(ctx context.Context, id volume.ID) (engine.Volume, error) {
	v, err := h.Control.Get(ctx, id)
	v.Sealed = true
	return v, err
}

// TestOldReceiptNeverSuffices: even where the engine is wrong about the seal, a receipt counts only for the attachment and
// the writers that it names.
func TestOldReceiptNeverSuffices(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.stage(a)
		g := w.gate.c
		g.Control = hasty{w.mem}
		gate, err := NewGate(g)
		w.must(err)
		defer gate.Close()
		w.refused(gate.Unpublish(w.ctx(), vol, nodeA), ErrHeld, "writers up to")
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		w.must(w.unpublish())
		w.stage(w.publish())
		w.refused(gate.Unpublish(w.ctx(), vol, nodeA), ErrHeld, "is for volume")
	})
}

func TestUnavailableLeavesALostDeviceAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.mem.Kill(vol)
		for _, r := range w.mem.Replicas()[:2] {
			w.mem.Down(r)
			defer w.mem.Up(r)
		}
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), engine.ErrUnavailable, string(vol))
		if !w.kernel.mounts[staging] {
			t.Error("unmounted without a quorum")
		}
	})
}

// TestFenceLooksFirst: of two who were told to fence, the second finds the receipt of the first and leaves it alone.
func TestFenceLooksFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.silent, w.lost = errors.New("no route"), "node deleted"
		s, err := w.gate.survey(w.ctx(), vol, nodeA)
		w.must(err)
		for range 2 {
			ok, err := w.gate.perform(w.ctx(), s)
			if w.must(err); ok {
				t.Fatal("a fence is not the end of it")
			}
		}
		if raws, _ := w.mem.Receipts(w.ctx(), vol); len(raws) != 1 {
			t.Fatalf("%d receipts", len(raws))
		}
		w.must(w.unpublish())
		w.detached(receipt.Fenced)
	})
}
