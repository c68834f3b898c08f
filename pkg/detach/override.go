package detach

import (
	"context"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Override is an operator's word to let go of a volume although the gate says no. It is good for one epoch, hence once.
type Override struct {
	Volume volume.ID    `json:"volume"`
	Epoch  volume.Epoch `json:"epoch"` // of the attachment
	Reason string       `json:"reason"`
	Actor  string       `json:"actor"`
}

// valid says why o is not an override of the attachment.
func (o Override) valid(a volume.Attachment) error {
	switch {
	case o.Volume != a.Volume || o.Epoch != a.Epoch:
		return fmt.Errorf("%w: it names volume %s at epoch %d, and open is %v", ErrOverride, o.Volume, o.Epoch, a)
	case strings.TrimSpace(o.Reason) == "" || strings.TrimSpace(o.Actor) == "":
		return fmt.Errorf("%w: volume %s: it needs a reason and somebody who answers for it", ErrOverride, o.Volume)
	}
	return nil
}

func (o Override) facts(name string) receipt.Facts {
	return receipt.Facts{Name: name, Forced: true, Reason: o.Reason, Actor: o.Actor}
}

// Override fences the volume's writers, alive or not, and puts a forced receipt in force, even where copies
// disagree. ErrOverride unless o names the open attachment's epoch, a reason and an actor, and there is something to
// override. engine.ErrUnavailable where too few replicas answer to fence: nothing can override that. Unpublish answers OK
// afterwards. The work goes on when ctx ends: ErrInProgress then.
func (g *Gate) Override(ctx context.Context, o Override) error {
	for first := true; ; first = false {
		s, over, err := g.overridable(ctx, o, first)
		if err != nil || over {
			return err
		}
		g.c.Log.Warn("operator overrides the gate", "volume", o.Volume, "node", s.facts.Open.Node, "epoch", o.Epoch,
			"reason", o.Reason, "actor", o.Actor)
		// Joining other work proves nothing about this override: look again after it.
		started, err := g.jobs.do(ctx, o.Volume, g.shutOut(s, o.facts(s.name)))
		if started && err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("%w: override of volume %s: %w", ErrInProgress, o.Volume, err)
		}
	}
}

// overridable looks whether o applies. over: a receipt came into force since the first look.
func (g *Gate) overridable(ctx context.Context, o Override, first bool) (s survey, over bool, err error) {
	s.facts = Facts{Volume: o.Volume}
	if err := g.askEngine(ctx, &s); err != nil {
		return s, false, err
	}
	f := &s.facts
	switch {
	case !f.Found:
		return s, false, fmt.Errorf("volume %s: %w", o.Volume, engine.ErrNotFound)
	case f.Unavailable != "":
		s.decision = Decide(*f)
		return s, false, s.refusal()
	case f.Open == nil:
		return s, !first, unlessFirst(first, fmt.Errorf("%w: volume %s is attached nowhere", ErrOverride, o.Volume))
	}
	if err := o.valid(*f.Open); err != nil {
		return s, false, err
	}
	if f.Receipt || !f.Staged {
		return s, !first, unlessFirst(first, fmt.Errorf("%w: volume %s needs none: ControllerUnpublishVolume answers OK", ErrOverride, o.Volume))
	}
	f.Override = true
	s.decision = force(*f)
	return s, false, nil
}

func unlessFirst(first bool, err error) error {
	if first {
		return err
	}
	return nil
}
