package detach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// GateConfig is what a Gate needs. Required unless said otherwise.
type GateConfig struct {
	Control engine.Control
	Book    *receipt.Book
	// Agents returns the way to a node's agent; an error where the node cannot be asked.
	Agents func(volume.NodeID) (AgentClient, error)

	// Lost says that a node is lost, and why that is believed; only a node that does not answer is asked about.
	// Optional: nil on a single machine.
	Lost func(ctx context.Context, node volume.NodeID) (reason string, lost bool)
	// Presumed is Lost where nobody has decided it, and a policy believes it: then a writer that the engine finds alive is left alone. Optional.
	Presumed func(ctx context.Context, node volume.NodeID) (reason string, lost bool)
	// Overrides returns an operator's override for the attachment, if there is one. Optional.
	Overrides func(ctx context.Context, a volume.Attachment) (Override, bool)

	Clock         func() time.Time // optional: time.Now
	Log           *slog.Logger     // optional: silent
	Events        Events           // optional
	StatusTimeout time.Duration    // optional: StatusTimeout
}

// StatusTimeout is how long a node may take to answer before it counts as silent.
const StatusTimeout = 5 * time.Second

func (c GateConfig) validate() error {
	if c.Control == nil || c.Book == nil || c.Agents == nil {
		return errors.New("gate: control, book and agents are required")
	}
	return nil
}

func (c GateConfig) withDefaults() GateConfig {
	if c.Lost == nil {
		c.Lost = func(context.Context, volume.NodeID) (string, bool) { return "", false }
	}
	if c.Presumed == nil {
		c.Presumed = func(context.Context, volume.NodeID) (string, bool) { return "", false }
	}
	if c.Overrides == nil {
		c.Overrides = func(context.Context, volume.Attachment) (Override, bool) { return Override{}, false }
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.StatusTimeout = cmp.Or(c.StatusTimeout, StatusTimeout)
	return c
}

// Gate is the controller's half: it decides whether a detach may finish. Safe for concurrent use.
type Gate struct {
	c      GateConfig
	notary notary
	jobs   *jobs
}

// NewGate returns a gate. Call Close at the end.
func NewGate(c GateConfig) (*Gate, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Gate{
		c:      c,
		notary: notary{control: c.Control, book: c.Book, log: c.Log, events: c.Events},
		jobs:   newJobs(c.Clock),
	}, nil
}

// Close stops the gate's jobs, which the next Unpublish begins again, and waits for them.
func (g *Gate) Close() { g.jobs.close() }

// rounds bounds how often facts are collected within one Unpublish. A detach needs two or three: finish or fence, close, see.
const rounds = 6

// Unpublish is ControllerUnpublish: on nil the volume is provably not attached to the node (to any node where node is
// empty), by a receipt in force or because no writer attached. See Decide for all answers. Work that it starts goes on
// when ctx ends: ErrInProgress then.
func (g *Gate) Unpublish(ctx context.Context, id volume.ID, node volume.NodeID) error {
	err := g.unpublish(ctx, id, node)
	if err != nil {
		g.c.Log.Info("detach refused", "volume", id, "node", node, "error", err)
		g.c.Events.refused(id, node, err)
	}
	return err
}

func (g *Gate) unpublish(ctx context.Context, id volume.ID, node volume.NodeID) error {
	for range rounds {
		s, err := g.survey(ctx, id, node)
		if err != nil {
			return err
		}
		ok, err := g.perform(ctx, s)
		if ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: volume %s: its state keeps changing; ask again", ErrInProgress, id)
}

// survey is one collection of facts, what they decide, and what was needed to find them.
type survey struct {
	facts    Facts
	decision Decision
	name     string // the orchestrator's name of the volume
	override Override
	agent    AgentClient
	volume   engine.Volume
}

// survey collects only what decides: the node is not asked where the engine's word is enough.
func (g *Gate) survey(ctx context.Context, id volume.ID, node volume.NodeID) (survey, error) {
	s := survey{facts: Facts{Volume: id, Asked: node}}
	if err := g.askEngine(ctx, &s); err != nil {
		return s, err
	}
	if s.decision = Decide(s.facts); s.decision.Action == Ask {
		g.askNode(ctx, &s)
		s.decision = Decide(s.facts)
	}
	return s, nil
}

func (g *Gate) askEngine(ctx context.Context, s *survey) error {
	f := &s.facts
	v, err := g.c.Control.Get(ctx, f.Volume)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return nil
	case errors.Is(err, engine.ErrUnavailable):
		f.Found, f.Unavailable = true, err.Error()
		return nil
	case err != nil:
		return fmt.Errorf("volume %s: %w", f.Volume, err)
	}
	s.volume, s.name = v, v.Name
	f.Found, f.Open, f.Staged = true, v.Attachment, v.Staged
	switch v.State {
	case engine.Unavailable:
		f.Unavailable = cmp.Or(v.Reason, "too few replicas answer")
		return nil
	case engine.Quarantined:
		f.Quarantined = cmp.Or(v.Reason, "copies disagree and nobody can tell which is right")
	}
	return g.askReceipts(ctx, s)
}

func (g *Gate) askReceipts(ctx context.Context, s *survey) (err error) {
	if s.facts.Open == nil {
		return nil
	}
	s.override, s.facts.Override = g.c.Overrides(ctx, *s.facts.Open)
	if s.facts.Override {
		s.facts.Override = s.override.valid(*s.facts.Open) == nil
	}
	if !s.facts.Staged {
		return nil
	}
	s.facts.Receipt, s.facts.ReceiptFault, err = g.notary.covered(ctx, s.volume)
	return err
}

func (g *Gate) askNode(ctx context.Context, s *survey) {
	f := &s.facts
	status, err := g.statusOf(ctx, s)
	if err == nil {
		f.Reach, f.Node = Answers, status
		return
	}
	f.Reach, f.Quiet = Silent, err.Error()
	if reason, isLost := g.c.Lost(ctx, f.Open.Node); isLost {
		f.Lost = fmt.Sprintf("node %s is lost: %s", f.Open.Node, cmp.Or(reason, "no reason given"))
	} else if reason, isLost := g.c.Presumed(ctx, f.Open.Node); isLost {
		f.Presumed = fmt.Sprintf("node %s is believed to be lost: %s", f.Open.Node, cmp.Or(reason, "no reason given"))
	}
}

func (g *Gate) statusOf(ctx context.Context, s *survey) (NodeStatus, error) {
	agent, err := g.c.Agents(s.facts.Open.Node)
	if err != nil {
		return NodeStatus{}, err
	}
	s.agent = agent
	ctx, cancel := context.WithTimeout(ctx, g.c.StatusTimeout)
	defer cancel()
	return agent.Status(ctx, s.facts.Volume)
}

// perform does what was decided. ok: the detach has finished; neither ok nor an error: look again.
func (g *Gate) perform(ctx context.Context, s survey) (ok bool, err error) {
	switch d := s.decision; d.Action {
	case Done:
		return true, nil
	case Close:
		return g.close(ctx, s)
	case Finish:
		return false, g.finish(ctx, s)
	case Fence:
		_, err := g.jobs.do(ctx, s.facts.Volume, g.shutOut(s, receipt.Facts{Name: s.name, Reason: d.Because}))
		return false, err
	case Force:
		_, err := g.jobs.do(ctx, s.facts.Volume, g.shutOut(s, s.override.facts(s.name)))
		return false, err
	}
	return false, s.refusal()
}

// refusals says which error an action that refuses comes to.
var refusals = map[Action]error{
	Held: ErrHeld, Wait: ErrNodeSilent, Unavailable: engine.ErrUnavailable, Quarantined: ErrDataLoss,
}

func (s survey) refusal() error {
	return fmt.Errorf("%w: volume %s: %s; next: %s", refusals[s.decision.Action], s.facts.Volume, s.decision.Because, s.decision.Next)
}

// close ends the attachment. Where a writer came in between, or somebody else closed it, the facts are looked at again.
func (g *Gate) close(ctx context.Context, s survey) (bool, error) {
	a := *s.facts.Open
	err := g.c.Control.Unpublish(ctx, a)
	switch {
	case err == nil:
		g.c.Log.Info("detached", "volume", a.Volume, "node", a.Node, "epoch", a.Epoch)
		return true, nil
	case errors.Is(err, engine.ErrNotSealed) && s.facts.Receipt:
		return false, g.takeAway(ctx, s, err)
	case errors.Is(err, engine.ErrNotSealed), errors.Is(err, engine.ErrStaleEpoch):
		return false, nil
	}
	return false, fmt.Errorf("unpublish %v: %w", a, err)
}

// takeAway has the node end what is left of an attachment whose receipt is in force: its job failed after that, and where the orchestrator has
// forgotten the volume nobody else comes back for it.
func (g *Gate) takeAway(ctx context.Context, s survey, left error) error {
	if _, err := g.statusOf(ctx, &s); err != nil {
		return fmt.Errorf("%w: %v: a receipt is in force, and its device is to be taken away: %w: %w", ErrNodeSilent, *s.facts.Open, left, err)
	}
	return g.finish(ctx, s)
}

// finish has the node earn the receipt.
func (g *Gate) finish(ctx context.Context, s survey) error {
	bounded, cancel := inTime(ctx)
	defer cancel()
	err := s.agent.Finish(bounded, *s.facts.Open)
	switch {
	case err == nil, errors.Is(err, engine.ErrStaleEpoch):
		return nil
	case bounded.Err() != nil && !errors.Is(err, ErrInProgress):
		return fmt.Errorf("%w: %v: %w", ErrInProgress, *s.facts.Open, err)
	}
	return err
}

// shutOut fences the attachment's writers and earns a receipt without the node. It looks first: what joins or repeats it
// must not fence what has been sealed meanwhile.
func (g *Gate) shutOut(s survey, f receipt.Facts) work {
	a, d := *s.facts.Open, s.decision
	return func(ctx context.Context, report func(engine.Progress)) error {
		now, err := g.notary.standing(ctx, a)
		if err != nil || now.settled {
			return err
		}
		g.c.Events.started(a)
		err = g.notary.fence(ctx, a, d.Kill, f.Reason)
		if err == nil {
			err = g.notary.earn(ctx, a, f, g.c.Events.reporting(a, report))
		}
		if errors.Is(err, engine.ErrStaleEpoch) {
			return nil // something happened meanwhile: the caller looks again
		}
		return err
	}
}
