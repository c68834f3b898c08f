package enginetest

import (
	"context"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// salvageStride is above every epoch that copies which are away can have come to.
const salvageStride = 1 << 20

// voters is how many copies count.
func (v *memVolume) voters() (n int) {
	for _, c := range v.copies {
		if !c.left {
			n++
		}
	}
	return n
}

// SalvagePlan implements engine.Control.
func (m *Memory) SalvagePlan(_ context.Context, id volume.ID, read bool, _ func(engine.Progress)) (engine.SalvagePlan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(id)
	if err != nil {
		return engine.SalvagePlan{}, err
	}
	r, _, certain := m.newest(v)
	p := engine.SalvagePlan{
		Volume: id, Name: r.spec.Name, Size: r.size, Newest: r.view(), Certain: certain, Writer: r.writer, Head: r.head,
		Salvaged: r.salvaged, Pending: r.pending,
	}
	p.Outlook, p.Because = v.outlook(r, certain)
	for i, c := range v.copies {
		p.Copies = append(p.Copies, m.salvageCopy(v, r, i, read))
		if m.places[i].down && p.Outlook == engine.OutlookWaits && !c.left {
			p.WaitsFor = append(p.WaitsFor, m.replica(v, i, r))
		}
	}
	if p.Outlook == engine.OutlookWaits || p.Outlook == engine.OutlookStuck {
		for _, i := range m.up(v) {
			p.Choices = append(p.Choices, m.salvageChoice(v, r, i))
		}
	}
	return p, nil
}

func (v *memVolume) outlook(r record, certain bool) (engine.Outlook, string) {
	switch {
	case v.fence != nil && !v.fence.salvaging || v.writer != nil && !v.writer.dead && !r.sealed:
		return engine.OutlookInUse, "it has a writer"
	case !certain:
		return engine.OutlookWaits, "too few replicas answer"
	case r.quarrel != "":
		return engine.OutlookStuck, r.quarrel
	}
	return engine.OutlookComesUp, "a majority answers, and with it a member"
}

func (m *Memory) salvageCopy(v *memVolume, r record, i int, read bool) engine.SalvageCopy {
	c := v.copies[i]
	out := engine.SalvageCopy{Replica: m.replica(v, i, r), Incarnation: c.incarnation, Admitted: !c.left}
	if m.places[i].down {
		return out
	}
	out.Member = !c.left && r.members != nil && r.members[i]
	out.Readable, out.Configuration, out.Promised = true, c.record.view(), c.promised
	out.Writer, out.Clean, out.Sealed, out.Dirty = c.record.writer, c.record.clean, c.record.sealed, len(c.dirty)
	out.Digest = digestOf(r.size, c.sums())
	out.AsReceipt = r.sealed && out.Digest.Equal(r.digest)
	for index, b := range c.blocks {
		if read && !b.good(index) {
			out.Wrong++
		}
	}
	return out
}

func (m *Memory) salvageChoice(v *memVolume, r record, i int) engine.SalvageChoice {
	c := v.copies[i]
	out := engine.SalvageChoice{From: m.places[i].id, Place: "memory", Configuration: c.record.view()}
	lost := map[int64]bool{}
	for _, o := range m.up(v) {
		for index, b := range v.copies[o].blocks {
			if b.version.compare(c.blocks[index].version) > 0 {
				lost[index] = true
			}
		}
	}
	out.LostBlocks = len(lost)
	if r.newer(c.record) {
		out.Loses = append(out.Loses, fmt.Sprintf("it is at configuration %s of %s", c.record.view(), r.view()))
	}
	return out
}

// Salvage implements engine.Control.
func (m *Memory) Salvage(_ context.Context, id volume.ID, o engine.SalvageOrder, _ func(engine.Progress)) (engine.Barrier, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, err := m.find(id)
	if err != nil {
		return engine.Barrier{}, err
	}
	r, _, certain := m.newest(v)
	switch outlook, why := v.outlook(r, certain); {
	case outlook == engine.OutlookInUse && !(o.Kill && v.fence == nil && !certain):
		return engine.Barrier{}, fmt.Errorf("salvage of volume %s: %w: %s", id, engine.ErrAttached, why)
	case outlook == engine.OutlookComesUp:
		return engine.Barrier{}, fmt.Errorf("salvage of volume %s: %w: %s", id, engine.ErrNotNeeded, why)
	case o.Reason == "":
		return engine.Barrier{}, fmt.Errorf("salvage of volume %s: %w: no reason", id, engine.ErrInvalid)
	}
	for _, i := range m.up(v) {
		if m.places[i].id == o.From {
			return m.salvage(v, r, i)
		}
	}
	return engine.Barrier{}, fmt.Errorf("salvage of volume %s from %s: %w", id, o.From, engine.ErrInvalid)
}

func (m *Memory) salvage(v *memVolume, r record, from int) (engine.Barrier, error) {
	trace := engine.Salvaged{From: m.places[from].id, Configuration: v.copies[from].record.view(), Newest: r.view(), Replicas: v.voters(), LostBlocks: m.salvageChoice(v, r, from).LostBlocks}
	if r.pending {
		trace.Configuration, trace.Newest, trace.Replicas = r.salvaged.Configuration, r.salvaged.Newest, r.salvaged.Replicas
	}
	for i, c := range v.copies {
		c.left = c.left || m.places[i].down
	}
	if v.writer != nil {
		v.writer.dead = true
	}
	r = m.next(v, r)
	r.epoch = (r.epoch/salvageStride + 1) * salvageStride
	trace.Epoch = r.epoch
	r.members = make([]bool, len(v.copies))
	r.members[from] = true
	r.sealed, r.clean, r.quarrel, r.pending, r.salvaged = false, false, "its salvage is not finished", true, &trace
	r.format = r.format.AfterUnclean()
	if r.writer == 0 {
		r.writer = r.epoch
	}
	r, err := m.commit(v, r)
	if err != nil {
		return engine.Barrier{}, err
	}
	return m.salvaged(v, r, from, &trace), nil
}

// salvaged makes the chosen copy right by its own account, and the session that seals it.
func (m *Memory) salvaged(v *memVolume, r record, from int, trace *engine.Salvaged) engine.Barrier {
	s := &session{epoch: r.epoch, size: r.size, stopped: true, salvaging: true, at: volume.Attachment{Volume: v.id, Node: "memory", Epoch: r.epoch}}
	if r.open != nil {
		s.at = *r.open
	}
	v.fence = s
	var found findings
	c := v.copies[from]
	for index, b := range c.blocks {
		delete(c.dirty, index)
		if b.good(index) {
			continue
		}
		found.unresolved = append(found.unresolved, engine.Finding{Offset: volume.Bytes(index) * blockSize, Length: blockSize, Cause: "no copy matches its checksum; it was kept"})
		b.sum = blockSum(index, b.data)
		c.put(index, b)
	}
	b := m.describeBarrier(v, r, s, found)
	b.Clean, b.Salvaged = false, trace
	return b
}
