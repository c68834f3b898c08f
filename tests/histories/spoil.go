package histories

import (
	"math/rand/v2"
	"slices"
)

// Spoiled is how a history is made wrong.
type Spoiled string

// A read returns a value from before a write that was answered; or from before one that was flushed, where the device was lost since.
const (
	Resurrected Spoiled = "resurrected"
	Unflushed   Spoiled = "unflushed"
)

// Spoil changes one value of one read, chosen at random, so that the history is wrong, and returns the history and the sector. It is not ok
// where there is no such read. A history of which Check believes that shows nothing.
func Spoil(all []Operation, how Spoiled, random *rand.Rand) (wrong []Operation, sector int64, ok bool) {
	for _, i := range random.Perm(len(all)) {
		r := all[i]
		if r.Kind != Read || r.Unanswered {
			continue
		}
		k := random.IntN(len(r.Values))
		sector = r.First + int64(k)
		if old, ok := past(all, sector).overwritten(r, how); ok {
			r.Values = slices.Clone(r.Values)
			r.Values[k] = old
			wrong = slices.Clone(all)
			wrong[i] = r
			return wrong, sector, true
		}
	}
	return nil, 0, false
}

// sectorPast is what can decide what a sector holds.
type sectorPast struct {
	sector                  int64
	writes, flushes, losses []Operation
}

func past(all []Operation, sector int64) sectorPast {
	p := sectorPast{sector: sector}
	for _, o := range all {
		switch {
		case o.Kind == Flush && !o.Unanswered:
			p.flushes = append(p.flushes, o)
		case o.Kind == Loss:
			p.losses = append(p.losses, o)
		case o.Kind == Write && sector >= o.First && sector < o.First+int64(len(o.Values)):
			p.writes = append(p.writes, o)
		}
	}
	return p
}

// overwritten is a value that the read must not return: that of a write which had returned before another was called that replaced it.
func (p sectorPast) overwritten(r Operation, how Spoiled) (old Value, ok bool) {
	for _, w := range p.writes {
		if w.Unanswered || w.Return >= r.Call || p.lost(w.Call, r.Return) != (how == Unflushed) || how == Unflushed && !p.flushed(w, r) {
			continue
		}
		for _, u := range p.writes {
			if v := u.Values[p.sector-u.First]; v != Zeros && u.Return < w.Call {
				return v, true
			}
		}
	}
	return Zeros, false
}

func (p sectorPast) lost(from, to int64) bool {
	return slices.ContainsFunc(p.losses, func(l Operation) bool { return overlap(l.Call, l.Return, from, to) })
}

// flushed says whether a flush made the write stable before any loss, and ahead of the read.
func (p sectorPast) flushed(w, r Operation) bool {
	return slices.ContainsFunc(p.flushes, func(f Operation) bool {
		return f.Call > w.Return && f.Return < r.Call && !p.lost(w.Call, f.Return)
	})
}
