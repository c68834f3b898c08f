package enginetest

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// On is the engine's half on a node.
func (m *Memory) On(node volume.NodeID) engine.Node { return memNode{m, node} }

type memNode struct {
	m    *Memory
	node volume.NodeID
}

// Attach implements engine.Node.
func (n memNode) Attach(_ context.Context, a volume.Attachment) (engine.Device, error) {
	m := n.m
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.opened(a)
	if err != nil {
		return engine.Device{}, err
	}
	if d, again, err := n.attachedAlready(v, r, a); again || err != nil {
		return d, err
	}
	s, r, err := m.take(v, r, a)
	if err != nil {
		return engine.Device{}, err
	}
	s.unclean = r.writer > 0 && !r.clean
	r.staged, r.sealed, r.clean, r.writer = true, false, false, r.epoch
	if s.unclean {
		r.format = r.format.AfterUnclean()
	}
	if _, err := m.commit(v, r); err != nil {
		return engine.Device{}, err
	}
	v.writer = s
	return s.device(), nil
}

func (n memNode) attachedAlready(v *memVolume, r record, a volume.Attachment) (engine.Device, bool, error) {
	w := v.writer
	switch {
	case a.Node != n.node:
		return engine.Device{}, false, fmt.Errorf("attach %v on node %s: %w", a, n.node, engine.ErrStaleEpoch)
	case v.fence != nil:
		return engine.Device{}, false, fmt.Errorf("attach %v: %w: it is fenced until its seal", a, engine.ErrBusy)
	case r.quarrel != "":
		return engine.Device{}, false, fmt.Errorf("attach %v: %w: %s", a, engine.ErrQuarantined, r.quarrel)
	case w != nil && w.at == a && w.dead:
		return engine.Device{}, false, fmt.Errorf("attach %v: %w", a, engine.ErrDeviceLost)
	case w != nil && w.at == a && !r.sealed:
		return w.device(), true, nil
	}
	return engine.Device{}, false, nil
}

func (s *session) device() engine.Device {
	return engine.Device{
		Path: fmt.Sprintf("/memory/%s/%d", s.at.Volume, s.epoch), Size: s.size, BlockSize: blockSize, Writer: s.epoch,
		Blank: s.blank, Unclean: s.unclean,
	}
}

// take opens a new epoch and makes every copy that answers identical, as a new writer or the gate does.
func (m *Memory) take(v *memVolume, r record, a volume.Attachment) (*session, record, error) {
	was := r
	r = m.next(v, r)
	m.recover(v, was)
	r.members = make([]bool, len(v.copies))
	for _, i := range m.up(v) {
		r.members[i] = true
	}
	if v.writer != nil {
		v.writer.dead = true
	}
	s := &session{at: a, epoch: r.epoch, size: r.size, sums: map[int64]sum{}}
	source := v.copies[m.up(v)[0]]
	for i, b := range source.blocks {
		s.sums[i] = b.sum
	}
	s.blank = len(source.blocks) == 0
	v.zombies[s.epoch] = s
	v.evidence = nil
	return s, r, nil
}

// recover copies to every copy that answers what the members of r hold. Where no copy of a block is good, each keeps
// what it has: that is for Evidence to find.
func (m *Memory) recover(v *memVolume, r record) {
	indexes := map[int64]bool{}
	for _, c := range v.copies {
		for i := range c.blocks {
			indexes[i] = true
		}
	}
	for i := range indexes {
		best, found := m.best(v, r, i, nil)
		if !found {
			for _, c := range m.up(v) {
				v.copies[c].dirty[i] = true
			}
			continue
		}
		for _, c := range m.up(v) {
			if v.copies[c].blocks[i].same(best) {
				continue
			}
			v.copies[c].put(i, best)
			v.copies[c].dirty[i] = true
		}
	}
}

// Attached implements engine.Node.
func (n memNode) Attached(_ context.Context, id volume.ID) (engine.Device, error) {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	v, found := n.m.volumes[id]
	if !found || v.writer == nil || v.writer.at.Node != n.node {
		return engine.Device{}, fmt.Errorf("device of volume %s on node %s: %w", id, n.node, engine.ErrNotFound)
	}
	if v.writer.dead {
		return engine.Device{}, fmt.Errorf("device of volume %s on node %s: %w", id, n.node, engine.ErrDeviceLost)
	}
	d := v.writer.device()
	if _, _, certain := n.m.newest(v); !certain {
		d.Stalled = "too few replicas answer"
	}
	return d, nil
}

// Barrier implements engine.Node.
func (n memNode) Barrier(_ context.Context, a volume.Attachment) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	v, r, err := n.m.opened(a)
	if err != nil {
		return err
	}
	s := v.writer
	if s == nil || s.dead {
		return fmt.Errorf("barrier of %v: %w", a, engine.ErrDeviceLost)
	}
	if s.stopped {
		return nil
	}
	if r, err = n.m.exclude(v, r); err != nil {
		return err
	}
	r.clean = true
	if _, err := n.m.commit(v, r); err != nil {
		return err
	}
	s.stopped = true
	return nil
}

// Detach implements engine.Node.
func (n memNode) Detach(_ context.Context, a volume.Attachment) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	v, found := n.m.volumes[a.Volume]
	if !found || v.writer == nil || v.writer.at != a {
		return nil
	}
	if v.writer.dead {
		v.writer = nil
		return nil
	}
	_, r, err := n.m.opened(a)
	if err != nil && !errors.Is(err, engine.ErrStaleEpoch) {
		return err
	}
	if err == nil && !r.sealed {
		return fmt.Errorf("detach %v: %w", a, engine.ErrNotSealed)
	}
	v.writer.dead = true
	v.writer = nil
	return nil
}

// Resize implements engine.Node.
func (n memNode) Resize(_ context.Context, a volume.Attachment) error {
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	v, r, err := n.m.opened(a)
	if err != nil {
		return err
	}
	if v.writer == nil || v.writer.dead {
		return fmt.Errorf("resize %v: %w", a, engine.ErrDeviceLost)
	}
	v.writer.size = r.size
	return nil
}

// Rebuild implements engine.Control.
func (m *Memory) Rebuild(_ context.Context, id volume.ID, progress func(engine.Progress)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil {
		return err
	}
	if len(m.up(v)) < v.voters() {
		return fmt.Errorf("rebuild of volume %s: %w: a replica does not answer", id, engine.ErrUnavailable)
	}
	m.recover(v, r)
	r.members = make([]bool, len(v.copies))
	for _, i := range m.up(v) {
		r.members[i] = true
	}
	if progress != nil {
		progress(engine.Progress{Phase: "rebuild", Done: r.size, Total: r.size, Since: m.o.Clock()})
	}
	_, err = m.commit(v, r)
	return err
}

func (r *replica) put(i int64, b block) {
	if b.version == (version{}) && b.data == nil {
		delete(r.blocks, i)
		return
	}
	r.blocks[i] = b.clone()
}

func (r *replica) sums() map[int64]sum {
	out := make(map[int64]sum, len(r.blocks))
	for i, b := range r.blocks {
		out[i] = b.sum
	}
	return maps.Clone(out)
}
