package detach

import (
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

func TestStageAfterUnfinishedUnstage(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		w.kernel.inUse = "a shell"
		w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld)
		w.refused(w.agent.BeginStage(w.ctx(), entry(a)), ErrHeld, "must be detached first", "a shell")
		w.kernel.inUse = ""
		w.stage(a)
		if r, covered := w.covered(); covered {
			t.Fatalf("staged, and receipt %+v is in force", r)
		}
		if raws, _ := w.mem.Receipts(w.ctx(), vol); len(raws) != 1 {
			t.Fatalf("%d receipts for the stay before", len(raws))
		}
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
	})
}

func TestStageOverAnOlderAttachment(t *testing.T) {
	inWorld(t, func(w *world) {
		w.use()
		w.silent, w.lost = errors.New("no route"), "node deleted"
		w.must(w.unpublish())
		b := w.publish() // it came back, with its old stay in the journal
		w.stage(b)
		e, _, err := w.agent.Entry(vol)
		w.must(err)
		if e.Attachment != b || e.Phase != Staged || e.Published {
			t.Fatalf("entry %+v", e)
		}
	})
}

func TestStageIsIdempotent(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create()
		a := w.publish()
		w.stage(a)
		w.show(podA)
		w.stage(a)
		e, _, err := w.agent.Entry(vol)
		w.must(err)
		if len(e.Targets) != 1 || !e.Published || e.Phase != Staged {
			t.Fatalf("entry %+v", e)
		}
		other := entry(a)
		other.FSType = "xfs"
		w.refused(w.agent.BeginStage(w.ctx(), other), engine.ErrExists)
		other = entry(a)
		other.Staging = "/staging/other"
		w.refused(w.agent.BeginStage(w.ctx(), other), ErrHeld, staging)
	})
}

func TestStageAfterReboot(t *testing.T) {
	inWorld(t, func(w *world) {
		w.create()
		a := w.publish()
		w.stage(a)
		w.show(podA)
		w.reboot()
		w.must(w.agent.Resume(w.ctx()))
		w.stage(a)
		e, _, err := w.agent.Entry(vol)
		w.must(err)
		if len(e.Targets) != 0 || e.Boot != w.boot || e.Phase != Staged {
			t.Fatalf("entry %+v", e)
		}
	})
}

func TestStageOverADamagedEntry(t *testing.T) {
	inWorld(t, func(w *world) {
		a, _ := w.use()
		w.damageEntry()
		w.refused(w.agent.BeginStage(w.ctx(), entry(a)), ErrJournal)
		w.reboot()
		w.stage(a)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
	})
}

func TestTargets(t *testing.T) {
	inWorld(t, func(w *world) {
		w.refused(w.agent.AddTarget(w.ctx(), vol, Target{Path: podA}), engine.ErrNotFound)
		w.refused(w.agent.FinishStage(w.ctx(), vol, "/dev/x"), engine.ErrNotFound)
		w.must(w.agent.RemoveTarget(w.ctx(), vol, podA))
		w.create()
		w.stage(w.publish())
		for _, p := range []string{podA, "/pods/b/mount", podA} {
			w.must(w.agent.AddTarget(w.ctx(), vol, Target{Path: p, ReadOnly: p == podA}))
		}
		e, _, _ := w.agent.Entry(vol)
		if len(e.Targets) != 2 || !e.Idle.IsZero() {
			t.Fatalf("entry %+v", e)
		}
		w.must(w.agent.RemoveTarget(w.ctx(), vol, podA))
		w.must(w.agent.RemoveTarget(w.ctx(), vol, "/pods/unknown"))
		w.must(w.agent.RemoveTarget(w.ctx(), vol, "/pods/b/mount"))
		time.Sleep(3 * time.Second)
		w.must(w.agent.RemoveTarget(w.ctx(), vol, "/pods/b/mount")) // again: the clock is not set back
		s, err := w.agent.Status(w.ctx(), vol)
		w.must(err)
		if s.Idle != 3*time.Second || s.Device != DeviceAlive || s.Entry == nil || s.Rebooted {
			t.Fatalf("status %+v", s)
		}
	})
}
