package mirror

import (
	"context"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// SalvagePlan implements engine.Control.
func (e *Engine) SalvagePlan(ctx context.Context, id volume.ID, read bool, progress func(engine.Progress)) (engine.SalvagePlan, error) {
	l, err := e.look(ctx, id)
	if err != nil {
		return engine.SalvagePlan{}, err
	}
	defer l.close()
	u, err := e.use(ctx, id)
	if err != nil {
		return engine.SalvagePlan{}, err
	}
	if read && (u.who == "" || l.stays()) {
		if err := l.readAll(progress); err != nil {
			return engine.SalvagePlan{}, err
		}
	}
	return e.plan(l, u)
}

// use is who has the volume.
type use struct {
	who    string // empty: nobody
	device bool   // a device, which can be given up
}

func (e *Engine) use(ctx context.Context, id volume.ID) (use, error) {
	if r := e.handle(id).recovering(); r != nil && !r.salvaging {
		return use{who: "the gate has taken its lost writer's place: finish the detach"}, nil
	}
	p, err := e.alive(ctx, id)
	if err != nil || p == nil {
		return use{}, err
	}
	return use{fmt.Sprintf("it is attached: device %s is %s, its engine is process %d", p.device.Path, p.device.State, p.device.Engine.PID), true}, nil
}

// stays says that the rules do not bring the volume up, whoever has it now.
func (l *look) stays() bool {
	o := l.outlook().Outlook
	return o == engine.OutlookWaits || o == engine.OutlookStuck
}

// plan writes down what was looked at. Of a volume in use it says what can be decided only where the rules would not bring it
// up again: then it stands still.
func (e *Engine) plan(l *look, u use) (engine.SalvagePlan, error) {
	o, stays := l.outlook(), l.stays()
	switch {
	case u.who != "" && stays:
		o.Outlook, o.because = engine.OutlookInUse, u.who+"; and without it: "+o.because
	case u.who != "":
		o = outlook{Outlook: engine.OutlookInUse, because: u.who}
	}
	c, a := l.config, attributesOf(l.config)
	p := engine.SalvagePlan{
		Volume: l.id, Name: a.Name, Size: l.size(), Outlook: o.Outlook, Because: o.because, Certain: l.certain(),
		Writer: c.Writer, Since: a.Since, Head: headOf(c), Read: l.read, Salvaged: a.Salvaged, Pending: a.Pending,
	}
	if len(c.Voters) > 0 {
		p.Newest = c.String()
	}
	if p.Head != nil {
		all, _ := keptIn(l.id, dirsOf(l.peeks), e.Log)
		p.Sealed, p.Receipt = digestOf(sumOf(c.Digest), c.Size), all[c.Head].receipt
	}
	for _, v := range o.waits {
		p.WaitsFor = append(p.WaitsFor, e.awaited(v))
	}
	copies, err := e.copies(l, u.who == "" || stays)
	p.Copies = copies
	if err == nil && stays {
		p.Choices, err = l.choices()
	}
	return p, err
}

func sumOf(p [32]byte) digest.Sum { return digest.SumOf(p[:]) }

// certain says that a majority of the newest configuration's voters was seen, undamaged: a newer one would need one of them.
func (l *look) certain() bool {
	known := 0
	for _, a := range l.answers(l.config.Voters) {
		known += bitOf(a.Known)
	}
	return len(l.config.Voters) > 0 && known >= quorum.Majority(len(l.config.Voters))
}

// awaited is a voter whose store is away, as far as it is known.
func (e *Engine) awaited(v quorum.Voter) engine.Replica {
	r := engine.Replica{ID: engine.ReplicaID(v.Store.String()), State: engine.Unreachable, Reason: "its store is not there"}
	if path, why, ok := e.stores.absent(v.Store); ok {
		r.Place, r.Reason = path, why.Error()
	}
	return r
}

// copies are all replicas: those of the stores that are there, and those that the newest configuration names besides.
func (e *Engine) copies(l *look, compare bool) (out []engine.SalvageCopy, err error) {
	var first *holding
	if r := l.readable(); len(r) > 0 {
		first = r[0]
	}
	for _, h := range l.holdings {
		c := l.copy(h)
		if compare && h.why == nil && h != first {
			d, err := l.compare(first, h)
			if err != nil {
				return nil, err
			}
			c.DiffersFrom, c.DiffersRegions, c.DiffersBlocks = first.id(), d.regions, d.blocks
		}
		out = append(out, c)
	}
	for i, v := range l.config.Voters {
		if l.holds(v) {
			continue
		}
		c := engine.SalvageCopy{Replica: e.awaited(v), Incarnation: v.Incarnation.String(), Admitted: true, Member: l.config.Members.Has(i)}
		if l.here(v) {
			c.Reason = l.fault(v)
		}
		out = append(out, c)
	}
	return out, nil
}

func (l *look) holds(v quorum.Voter) bool {
	for _, h := range l.holdings {
		if h.at.Store == v.Store {
			return true
		}
	}
	return false
}

// copy is one replica that is there.
func (l *look) copy(h *holding) engine.SalvageCopy {
	out := engine.SalvageCopy{
		Replica:  engine.Replica{ID: h.id(), Domain: domainOf(h.dir), Place: h.dir.Path(), State: engine.Unknown},
		Admitted: l.config.Place(h.at) >= 0, Member: l.member(h), Readable: h.why == nil, Doubtful: h.doubtful,
	}
	if !h.at.Incarnation.IsZero() {
		out.Incarnation = h.at.Incarnation.String()
	}
	if used, err := h.dir.Allocated(l.id); err == nil {
		out.Allocated = volume.Bytes(used)
	}
	if h.why != nil {
		out.Reason = h.why.Error()
		return out
	}
	return l.described(out, h)
}

func (l *look) described(out engine.SalvageCopy, h *holding) engine.SalvageCopy {
	c := h.record.Config
	out.Configuration, out.Promised, out.Writer, out.Since = c.String(), h.record.Promised, c.Writer, attributesOf(c).Since
	out.Clean, out.Sealed, out.Lossy, out.Dirty = c.Flags.Has(quorum.Clean) || c.Writer == 0, c.Flags.Has(quorum.Sealed), l.lossy(h), len(h.dirty)
	out.Digest = digestOf(h.total, l.size())
	out.AsReceipt = l.config.Head != [32]byte{} && h.total.Bytes() == l.config.Digest
	out.Wrong, out.Unreadable = l.wrong[h].wrong, l.wrong[h].unreadable
	switch {
	case h.doubtful:
		out.Reason = h.err.Error()
	case out.Member:
		out.State = engine.InSync
	case out.Admitted:
		out.State, out.Reason = engine.Stale, fmt.Sprintf("not a member of the newest configuration %s", l.config)
	default:
		out.Reason = fmt.Sprintf("the newest configuration %s does not know this incarnation", l.config)
	}
	return out
}
