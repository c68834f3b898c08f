package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// Get implements engine.Control.
func (e *Engine) Get(ctx context.Context, id volume.ID) (engine.Volume, error) {
	f := e.survey(id)
	c, err := f.newest()
	if err != nil {
		return engine.Volume{}, e.maybeAway(err)
	}
	return e.live(ctx, e.placed(c, f.describe(c, e.Node))), nil
}

// placed says of replicas whose stores are away where they were: nobody knows a disk by its store's ID.
func (e *Engine) placed(c quorum.Config, v engine.Volume) engine.Volume {
	for i, voter := range c.Voters {
		r := &v.Replicas[i]
		if path, why, ok := e.stores.absent(voter.Store); ok && r.Place == "" {
			r.Place, r.Reason = path, why.Error()
		}
	}
	return v
}

// maybeAway turns "not found" into "cannot be told" where stores that might know the volume are away.
func (e *Engine) maybeAway(err error) error {
	away := e.stores.away()
	if away == nil || !isNotFound(err) {
		return err
	}
	return fmt.Errorf("%w: stores are away, so that nobody can tell whether the volume exists: %w", engine.ErrUnavailable, away)
}

// live adds what only the engine process knows: how far a rebuild is, which replica failed just now.
func (e *Engine) live(ctx context.Context, v engine.Volume) engine.Volume {
	p, err := e.alive(ctx, v.ID)
	if err != nil || p == nil {
		return v
	}
	v.Process = p.serves()
	if v.Attachment == nil { // no store can tell, and it is attached all the same
		v.Attachment, v.Staged = &volume.Attachment{Volume: v.ID, Node: e.Node, Epoch: p.epoch()}, true
	}
	if why := p.waits(); why != "" {
		v.State, v.Reason = engine.Unavailable, "requests wait: "+why
		return v
	}
	st, err := p.status(ctx)
	if err != nil {
		return v
	}
	for i, r := range st.Replicas[:min(len(st.Replicas), len(v.Replicas))] {
		if s := v.Replicas[i].State; s == engine.InSync || s == engine.Stale { // what is not where it belongs the process cannot see
			v.Replicas[i] = r
		}
	}
	if st.Stalled != "" {
		v.State, v.Reason = engine.Unavailable, "requests wait: "+st.Stalled
	}
	return v
}

// List implements engine.Control. A volume too few of whose replicas answer is listed as Unavailable; so is one that is attached and
// of which no store that is there knows anything.
func (e *Engine) List(ctx context.Context) ([]engine.Volume, error) {
	var out []engine.Volume
	for _, id := range e.known(ctx) {
		f := e.survey(id)
		c, err := f.newest()
		candidate, some := f.candidate()
		if !some {
			err = e.maybeAway(err)
		}
		switch {
		case isNotFound(err):
			continue
		case err != nil && !some:
			out = append(out, e.live(ctx, engine.Volume{Spec: engine.Spec{ID: id}, State: engine.Unavailable, Reason: err.Error()}))
			continue
		case err != nil:
			c = candidate
		}
		v := e.placed(c, f.describe(c, e.Node))
		if err != nil {
			v.State, v.Reason = engine.Unavailable, err.Error()
		}
		out = append(out, e.live(ctx, v))
	}
	return out, nil
}

// known are the volumes of the stores that are there, and those that have a device.
func (e *Engine) known(ctx context.Context) []volume.ID {
	set := map[volume.ID]struct{}{}
	for _, id := range idsIn(e.stores.present()) {
		set[id] = struct{}{}
	}
	devices, _ := e.Host.Devices(ctx) // where the host does not answer the stores' are listed
	for _, d := range devices {
		set[d.Volume] = struct{}{}
	}
	return sortedKeys(set)
}

// change changes the volume's configuration: through its engine process where one runs, else in an epoch of its own.
func (e *Engine) change(ctx context.Context, id volume.ID, remote func(*process) error, local func(*quorum.Config) error) error {
	h := e.handle(id)
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	if recovery := h.recovering(); recovery != nil {
		return recovery.Update(local)
	}
	p, err := e.alive(ctx, id)
	switch {
	case err != nil:
		return err
	case p != nil:
		return remote(p)
	}
	return e.update(ctx, id, local)
}

// Expand implements engine.Control.
func (e *Engine) Expand(ctx context.Context, id volume.ID, size volume.Bytes) (engine.Volume, error) {
	v, err := e.Get(ctx, id)
	if err != nil {
		return v, err
	}
	size = size.RoundUp(store.BlockSize)
	if size <= v.Size {
		return v, nil
	}
	if err := e.fits(v, size); err != nil {
		return v, err
	}
	err = e.change(ctx, id, func(p *process) error { return p.expand(ctx, size) }, growTo(size))
	if err != nil {
		return v, err
	}
	return e.Get(ctx, id)
}

func growTo(size volume.Bytes) func(*quorum.Config) error {
	return func(c *quorum.Config) error {
		c.Size = max(c.Size, size)
		return nil
	}
}

func (e *Engine) fits(v engine.Volume, size volume.Bytes) error {
	if size > sizeMax {
		return fmt.Errorf("%w: volume %s: %s, at most %s", engine.ErrOutOfRange, v.ID, size, sizeMax)
	}
	room, err := e.room()
	if err != nil {
		return err
	}
	for _, r := range room {
		for _, replica := range v.Replicas {
			if replica.ID == engine.ReplicaID(r.dir.ID().String()) && r.free < withEntries(size-v.Size) {
				return fmt.Errorf("%w: volume %s cannot grow to %s: store %s has room for %s more", engine.ErrNoSpace, v.ID, size, r.dir.Path(), r.free)
			}
		}
	}
	return nil
}

// SetFormat implements engine.Control.
func (e *Engine) SetFormat(ctx context.Context, id volume.ID, f engine.Format) error {
	return e.change(ctx, id, func(p *process) error { return p.setFormat(ctx, f) }, formatTo(f))
}

var stageOrder = map[engine.FormatStage]int{engine.Unformatted: 0, engine.Formatting: 1, engine.Formatted: 2}

func formatTo(f engine.Format) func(*quorum.Config) error {
	return func(c *quorum.Config) error {
		have := attributesOf(*c).Format
		to, ok := stageOrder[f.Stage]
		made := have.Stage == engine.Formatted && (have.Stage != f.Stage || have.FSType != f.FSType)
		if !ok || to < stageOrder[have.Stage] || made {
			return fmt.Errorf("%w: format %v after %v", engine.ErrInvalid, f, have)
		}
		return editAttributes(c, func(a *attributes) { a.Format = f })
	}
}

// Publish implements engine.Control.
func (e *Engine) Publish(ctx context.Context, id volume.ID, node volume.NodeID, o engine.PublishOptions) (volume.Attachment, error) {
	h := e.handle(id)
	if err := h.lock(ctx); err != nil {
		return volume.Attachment{}, err
	}
	defer h.unlock()
	v, err := e.Get(ctx, id)
	if err != nil {
		return volume.Attachment{}, err
	}
	if node != e.Node {
		return volume.Attachment{}, fmt.Errorf("%w: node %s; volume %s is on node %s", engine.ErrNotFound, node, id, e.Node)
	}
	if v.Attachment != nil {
		return published(v, node, o)
	}
	if v.State == engine.Quarantined {
		return volume.Attachment{}, fmt.Errorf("%w: volume %s: %s", engine.ErrQuarantined, id, v.Reason)
	}
	if err := e.refill(ctx, id); err != nil {
		e.Log.Warn("salvaged volume gets no new replicas", "volume", id, "cause", err)
	}
	s, err := e.open(ctx, id, ForControl, 0)
	if err != nil {
		return volume.Attachment{}, err
	}
	defer s.Close()
	err = s.Update(func(c *quorum.Config) error {
		c.Published, c.Flags = s.Epoch(), c.Flags&^quorum.Staged
		return editAttributes(c, func(a *attributes) { a.Node, a.Options = node, o })
	})
	return volume.Attachment{Volume: id, Node: node, Epoch: s.Epoch()}, err
}

// published answers a Publish of a volume that is published.
func published(v engine.Volume, node volume.NodeID, o engine.PublishOptions) (volume.Attachment, error) {
	switch a := *v.Attachment; {
	case a.Node != node:
		return volume.Attachment{}, fmt.Errorf("%w: volume %s is published to node %s", engine.ErrAttached, v.ID, a.Node)
	case v.Options != o:
		return volume.Attachment{}, fmt.Errorf("%w: volume %s is published to node %s as %+v, asked for is %+v", engine.ErrExists, v.ID, node, v.Options, o)
	default:
		return a, nil
	}
}

// Unpublish implements engine.Control.
func (e *Engine) Unpublish(ctx context.Context, a volume.Attachment) error {
	h := e.handle(a.Volume)
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	v, err := e.Get(ctx, a.Volume)
	switch {
	case isNotFound(err):
		return nil
	case err != nil:
		return err
	case v.Attachment == nil || v.Attachment.Epoch != a.Epoch:
		return nil
	case !v.Sealed:
		return fmt.Errorf("%w: %s: writer of epoch %d", engine.ErrNotSealed, a, v.Writer)
	}
	if p, err := e.alive(ctx, a.Volume); err != nil || p != nil {
		return errors.Join(err, fmt.Errorf("%w: %s: its device is still there", engine.ErrNotSealed, a))
	}
	return e.update(ctx, a.Volume, func(c *quorum.Config) error {
		c.Published, c.Flags = 0, c.Flags&^quorum.Staged
		return editAttributes(c, func(at *attributes) { at.Node, at.Options = "", engine.PublishOptions{} })
	})
}

// CreateSnapshot implements engine.Control.
func (e *Engine) CreateSnapshot(context.Context, volume.ID, string) error {
	return engine.ErrUnsupported
}

// DeleteSnapshot implements engine.Control.
func (e *Engine) DeleteSnapshot(context.Context, volume.ID, string) error {
	return engine.ErrUnsupported
}

// Clone implements engine.Control.
func (e *Engine) Clone(context.Context, volume.ID, string, engine.Spec) (engine.Volume, error) {
	return engine.Volume{}, engine.ErrUnsupported
}
