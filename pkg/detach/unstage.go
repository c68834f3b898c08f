package detach

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Unstage takes the volume off this node: release, barrier, evidence, judgement, receipt, detach. On nil a receipt is in
// force, or no writer ever attached, and the journal has no entry. The work goes on when ctx ends: ErrInProgress then, and
// the next call joins it. A failed run starts again with the next call. ErrHeld, ErrDataLoss, engine.ErrUnavailable.
func (a *Agent) Unstage(ctx context.Context, id volume.ID, staging string) error {
	if joined, err := a.jobs.join(ctx, id); joined {
		return err
	}
	staged, err := a.beginUnstage(ctx, id, staging)
	if err != nil || !staged {
		return err
	}
	_, err = a.jobs.do(ctx, id, a.leave(id))
	return err
}

// beginUnstage writes the intent; false where the volume is provably not on this node.
func (a *Agent) beginUnstage(ctx context.Context, id volume.ID, staging string) (bool, error) {
	defer a.locks.lock(id)()
	e, found, err := a.c.Journal.Get(id)
	if err != nil || !found {
		e, found, err = a.rebuilt(ctx, id, staging, err)
	}
	switch {
	case err != nil || !found:
		return false, err
	case e.Staging != staging:
		return false, fmt.Errorf("%w: %v is staged at %s, not %s; unstage it there", ErrHeld, e.Attachment, e.Staging, staging)
	case e.Phase == Unstaging:
		return true, nil
	}
	e.Phase = Unstaging
	return true, a.c.Journal.Put(e)
}

// rebuilt makes an entry from the orchestrator's call where the journal's is missing or damaged and the volume is here all
// the same; false where it provably is not. It needs nothing of the old entry but the staging path: what else Release wants to
// know it finds out.
func (a *Agent) rebuilt(ctx context.Context, id volume.ID, staging string, damage error) (Entry, bool, error) {
	if damage != nil && !errors.Is(damage, ErrJournal) {
		return Entry{}, false, damage
	}
	d, state, err := a.device(ctx, id)
	if err != nil {
		return Entry{}, false, err
	}
	v, err := a.c.Control.Get(ctx, id)
	if errors.Is(err, engine.ErrNotFound) {
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, fmt.Errorf("volume %s without a stage journal entry: %w", id, err)
	}
	here := v.Attachment != nil && v.Attachment.Node == a.c.Node
	switch {
	case !here && state == DeviceNone, here && state == DeviceNone && (!v.Staged || v.Sealed):
		return Entry{}, false, nil
	case !here:
		return Entry{}, false, fmt.Errorf("%w: volume %s has a device on node %s and is not published to it", ErrHeld, id, a.c.Node)
	}
	a.c.Log.Warn("stage journal entry rebuilt from the call", "volume", id, "node", a.c.Node, "epoch", v.Attachment.Epoch, "damage", damage)
	e := Entry{Attachment: *v.Attachment, Staging: staging, Access: Mount, Device: d.Path, Phase: Staged, Boot: a.c.Boot}
	return e, true, a.setAside(id, damage)
}

// setAside keeps a damaged entry for a person to look at.
func (a *Agent) setAside(id volume.ID, damage error) error {
	if damage == nil {
		return nil
	}
	return a.c.Journal.SetAside(id)
}

// Finish is Unstage without the orchestrator: from the journal, and only where that proves that nobody else will
// do it (see Finishable); ErrHeld otherwise, engine.ErrStaleEpoch where the entry is of another attachment.
func (a *Agent) Finish(ctx context.Context, at volume.Attachment) error {
	if joined, err := a.jobs.join(ctx, at.Volume); joined {
		return err
	}
	staged, err := a.beginFinish(ctx, at)
	if err != nil || !staged {
		return err
	}
	_, err = a.jobs.do(ctx, at.Volume, a.leave(at.Volume))
	return err
}

func (a *Agent) beginFinish(ctx context.Context, at volume.Attachment) (bool, error) {
	defer a.locks.lock(at.Volume)()
	s, err := a.Status(ctx, at.Volume)
	if err != nil || s.Entry == nil && s.Error == "" {
		return false, err
	}
	if s.Entry != nil && s.Entry.Attachment != at {
		return false, fmt.Errorf("finish %v: the stage journal has %v: %w", at, s.Entry.Attachment, engine.ErrStaleEpoch)
	}
	forgotten, because := Finishable(s)
	if !forgotten {
		return false, fmt.Errorf("%w: %v: %s", ErrHeld, at, cmp.Or(s.Error, because))
	}
	if s.Entry.Phase == Unstaging {
		return true, nil
	}
	a.c.Log.Warn("finishing a forgotten detach", "volume", at.Volume, "node", at.Node, "epoch", at.Epoch, "because", because)
	s.Entry.Phase = Unstaging
	return true, a.c.Journal.Put(*s.Entry)
}

// leave is the job: every step can tell whether it is done, so that a crash between any two is mended by doing all again.
func (a *Agent) leave(id volume.ID) work {
	return func(ctx context.Context, report func(engine.Progress)) error {
		e, found, err := a.c.Journal.Get(id)
		if err != nil || !found {
			return err // not found: done meanwhile
		}
		state, err := a.releasable(ctx, e)
		if err != nil {
			return err
		}
		report(engine.Progress{Phase: "release", Since: a.c.Clock()})
		state, err = a.release(ctx, &e, state)
		if err != nil {
			return fmt.Errorf("release %v: %w", e.Attachment, err)
		}
		if mutant.JournalForgets {
			_ = a.c.Journal.Remove(id)
		}
		if err := a.prove(ctx, e, state, report); err != nil {
			return err
		}
		// The entry goes last: until then a restart comes back here.
		if err := a.c.Engine.Detach(ctx, e.Attachment); err != nil {
			return fmt.Errorf("detach %v: %w", e.Attachment, err)
		}
		defer a.locks.lock(id)()
		return a.c.Journal.Remove(id)
	}
}

// releasable says what became of the device, and refuses before anything is touched where requests to it would wait: an
// unmount that waits for replicas cannot be interrupted, and holds up whoever looks at the mount.
func (a *Agent) releasable(ctx context.Context, e Entry) (DeviceState, error) {
	s, err := a.notary.standing(ctx, e.Attachment)
	if err != nil {
		return DeviceUnknown, err
	}
	if !s.settled && s.volume.State == engine.Unavailable {
		return DeviceUnknown, fmt.Errorf("%w: %v: %s", engine.ErrUnavailable, e.Attachment, s.volume.Reason)
	}
	d, state, err := a.device(ctx, e.Attachment.Volume)
	switch {
	case state == DeviceAlive && !s.current:
		return DeviceNone, nil // the device is a newer attachment's; the one below these mounts is gone
	case state == DeviceAlive && d.Stalled != "":
		return state, fmt.Errorf("%w: %v: its device waits: %s", engine.ErrUnavailable, e.Attachment, d.Stalled)
	}
	return state, err
}

// release unmounts, and says what became of the device meanwhile.
func (a *Agent) release(ctx context.Context, e *Entry, state DeviceState) (DeviceState, error) {
	if state == DeviceAlive {
		if err := a.claim(e); err != nil {
			return state, err
		}
	}
	err := a.c.Releaser.Release(ctx, *e, state)
	for range releaseTries {
		switch {
		case errors.Is(err, engine.ErrDeviceLost) && state == DeviceAlive:
			state = DeviceLost
		case errors.Is(err, ErrWriteback):
			// Noted before the unmount: the kernel tells it once, and a restart would take the file system for clean.
			told := err.Error()
			if err := a.note(e, func() { e.Unflushed = cmp.Or(e.Unflushed, told) }); err != nil {
				return state, err
			}
		default:
			return state, errors.Join(err, a.released(ctx, e, err))
		}
		err = a.c.Releaser.Release(ctx, *e, state)
	}
	return state, errors.Join(err, a.released(ctx, e, err))
}

// releaseTries bounds how often a release is tried again at once: one write-back error and one lost device is all that can
// be new.
const releaseTries = 2

// unknownWriteback is what a run says of the one before it that died while it wrote back.
const unknownWriteback = "the program died while the file system was written back; whether that failed is not known"

// claim notes that this run is about to write back.
func (a *Agent) claim(e *Entry) error {
	if e.Releasing == a.run {
		return nil
	}
	return a.note(e, func() {
		if e.Releasing != "" {
			e.Unflushed = cmp.Or(e.Unflushed, unknownWriteback)
		}
		e.Releasing = a.run
	})
}

// released notes that the outcome of writing back is known; a call that was cut short left it open. Where a
// target is mounted still nothing was touched: the intent is taken back, and the volume can go on being used.
func (a *Agent) released(ctx context.Context, e *Entry, outcome error) error {
	if ctx.Err() != nil || e.Releasing == "" {
		return nil
	}
	return a.note(e, func() {
		e.Releasing = ""
		if errors.Is(outcome, ErrHeld) && len(e.Targets) > 0 {
			e.Phase = Staged
		}
	})
}

// note changes the entry durably. Targets that went since the job has read it stay gone.
func (a *Agent) note(e *Entry, change func()) error {
	defer a.locks.lock(e.Attachment.Volume)()
	now, found, err := a.c.Journal.Get(e.Attachment.Volume)
	if err != nil {
		return err
	}
	if found {
		e.Targets, e.Idle = now.Targets, now.Idle
	}
	change()
	return a.c.Journal.Put(*e)
}

// proofTries bounds how often evidence is collected anew because something happened meanwhile; the next call goes on.
const proofTries = 3

// prove returns when a receipt covers the attachment, or none is needed.
func (a *Agent) prove(ctx context.Context, e Entry, state DeviceState, report func(engine.Progress)) error {
	for range proofTries {
		s, err := a.notary.standing(ctx, e.Attachment)
		if err != nil || s.settled {
			return err
		}
		if s.fault != "" {
			return fmt.Errorf("%w: %v: %s", ErrHeld, e.Attachment, s.fault)
		}
		if s.volume.State == engine.Unavailable {
			return fmt.Errorf("%w: %v: %s", engine.ErrUnavailable, e.Attachment, s.volume.Reason)
		}
		a.c.Events.started(e.Attachment)
		err = a.earn(ctx, e, &state, s.volume.Name, a.c.Events.reporting(e.Attachment, report))
		if !errors.Is(err, engine.ErrStaleEpoch) && !errors.Is(err, errSucceeded) {
			return err
		}
	}
	return fmt.Errorf("%w: %v: its replicas or its writers keep changing; ask again", ErrInProgress, e.Attachment)
}

// errSucceeded: the writer that was stopped has died, and another one serves the device, which lives: that one must be stopped, too.
var errSucceeded = errors.New("another writer has taken the place of the one that was stopped")

// earn stops the writer, or shuts it out where its device is gone, and earns the receipt. errSucceeded where the writer has changed
// meanwhile.
func (a *Agent) earn(ctx context.Context, e Entry, state *DeviceState, name string, report func(engine.Progress)) error {
	facts := receipt.Facts{Name: name, Unflushed: e.Unflushed}
	if *state == DeviceAlive {
		report(engine.Progress{Phase: "flush", Since: a.c.Clock()})
		err := a.c.Engine.Barrier(ctx, e.Attachment)
		if err == nil {
			err = a.notary.earn(ctx, e.Attachment, facts, report)
		}
		if *state, err = a.after(ctx, e.Attachment, err); *state == DeviceAlive {
			return err
		}
	}
	facts.Reason = fmt.Sprintf("the device of %v is %s", e.Attachment, *state)
	if err := a.notary.fence(ctx, e.Attachment, true, facts.Reason); err != nil {
		return err
	}
	return a.notary.earn(ctx, e.Attachment, facts, report)
}

// after says what has become of the device whose writer could not be stopped, or was not stopped any more. Only a writer that is gone
// together with its device is to be shut out; every other error is the caller's.
func (a *Agent) after(ctx context.Context, at volume.Attachment, err error) (DeviceState, error) {
	switch {
	case errors.Is(err, engine.ErrDeviceLost):
		return DeviceLost, err
	case !errors.Is(err, engine.ErrNotStopped):
		return DeviceAlive, err
	}
	_, state, unknown := a.device(ctx, at.Volume)
	switch state {
	case DeviceAlive:
		return state, fmt.Errorf("%v: %w: %w", at, errSucceeded, err)
	case DeviceUnknown:
		return DeviceAlive, errors.Join(err, unknown) // nobody is shut out on a guess
	}
	return state, err
}

// Resume continues what the last process left unfinished, without waiting for it, and logs what else it finds: call
// it once at the start. Its error names the damaged entries; everything else is resumed all the same.
func (a *Agent) Resume(ctx context.Context) error {
	entries, damaged := a.c.Journal.List()
	for _, e := range entries {
		at := e.Attachment
		if e.Phase == Unstaging {
			a.c.Log.Info("detach resumed from the stage journal", "volume", at.Volume, "node", at.Node, "epoch", at.Epoch)
			if _, _, err := a.jobs.start(at.Volume, a.leave(at.Volume)); err != nil {
				return err
			}
			continue
		}
		if _, state, err := a.device(ctx, at.Volume); state != DeviceAlive {
			a.c.Log.Warn("staged volume without a living device", "volume", at.Volume, "node", at.Node, "epoch", at.Epoch,
				"device", string(state), "targets", len(e.Targets), "error", err)
		}
	}
	return damaged
}
