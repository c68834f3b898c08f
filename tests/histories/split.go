package histories

import (
	"cmp"
	"slices"

	"github.com/anishathalye/porcupine"
)

// history is that of one sector, by call.
type history []porcupine.Operation

// split copies what was done into the histories of the sectors that it concerns. A sector that nobody wrote or read has none.
func split(all []Operation) map[int64]history {
	out, flushes, losses, restarts := map[int64]history{}, []Operation(nil), []Operation(nil), []Operation(nil)
	for _, o := range all {
		switch o.Kind {
		case Flush:
			flushes = append(flushes, o)
		case Loss:
			losses = append(losses, o)
		case Restart:
			restarts = append(restarts, o)
		default:
			each(o, func(sector int64, t step) { out[sector] = append(out[sector], at(o, t)) })
		}
	}
	slices.SortFunc(flushes, func(a, b Operation) int { return cmp.Compare(a.Call, b.Call) })
	for sector, h := range out {
		h = append(h, again(h, restarts)...)
		h = append(h, needed(h, flushes)...)
		for _, o := range losses {
			h = append(h, at(o, step{action: lost}))
		}
		slices.SortStableFunc(h, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		h.reduce(losses)
		out[sector] = h
	}
	return out
}

// reduce finds out which values are read, and which of them behind a loss, or while it may have happened.
func (h history) reduce(losses []Operation) {
	seen, left := map[Value]bool{}, map[Value]bool{}
	for _, o := range h {
		if t := o.Input.(step); t.action == read {
			seen[t.value] = true
			left[t.value] = left[t.value] || slices.ContainsFunc(losses, func(l Operation) bool { return l.Call <= o.Return })
		}
	}
	for i, o := range h {
		t := o.Input.(step)
		t.seen, t.left = unread, unread
		if seen[t.value] {
			t.seen = t.value
		}
		if left[t.value] {
			t.left = t.value
		}
		h[i].Input = t
	}
}

// of is what concerns the one sector.
func of(all []Operation, sector int64) (out []Operation) {
	for _, o := range all {
		if o.Kind == Read || o.Kind == Write {
			i := sector - o.First
			if i < 0 || i >= int64(len(o.Values)) {
				continue
			}
			o.First, o.Values = sector, o.Values[i:i+1]
		}
		out = append(out, o)
	}
	return out
}

func at(o Operation, t step) porcupine.Operation {
	return porcupine.Operation{ClientId: o.Client, Input: t, Call: o.Call, Return: o.Return}
}

// each calls do with what the operation is for each of its sectors. A read without an answer says nothing.
func each(o Operation, do func(sector int64, t step)) {
	for i, v := range o.Values {
		t := step{value: v}
		switch {
		case o.Kind == Read && o.Unanswered:
			return
		case o.Kind == Read:
			t.action = read
		case o.Unanswered:
			t.action = perhaps
		case o.Durable:
			t.action = durable
		}
		do(o.First+int64(i), t)
	}
}

func writes(o porcupine.Operation) bool { return o.Input.(step).action <= perhaps }

func overlap(aCall, aReturn, bCall, bReturn int64) bool { return aCall <= bReturn && bCall <= aReturn }

// again are the writes that may be done a second time: the kernel sends again what a server took and did not answer, done or not. That
// matters only where two write the same sector at the same time, of which no order was promised.
func again(h history, restarts []Operation) (out history) {
	for i, o := range h {
		if !writes(o) {
			continue
		}
		for _, r := range restarts {
			if overlap(o.Call, o.Return, r.Call, r.Return) && h.contended(i) {
				twice := o
				twice.Input = step{action: perhaps, value: o.Input.(step).value}
				out = append(out, twice)
			}
		}
	}
	return out
}

// contended says whether another write of the history ran at the same time as the i-th operation.
func (h history) contended(i int) bool {
	for k, o := range h {
		if k != i && writes(o) && overlap(h[i].Call, h[i].Return, o.Call, o.Return) {
			return true
		}
	}
	return false
}

// needed are the flushes that make something stable that no earlier one did: those before which a write returned, and not already
// before the last one that was needed. The others promise nothing about the sector, and leaving them out keeps its history short.
func needed(h history, flushes []Operation) (out history) {
	var returns []int64
	for _, o := range h {
		if writes(o) && o.Input.(step).action != durable {
			returns = append(returns, o.Return)
		}
	}
	slices.Sort(returns)
	done := 0
	for _, f := range flushes {
		if n, _ := slices.BinarySearch(returns, f.Call); n > done && !f.Unanswered {
			done = n
			out = append(out, at(f, step{action: flush}))
		}
	}
	return out
}
