package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

var _ engine.Control = (*Memory)(nil)

// Capabilities implements engine.Control.
func (m *Memory) Capabilities(_ context.Context, parameters map[string]string) (engine.Capabilities, error) {
	if _, err := m.replicas(parameters); err != nil {
		return engine.Capabilities{}, err
	}
	return engine.Capabilities{
		Position: engine.AttestReplica, Digest: engine.AttestReplica, Flush: engine.FlushInSync, Fence: engine.FenceSession,
		ReplicasMax: len(m.places), BlockSizes: []int{blockSize}, OnlineExpand: true, Thin: true, Repair: true, Salvage: true,
	}, nil
}

func (m *Memory) replicas(parameters map[string]string) (int, error) {
	n := len(m.places)
	for key, value := range parameters {
		if key != replicasKey {
			return 0, fmt.Errorf("%w: unknown parameter %q", engine.ErrInvalid, key)
		}
		var err error
		if n, err = strconv.Atoi(value); err != nil || n < 1 || n > len(m.places) {
			return 0, fmt.Errorf("%w: %s %q: want 1 to %d", engine.ErrInvalid, key, value, len(m.places))
		}
	}
	return n, nil
}

// Create implements engine.Control.
func (m *Memory) Create(_ context.Context, s engine.Spec) (engine.Volume, error) {
	n, err := m.replicas(s.Parameters)
	if err != nil {
		return engine.Volume{}, err
	}
	if _, err := volume.ParseID(string(s.ID)); err != nil {
		return engine.Volume{}, fmt.Errorf("%w: %w", engine.ErrInvalid, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(s.ID)
	if errors.Is(err, engine.ErrNotFound) {
		if err := m.fits(s.Size); err != nil {
			return engine.Volume{}, fmt.Errorf("volume %s: %w", s.ID, err)
		}
		v = m.make(s, n)
	} else if err != nil {
		return engine.Volume{}, err
	}
	d := m.describe(v)
	if d.Name != s.Name || v.copies[0].record.spec.Size != s.Size || !maps.Equal(d.Parameters, s.Parameters) {
		return engine.Volume{}, fmt.Errorf("volume %s: %w", s.ID, engine.ErrExists)
	}
	return d, nil
}

func (m *Memory) fits(size volume.Bytes) error {
	switch {
	case size < sizeMin || size > sizeMax || size%blockSize != 0:
		return fmt.Errorf("%v: %w", size, engine.ErrOutOfRange)
	case size > m.o.Capacity:
		return fmt.Errorf("%v: %w", size, engine.ErrNoSpace)
	}
	return nil
}

func (m *Memory) make(s engine.Spec, n int) *memVolume {
	s.Parameters, s.Labels = maps.Clone(s.Parameters), maps.Clone(s.Labels)
	v := &memVolume{id: s.ID, zombies: map[volume.Epoch]*session{}}
	r := record{epoch: 1, step: 1, members: slices.Repeat([]bool{true}, n), spec: s, size: s.Size, sealed: true, clean: true}
	for range n {
		m.born++
		v.copies = append(v.copies, &replica{
			incarnation: strconv.Itoa(m.born), promised: 1, record: r, blocks: map[int64]block{}, dirty: map[int64]bool{},
		})
	}
	m.volumes[s.ID] = v
	return v
}

// Delete implements engine.Control.
func (m *Memory) Delete(_ context.Context, id volume.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, r, err := m.current(id)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.open != nil || !r.sealed:
		return fmt.Errorf("volume %s: %w", id, engine.ErrAttached)
	}
	delete(m.volumes, id)
	return nil
}

// Get implements engine.Control.
func (m *Memory) Get(_ context.Context, id volume.ID) (engine.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(id)
	if err != nil {
		return engine.Volume{}, err
	}
	if len(m.up(v)) == 0 {
		return engine.Volume{}, fmt.Errorf("volume %s: %w", id, engine.ErrUnavailable)
	}
	return m.describe(v), nil
}

// List implements engine.Control.
func (m *Memory) List(context.Context) (out []engine.Volume, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.ids() {
		out = append(out, m.describe(m.volumes[id]))
	}
	return out, nil
}

func (m *Memory) describe(v *memVolume) engine.Volume {
	r, _, certain := m.newest(v)
	d := engine.Volume{
		Spec: r.spec, Format: r.format, Attachment: r.open, Options: r.options, Staged: r.staged, Sealed: r.sealed,
		Writer: r.writer, Digest: r.digest, Head: r.head,
	}
	d.ID, d.Size = v.id, r.size
	for i := range v.copies {
		d.Replicas = append(d.Replicas, m.replica(v, i, r))
	}
	insync := 0
	for _, c := range d.Replicas {
		if c.State == engine.InSync {
			insync++
		}
	}
	d.State, d.Reason = state(r, insync, len(v.copies), certain)
	return d
}

func state(r record, insync, n int, certain bool) (engine.State, string) {
	switch {
	case !certain:
		return engine.Unavailable, fmt.Sprintf("%d of %d replicas answer and are in sync", insync, n)
	case r.quarrel != "":
		return engine.Quarantined, r.quarrel
	case insync < n:
		return engine.Degraded, fmt.Sprintf("%d of %d replicas in sync", insync, n)
	}
	return engine.Healthy, ""
}

func (m *Memory) replica(v *memVolume, i int, r record) engine.Replica {
	p := m.places[i]
	d := engine.Replica{ID: p.id, Domain: string(p.id), Place: "memory", State: engine.Stale}
	switch {
	case p.down:
		d.State, d.Reason = engine.Unreachable, "taken away"
	case v.copies[i].left:
		d.State, d.Reason = engine.Unknown, "from before a salvage"
	case r.members != nil && r.members[i]:
		d.State = engine.InSync
	}
	return d
}

// Capacity implements engine.Control.
func (m *Memory) Capacity(_ context.Context, parameters map[string]string) (engine.Capacity, error) {
	if _, err := m.replicas(parameters); err != nil {
		return engine.Capacity{}, err
	}
	return engine.Capacity{Available: m.o.Capacity, Largest: min(m.o.Capacity, sizeMax), Smallest: sizeMin}, nil
}

// Expand implements engine.Control.
func (m *Memory) Expand(_ context.Context, id volume.ID, size volume.Bytes) (engine.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil {
		return engine.Volume{}, err
	}
	if size > r.size {
		if err := m.fits(size.RoundUp(blockSize)); err != nil {
			return engine.Volume{}, fmt.Errorf("volume %s: %w", id, err)
		}
		r.size = size.RoundUp(blockSize)
		if _, err := m.commit(v, r); err != nil {
			return engine.Volume{}, err
		}
	}
	return m.describe(v), nil
}

var stages = []engine.FormatStage{engine.Unformatted, engine.Formatting, engine.Formatted}

// SetFormat implements engine.Control.
func (m *Memory) SetFormat(_ context.Context, id volume.ID, f engine.Format) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil {
		return err
	}
	was, is := slices.Index(stages, r.format.Stage), slices.Index(stages, f.Stage)
	if f == r.format {
		return nil
	}
	if is < was || was == len(stages)-1 && f.FSType != r.format.FSType {
		return fmt.Errorf("volume %s: %w: it is %s with %s already", id, engine.ErrInvalid, r.format.Stage, r.format.FSType)
	}
	r.format = f
	_, err = m.commit(v, r)
	return err
}

// Publish implements engine.Control.
func (m *Memory) Publish(_ context.Context, id volume.ID, node volume.NodeID, o engine.PublishOptions) (volume.Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil {
		return volume.Attachment{}, err
	}
	if r.open != nil {
		return reopened(*r.open, r.options, node, o)
	}
	switch {
	case r.quarrel != "":
		return volume.Attachment{}, fmt.Errorf("volume %s: %w: %s", id, engine.ErrQuarantined, r.quarrel)
	case !r.sealed:
		return volume.Attachment{}, fmt.Errorf("volume %s: %w", id, engine.ErrAttached)
	}
	r = m.next(v, r)
	a := volume.Attachment{Volume: id, Node: node, Epoch: r.epoch}
	r.open, r.options, r.staged = &a, o, false
	_, err = m.commit(v, r)
	return a, err
}

func reopened(a volume.Attachment, had engine.PublishOptions, node volume.NodeID, o engine.PublishOptions) (volume.Attachment, error) {
	switch {
	case a.Node != node:
		return volume.Attachment{}, fmt.Errorf("%w: %v", engine.ErrAttached, a)
	case !reflect.DeepEqual(had, o):
		return volume.Attachment{}, fmt.Errorf("%v with other options: %w", a, engine.ErrExists)
	}
	return a, nil
}

// Unpublish implements engine.Control.
func (m *Memory) Unpublish(_ context.Context, a volume.Attachment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(a.Volume)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.open == nil || *r.open != a:
		return nil
	case !r.sealed:
		return fmt.Errorf("unpublish %v: %w", a, engine.ErrNotSealed)
	}
	r.open, r.options, r.staged = nil, engine.PublishOptions{}, false
	_, err = m.commit(v, r)
	return err
}

// opened is the volume and its record where a is the open attachment.
func (m *Memory) opened(a volume.Attachment) (*memVolume, record, error) {
	v, r, err := m.current(a.Volume)
	if err != nil {
		return nil, record{}, err
	}
	if r.open == nil || *r.open != a {
		return nil, record{}, fmt.Errorf("%v: %w", a, engine.ErrStaleEpoch)
	}
	return v, r, nil
}

// Fence implements engine.Control.
func (m *Memory) Fence(_ context.Context, a volume.Attachment, o engine.FenceOptions) (engine.FenceProof, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.opened(a)
	if err != nil {
		return engine.FenceProof{}, err
	}
	if v.fence != nil && v.fence.salvaging {
		return engine.FenceProof{}, fmt.Errorf("fence %v: %w: it is being salvaged", a, engine.ErrBusy)
	}
	if v.fence != nil && v.fence.epoch == r.epoch {
		return m.proof(v, r), nil
	}
	if v.writer != nil && !v.writer.dead && !r.sealed {
		if !o.Kill {
			return engine.FenceProof{}, fmt.Errorf("fence %v: %w: its writer is alive", a, engine.ErrAttached)
		}
		v.writer.dead = true
	}
	s, r, err := m.take(v, r, a)
	if err != nil {
		return engine.FenceProof{}, err
	}
	v.fence, s.stopped, s.sums = s, true, nil
	r.sealed = false
	r, err = m.commit(v, r)
	return m.proof(v, r), err
}

func (m *Memory) proof(v *memVolume, r record) engine.FenceProof {
	p := engine.FenceProof{Epoch: r.epoch}
	for _, i := range m.up(v) {
		p.Witness = append(p.Witness, m.places[i].id)
	}
	return p
}

// Receipts implements engine.Control.
func (m *Memory) Receipts(_ context.Context, id volume.ID) (out [][]byte, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, r, err := m.current(id)
	if err != nil {
		return nil, err
	}
	for _, raw := range r.receipts {
		out = append(out, bytes.Clone(raw))
	}
	return out, nil
}

// Quarantine implements engine.Control.
func (m *Memory) Quarantine(_ context.Context, a volume.Attachment, b engine.Barrier) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.opened(a)
	if err != nil || r.quarrel != "" {
		return err
	}
	r.quarrel = fmt.Sprintf("copies disagree in %d ranges", len(b.Unresolved))
	_, err = m.commit(v, r)
	return err
}
