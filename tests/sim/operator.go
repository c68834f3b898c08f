package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/tests/sim/machine"
)

// ask is what an operator, a monitor or an impatient orchestrator asks for beside everything else. It may be refused.
func (w *world) ask(r *rand.Rand, f fault) {
	s := w.server()
	if s == nil {
		return
	}
	w.count(f)
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(w.ctx(), between(r, time.Second, time.Minute))
		defer cancel()
		err := s.heard(s.asked(ctx, f))
		w.trace.add(func() string { return fmt.Sprintf("%s: %v", f, err) })
	})
}

func (s *server) asked(ctx context.Context, f fault) error {
	switch f {
	case askedVerify:
		_, err := s.engine.Verify(ctx, volumeID, nil)
		return err
	case askedRebuild:
		return s.engine.Rebuild(ctx, volumeID, nil)
	case askedExpand:
		v, err := s.engine.Get(ctx, volumeID)
		if err != nil || v.Size > volume.Bytes(s.w.plan.regions+4)*regionBytes {
			return err
		}
		_, err = s.engine.Expand(ctx, volumeID, v.Size+regionBytes)
		return err
	case askedElsewhere:
		return s.elsewhere(ctx)
	}
	_, err := s.engine.List(ctx)
	_, status := s.agent.Status(ctx, volumeID)
	_, attached := s.engine.Attached(ctx, volumeID)
	return errors.Join(err, status, attached)
}

// elsewhere asks for detaches that have nothing to do: from a node that does not have the volume, and of a volume that nobody knows. Both
// are done at once, where anybody can tell, and touch nothing.
func (s *server) elsewhere(ctx context.Context) error {
	err := errors.Join(s.gate.Unpublish(ctx, volumeID, "elsewhere"), s.gate.Unpublish(ctx, "nobody", nodeID))
	if err != nil && s.w.healed() && ctx.Err() == nil && !errors.Is(err, engine.ErrUnavailable) {
		select {
		case <-s.process.Dead():
		default:
			s.w.fail("a detach that has nothing to do is refused: %v", err)
		}
	}
	return err
}

// override is an operator's decision to let the volume go although copies disagree. It is asked for only where a disk has ruined the last good one.
func (w *world) override(at volume.Attachment, cause error) {
	if !errors.Is(cause, detach.ErrDataLoss) || w.plan.profile != ruin || !w.healed() {
		return
	}
	if w.engineGaveUp() {
		w.guest.giveUpRotten()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overridden == nil || w.overridden.Epoch != at.Epoch {
		w.faults[overridden]++
		w.overridden = &detach.Override{Volume: at.Volume, Epoch: at.Epoch, Reason: "its only good copy has rotted", Actor: "the operator"}
	}
}

func (w *world) overrides(_ context.Context, at volume.Attachment) (detach.Override, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.overridden == nil || w.overridden.Epoch != at.Epoch {
		return detach.Override{}, false
	}
	return *w.overridden, true
}

// salvage is an operator's decision for a volume that is quarantined: one replica is what the volume is, rotten blocks and all.
func (o *orchestrator) salvage(ctx context.Context, s *server, cause error) {
	if !errors.Is(cause, engine.ErrQuarantined) || o.w.plan.profile != ruin || !o.w.healed() {
		return
	}
	p, err := s.engine.SalvagePlan(ctx, volumeID, o.r.IntN(2) == 0, nil)
	if err == nil && len(p.Choices) == 0 {
		err = fmt.Errorf("nothing to choose: %s: %s", p.Outlook, p.Because)
	}
	if err == nil {
		o.w.count(salvaged)
		o.w.giveUpRotten()
		_, err = s.gate.Salvage(ctx, detach.Salvage{Volume: volumeID, From: pick(o.r, p.Choices).From, Reason: "nothing else is left", Actor: "the operator"}, nil)
	}
	o.w.trace.add(func() string { return fmt.Sprintf("salvage: %v", err) })
}

// giveUpRotten notes that blocks that have rotted may hold anything from now on, and that the voters are whom the operator decides for.
func (w *world) giveUpRotten() {
	w.invariants.voters = nil
	w.guest.giveUpRotten()
}

func (g *guest) giveUpRotten() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.givenUp = g.rotten
}

// engineEnds notes that an engine ends that nobody has killed, as it does where its only disk rots in the very moment in which it mends it. It leaves dirty regions, and what rotted
// in one of them is told by nothing from a write that was not flushed (pkg/mirror/DESIGN.md, Unsettled blocks). That the volume was let go is told by the forced receipt alone then.
func (w *world) engineEnds(of *machine.Process, err error) {
	select {
	case <-of.Dead():
		return
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gaveUp = w.gaveUp || err != nil
}

func (w *world) engineGaveUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gaveUp
}
