package enginetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// collection is one run of Evidence. Those who call while it runs join it.
type collection struct {
	done    chan struct{}
	barrier engine.Barrier
	err     error

	mu      sync.Mutex
	waiting []func(engine.Progress)
}

func (c *collection) report(p engine.Progress) {
	c.mu.Lock()
	waiting := slices.Clone(c.waiting)
	c.mu.Unlock()
	for _, f := range waiting {
		f(p)
	}
}

// Evidence implements engine.Control.
func (m *Memory) Evidence(ctx context.Context, a volume.Attachment, progress func(engine.Progress)) (engine.Barrier, error) {
	c, err := m.collect(a, progress)
	if err != nil {
		return engine.Barrier{}, err
	}
	select {
	case <-c.done:
		return c.barrier, c.err
	case <-ctx.Done():
		return engine.Barrier{}, ctx.Err()
	}
}

// collect starts a run or joins it.
func (m *Memory) collect(a volume.Attachment, progress func(engine.Progress)) (*collection, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.opened(a)
	if err != nil {
		return nil, err
	}
	s := v.serving()
	if s == nil || !s.stopped || r.sealed {
		return nil, fmt.Errorf("evidence of %v: %w", a, engine.ErrNotStopped)
	}
	c := v.evidence
	if c == nil {
		c = &collection{done: make(chan struct{})}
		v.evidence = c
		go m.run(v, s, c)
	}
	if progress != nil {
		c.mu.Lock()
		c.waiting = append(c.waiting, progress)
		c.mu.Unlock()
	}
	return c, nil
}

func (m *Memory) run(v *memVolume, s *session, c *collection) {
	b, err := m.gather(v, s, c.report)
	m.mu.Lock()
	defer m.mu.Unlock()
	c.barrier, c.err = b, err
	if v.evidence == c {
		v.evidence = nil
	}
	close(c.done)
}

// gather reads back and mends block by block, and describes what is there then.
func (m *Memory) gather(v *memVolume, s *session, report func(engine.Progress)) (engine.Barrier, error) {
	todo, err := m.unverified(v, s)
	if err != nil {
		return engine.Barrier{}, err
	}
	p := engine.Progress{Phase: "verify", Total: volume.Bytes(len(todo)) * blockSize, Since: m.o.Clock()}
	var found findings
	for _, i := range todo {
		report(p)
		if m.o.Verifying != nil {
			if err := m.o.Verifying(v.id, p); err != nil {
				return engine.Barrier{}, err
			}
		}
		if err := m.readBack(v, s, i, &found); err != nil {
			return engine.Barrier{}, err
		}
		p.Done += blockSize
	}
	return m.barrier(v, s, found)
}

// findings are what reading back found.
type findings struct {
	verified   volume.Bytes
	repairs    []engine.Repair
	unresolved []engine.Finding
}

// holding is the volume's record while s is the one to collect evidence.
func (m *Memory) holding(v *memVolume, s *session) (record, error) {
	_, r, err := m.opened(s.at)
	if err != nil {
		return r, err
	}
	if v.serving() != s || r.sealed {
		return r, fmt.Errorf("evidence of %v: %w", s.at, engine.ErrStaleEpoch)
	}
	return m.exclude(v, r)
}

// unverified are the blocks that some member has not been read back since they were written.
func (m *Memory) unverified(v *memVolume, s *session) ([]int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.holding(v, s)
	if err != nil {
		return nil, err
	}
	todo := map[int64]bool{}
	for i, c := range v.copies {
		if r.members[i] {
			maps.Copy(todo, c.dirty)
		}
	}
	return slices.Sorted(maps.Keys(todo)), nil
}

func (m *Memory) readBack(v *memVolume, s *session, index int64, found *findings) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.holding(v, s)
	if err != nil {
		return err
	}
	m.mend(v, r, s.sums, index, found)
	return nil
}

// mend makes the members' copies of a block identical, or finds that none can win.
func (m *Memory) mend(v *memVolume, r record, expected map[int64]sum, index int64, found *findings) {
	at := engine.Finding{Offset: volume.Bytes(index) * blockSize, Length: blockSize}
	best, won := m.best(v, r, index, expected)
	if !won {
		at.Cause = "no copy matches its checksum"
		found.unresolved = append(found.unresolved, at)
		return
	}
	var from engine.ReplicaID
	var bad []int
	for i, c := range v.copies {
		switch {
		case !r.members[i] || m.places[i].down:
			continue
		case c.blocks[index].same(best):
			from = m.places[i].id
			delete(c.dirty, index)
		default:
			bad = append(bad, i)
		}
		found.verified += blockSize
	}
	for _, i := range bad {
		v.copies[i].put(index, best)
		delete(v.copies[i].dirty, index)
		at.Replica, at.Cause = m.places[i].id, "block does not match its checksum"
		found.repairs = append(found.repairs, engine.Repair{Finding: at, From: from})
	}
}

func (m *Memory) barrier(v *memVolume, s *session, found findings) (engine.Barrier, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.holding(v, s)
	if err != nil {
		return engine.Barrier{}, err
	}
	return m.describeBarrier(v, r, s, found), nil
}

func (m *Memory) describeBarrier(v *memVolume, r record, s *session, found findings) engine.Barrier {
	b := engine.Barrier{
		Attachment: s.at, Writer: s.epoch, View: r.view(), Clean: r.clean, Size: r.size, Replicas: v.voters(),
		Verified: found.verified, Repairs: found.repairs, Unresolved: found.unresolved, Head: r.head,
	}
	if s.sums != nil {
		b.Expected = digestOf(r.size, s.sums)
	}
	for i := range v.copies {
		b.Evidence = append(b.Evidence, m.evidence(v, r, i))
	}
	return b
}

func (m *Memory) evidence(v *memVolume, r record, i int) engine.Evidence {
	e := engine.Evidence{Replica: m.replica(v, i, r), At: m.o.Clock()}
	if e.State != engine.InSync {
		e.Error = "not in sync"
		return e
	}
	c := v.copies[i]
	e.Incarnation, e.Durable = c.incarnation, true
	e.Position, e.PositionBy = engine.Position{Generation: r.view(), Sequence: uint64(len(c.blocks))}, engine.AttestReplica
	e.Digest, e.DigestBy = digestOf(r.size, c.sums()), engine.AttestReplica
	return e
}

// Verify implements engine.Control.
func (m *Memory) Verify(_ context.Context, id volume.ID, progress func(engine.Progress)) (engine.Verification, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil {
		return engine.Verification{}, err
	}
	out := engine.Verification{Volume: id, Size: r.size, Sealed: r.sealed, Expected: r.digest}
	s := v.serving()
	if s != nil && s.sums != nil && !r.sealed {
		out.Expected = digestOf(r.size, s.sums)
	}
	for _, i := range m.written(v, r) {
		m.verifyBlock(v, r, s, i, &out)
		if progress != nil {
			progress(engine.Progress{Phase: "verify", Done: out.Read, Since: m.o.Clock()})
		}
	}
	for i := range v.copies {
		out.Evidence = append(out.Evidence, m.evidence(v, r, i))
	}
	return out, nil
}

func (m *Memory) written(v *memVolume, r record) []int64 {
	all := map[int64]bool{}
	for i, c := range v.copies {
		for index := range c.blocks {
			all[index] = all[index] || r.members[i]
		}
	}
	return slices.Sorted(maps.Keys(all))
}

func (m *Memory) verifyBlock(v *memVolume, r record, s *session, index int64, out *engine.Verification) {
	for i, c := range v.copies {
		if !r.members[i] || m.places[i].down {
			continue
		}
		out.Read += blockSize
		if s == nil && !c.blocks[index].good(index) {
			out.Findings = append(out.Findings, engine.Finding{
				Replica: m.places[i].id, Offset: volume.Bytes(index) * blockSize, Length: blockSize, Cause: "block does not match its checksum",
			})
		}
	}
	if s != nil {
		var found findings
		m.mend(v, r, s.sums, index, &found)
		out.Repairs = append(out.Repairs, found.repairs...)
		out.Unresolved = append(out.Unresolved, found.unresolved...)
	} else if _, won := m.best(v, r, index, nil); !won {
		out.Unresolved = append(out.Unresolved, engine.Finding{
			Offset: volume.Bytes(index) * blockSize, Length: blockSize, Cause: "no copy matches its checksum",
		})
	}
}
