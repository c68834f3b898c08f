package mirror

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// salvageStride is the distance between the epochs of salvages. Stores that are away may have gone on to epochs that nobody here has
// seen; no volume is attached a million times between two salvages, so that nothing of theirs is above the next multiple.
const salvageStride volume.Epoch = 1 << 20

// salvage makes one replica what the volume is. It is a session without a device: the only member is the replica that was chosen,
// the voters are the replicas on the stores that are there.
//
//	examine ──▶ floor ──▶ the chosen replica accepts ──▶ a majority accepts ──▶ settle ──▶ Barrier ──▶ Seal
//	   │          │                 │                                                                   └ forced receipt; usable
//	   │          │                 └ decided: quarantined and pending until Seal, so that no attach goes by the receipt
//	   │          └ the epoch is remembered before anybody has it
//	   └ nothing is changed so far but that stores without a replica get one that no configuration knows
type salvage struct {
	*Session
	engine   *Engine
	look     *look
	chosen   *holding
	source   *replica // the chosen one, open for writing
	choice   engine.SalvageChoice
	trace    engine.Salvaged
	next     quorum.Config
	fates    map[int64][]fate // what becomes of blocks that are not what their checksum says
	examined []int64          // regions
	findings []engine.Finding // what no copy was right for
}

// Salvage implements engine.Control.
func (e *Engine) Salvage(ctx context.Context, id volume.ID, o engine.SalvageOrder, progress func(engine.Progress)) (engine.Barrier, error) {
	h := e.handle(id)
	b, err := h.salvage.do(ctx, progress, func(ctx context.Context, report func(engine.Progress)) (engine.Barrier, error) {
		if err := h.lock(ctx); err != nil {
			return engine.Barrier{}, err
		}
		defer h.unlock()
		return e.salvage(ctx, h, o, report)
	})
	if err == nil && b.Salvaged.From != o.From {
		err = fmt.Errorf("%w on volume %s: it is being salvaged from store %s", engine.ErrBusy, id, b.Salvaged.From)
	}
	return b, err
}

// errSalvaging refuses whatever else wants the volume between a salvage and its seal.
func errSalvaging(id volume.ID) error {
	return fmt.Errorf("%w: volume %s is being salvaged", engine.ErrBusy, id)
}

func (e *Engine) salvage(ctx context.Context, h *handle, o engine.SalvageOrder, report func(engine.Progress)) (engine.Barrier, error) {
	l, err := e.look(ctx, h.id)
	if err != nil {
		return engine.Barrier{}, err
	}
	defer l.close()
	u, err := e.use(ctx, h.id)
	if err != nil {
		return engine.Barrier{}, err
	}
	p, err := e.plan(l, u)
	if err != nil {
		return engine.Barrier{}, err
	}
	choice, err := chosen(p, o, u)
	if err != nil {
		return engine.Barrier{}, err
	}
	if u.device {
		if err := e.Host.GiveUp(ctx, h.id, "salvage: "+o.Reason); err != nil {
			return engine.Barrier{}, err
		}
	}
	if earlier := h.recovering(); earlier != nil { // a salvage that was not sealed
		earlier.Close()
		h.setRecovery(nil)
	}
	s := e.newSalvage(l, choice)
	b, err := s.run(report)
	if err != nil {
		s.Close()
		return b, fmt.Errorf("salvage of volume %s from store %s: %w", h.id, choice.Place, err)
	}
	return b, e.keep(h, s.Session)
}

// chosen is the choice that was ordered, or why it cannot be had.
func chosen(p engine.SalvagePlan, o engine.SalvageOrder, u use) (engine.SalvageChoice, error) {
	switch {
	case u.who != "" && !(u.device && o.Kill && len(p.Choices) > 0):
		return engine.SalvageChoice{}, fmt.Errorf("%w: volume %s: %s", engine.ErrAttached, p.Volume, p.Because)
	case p.Outlook == engine.OutlookComesUp:
		return engine.SalvageChoice{}, fmt.Errorf("%w: volume %s comes up by itself: %s; attach it, there is nothing to salvage", engine.ErrNotNeeded, p.Volume, p.Because)
	case strings.TrimSpace(o.Reason) == "":
		return engine.SalvageChoice{}, fmt.Errorf("%w: volume %s: a salvage needs a reason", engine.ErrInvalid, p.Volume)
	}
	var can []string
	for _, c := range p.Choices {
		if c.From == o.From {
			return c, nil
		}
		can = append(can, fmt.Sprintf("%s (%s)", c.From, c.Place))
	}
	for _, c := range p.Copies {
		if c.ID == o.From {
			return engine.SalvageChoice{}, fmt.Errorf("%w: volume %s: store %s cannot be chosen: %s", engine.ErrUnavailable, p.Volume, o.From, c.Reason)
		}
	}
	return engine.SalvageChoice{}, fmt.Errorf("%w: volume %s has no replica %q to choose; there are: %s", engine.ErrInvalid, p.Volume, o.From, strings.Join(can, ", "))
}

func (e *Engine) newSalvage(l *look, c engine.SalvageChoice) *salvage {
	s := &salvage{engine: e, look: l, choice: c, fates: map[int64][]fate{}}
	s.Session = newSession(OpenConfig{ID: l.id, Stores: e.stores.present(), Holder: e.holder("salvage", l.id), Boot: e.boot, Log: e.Log, Events: e.Events})
	s.salvaging, s.unclean = true, true
	s.stopped.Store(true)
	s.view.Store(&view{})
	for _, h := range l.readable() {
		if h.id() == c.From {
			s.chosen = h
		}
	}
	s.super, s.hash = s.chosen.super, l.hash
	return s
}

func (s *salvage) run(report func(engine.Progress)) (b engine.Barrier, err error) {
	steps := []func() error{
		s.openReplicas, func() error { return s.examine(report) }, s.plan, s.decide, s.bequeath, func() error { return s.settle(report) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return b, err
		}
	}
	return s.barrier()
}

// openReplicas opens the chosen replica, every other one that is there, and makes one where a store has none, up to as many as the
// volume was given. Stores that are away are no voters: what they hold may be newer than what is chosen, and must not be overwritten
// as soon as they are back.
func (s *salvage) openReplicas() error {
	r, err := s.open(s.chosen)
	if err != nil {
		return err
	}
	s.source = r
	replicas := []*replica{r}
	for _, h := range s.look.others(s.chosen) {
		if len(replicas) == s.look.wanted() {
			break
		}
		r, err := s.open(h)
		switch {
		case errors.Is(err, engine.ErrBusy):
			s.view.Store(&view{replicas: replicas})
			return err
		case err != nil:
			s.log.Warn("replica cannot be opened for the salvage", "volume", s.id, "store", h.dir.Path(), "cause", err)
			continue
		}
		r.index = len(replicas)
		replicas = append(replicas, r)
	}
	s.view.Store(&view{replicas: s.fillUp(replicas)})
	return nil
}

func (s *salvage) open(h *holding) (*replica, error) {
	opened, err := openDrained(func() (*store.Replica, error) { return h.dir.OpenUnknown(s.id, s.holder) })
	if locked, ok := errors.AsType[*vfs.LockedError](err); ok {
		return nil, fmt.Errorf("%w: volume %s is held by %s", engine.ErrBusy, s.id, locked.Holder)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	return &replica{Replica: opened, dir: h.dir, lossy: s.look.lossy(h)}, nil
}

// wanted is how many replicas the volume was given.
func (l *look) wanted() int {
	n := len(l.config.Voters)
	if t := attributesOf(l.config).Salvaged; t != nil {
		n = max(n, t.Replicas)
	}
	return min(n, quorum.ReplicasMax)
}

// others are the replicas beside the chosen one: those that the newest configuration names first.
func (l *look) others(chosen *holding) (out []*holding) {
	for _, admitted := range []bool{true, false} {
		for _, h := range l.holdings {
			if h.why == nil && h != chosen && (l.config.Place(h.at) >= 0) == admitted {
				out = append(out, h)
			}
		}
	}
	return out
}

// fillUp makes replicas on stores that have none. They hold nothing, and no configuration knows them yet.
func (s *salvage) fillUp(replicas []*replica) []*replica {
	for _, p := range s.look.peeks {
		if len(replicas) == s.look.wanted() {
			break
		}
		if !errors.Is(p.err, store.ErrNotFound) {
			continue
		}
		r, err := makeEmpty(p.dir, s.super, s.look.config, s.holder)
		if err != nil {
			s.log.Warn("replica cannot be made for the salvage", "volume", s.id, "store", p.dir.Path(), "cause", err)
			continue
		}
		r.index = len(replicas)
		replicas = append(replicas, r)
	}
	return replicas
}
