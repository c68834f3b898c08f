package detach

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// BeginStage notes durably that the volume is about to be staged; Phase, Boot, targets and times are set here. The same
// staging again is no error. Where the way out had begun, or an entry of an older attachment is left, that is finished first.
// ErrHeld where it is staged elsewhere; engine.ErrExists where it is staged in another way; ErrJournal where the entry is
// damaged and the volume has a device; else the errors of Unstage.
func (a *Agent) BeginStage(ctx context.Context, e Entry) error {
	id := e.Attachment.Volume
	for {
		again, err := a.beginStage(ctx, e)
		if err != nil || !again {
			return err
		}
		// Its old stay must be over: a barrier half-way through would stop the new writer.
		if _, err := a.jobs.do(ctx, id, a.leave(id)); err != nil {
			return fmt.Errorf("stage %v: what was staged before must be detached first: %w", e.Attachment, err)
		}
	}
}

// beginStage writes the entry, unless an old one has to leave first.
func (a *Agent) beginStage(ctx context.Context, e Entry) (again bool, err error) {
	defer a.locks.lock(e.Attachment.Volume)()
	old, found, err := a.c.Journal.Get(e.Attachment.Volume)
	switch {
	case errors.Is(err, ErrJournal):
		err = a.replaceable(ctx, e.Attachment.Volume, err)
	case found && old.Phase == Unstaging:
		return true, nil
	case found && old.Attachment != e.Attachment:
		old.Phase = Unstaging
		return true, a.c.Journal.Put(old)
	case found:
		return false, errors.Join(sameStaging(old, e), a.rebooted(old))
	}
	if err != nil {
		return false, err
	}
	e.Phase, e.Targets, e.Published, e.Unflushed = Staging, nil, false, ""
	e.Idle, e.Boot = a.now(), a.c.Boot
	return false, a.c.Journal.Put(e)
}

// replaceable sets a damaged entry aside where the volume has no device here, so that nothing can be mounted; else it
// returns the damage.
func (a *Agent) replaceable(ctx context.Context, id volume.ID, damage error) error {
	if _, state, err := a.device(ctx, id); err != nil || state != DeviceNone {
		return damage
	}
	a.c.Log.Warn("damaged stage journal entry set aside", "volume", id, "node", a.c.Node, "error", damage)
	return a.c.Journal.SetAside(id)
}

func sameStaging(old, e Entry) error {
	switch {
	case old.Staging != e.Staging:
		return fmt.Errorf("%w: %v is staged at %s, not %s; unstage it there first", ErrHeld, old.Attachment, old.Staging, e.Staging)
	case old.Access != e.Access || old.FSType != e.FSType || old.ReadOnly != e.ReadOnly || !slices.Equal(old.Flags, e.Flags):
		return fmt.Errorf("%v is staged in another way: %w", old.Attachment, engine.ErrExists)
	}
	return nil
}

// rebooted starts an entry anew that is from before the machine's last start: its mounts are gone.
func (a *Agent) rebooted(e Entry) error {
	var s NodeStatus
	if a.describe(&s, e); !s.Rebooted {
		return nil
	}
	e.Phase, e.Targets, e.Device, e.Idle, e.Boot = Staging, nil, "", a.now(), a.c.Boot
	return a.c.Journal.Put(e)
}

// FinishStage notes that device and mount exist. engine.ErrNotFound without an entry; ErrInProgress where the way out
// has begun meanwhile.
func (a *Agent) FinishStage(_ context.Context, id volume.ID, device string) error {
	return a.update(id, func(e *Entry) { e.Phase, e.Device = Staged, device })
}

// AddTarget notes durably that the volume is about to be published to t. ErrInProgress where the way out has begun,
// engine.ErrNotFound where the volume is not staged.
func (a *Agent) AddTarget(_ context.Context, id volume.ID, t Target) error {
	return a.update(id, func(e *Entry) {
		e.Targets = append(slices.DeleteFunc(e.Targets, func(o Target) bool { return o.Path == t.Path }), t)
		e.Published, e.Idle = true, time.Time{}
	})
}

// update changes an entry that is not on its way out.
func (a *Agent) update(id volume.ID, change func(*Entry)) error {
	defer a.locks.lock(id)()
	e, found, err := a.c.Journal.Get(id)
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("volume %s is not staged on node %s: %w", id, a.c.Node, engine.ErrNotFound)
	case e.Phase == Unstaging:
		return fmt.Errorf("%w: volume %s is being unstaged from node %s", ErrInProgress, id, a.c.Node)
	}
	change(&e)
	return a.c.Journal.Put(e)
}

// RemoveTarget notes that nothing is mounted at path any more. An unknown path or volume is no error.
func (a *Agent) RemoveTarget(_ context.Context, id volume.ID, path string) error {
	defer a.locks.lock(id)()
	e, found, err := a.c.Journal.Get(id)
	if err != nil || !found {
		return err
	}
	before := len(e.Targets)
	e.Targets = slices.DeleteFunc(e.Targets, func(t Target) bool { return t.Path == path })
	if len(e.Targets) == before {
		return nil
	}
	if len(e.Targets) == 0 {
		e.Idle = a.now()
	}
	return a.c.Journal.Put(e)
}

// now is the wall clock as the journal keeps it: no monotonic reading survives a restart.
func (a *Agent) now() time.Time { return a.c.Clock().UTC().Truncate(time.Millisecond) }
