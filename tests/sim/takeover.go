package sim

import (
	"math/rand/v2"
	"strings"
	"time"

	"github.com/belay-storage/belay/tests/sim/machine"
)

// fuseNext has the next engine process die while it takes over: at one of its first calls that alter a disk, or between the records that it writes
// to the stores. The store that it was at last may go away with it for a while: what is there is seen by nobody but those who come later.
func (p *programs) fuseNext(r *rand.Rand) {
	n, on, away := 1+r.IntN(64), "", r.IntN(2) == 0
	if r.IntN(2) == 0 {
		n, on = 1+r.IntN(9), "/meta"
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = func(of *machine.Process, v *view) {
		v.light(n, func() {
			last := v.last()
			of.Kill()
			if away {
				p.w.vanish(of.String(), last)
			}
		})
		v.fuseOn, v.sharp = on, on != ""
	}
}

// arm has happen to a new process what was planned for it. The caller holds mu.
func (p *programs) arm(of *machine.Process, v *view) {
	if p.next != nil && strings.HasPrefix(of.String(), "engine") {
		if !p.w.healed() {
			p.next(of, v)
		}
		p.next = nil
	}
}

// last is the disk that the process has altered last; nil where none.
func (v *view) last() *disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.altered
}

// vanish has a store go away for a while. Where one lies no other goes: the liar could be left as the only member, and the content of a block that rots on it
// then, in a region that its engine died writing in, is told by nothing from a write that was not flushed (pkg/mirror/DESIGN.md, Unsettled blocks).
func (w *world) vanish(why string, d *disk) {
	if d == nil || d.name == "" || w.healed() || w.plan.liar >= 0 && d != w.disks[w.plan.liar] {
		return
	}
	w.invariants.proposedOn(d)
	r := w.dice.roll("vanish " + why)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = true
	w.background.Go(func() {
		time.Sleep(between(r, 10*time.Millisecond, 20*time.Second))
		d.mu.Lock()
		defer d.mu.Unlock()
		d.away = false
	})
}

// tellWithin is how long an engine may take to record, on whatever disk, that a sync has failed and what was written may be gone.
const tellWithin = 3 * time.Second

// lost notes that a disk has lost its cache and said so to an engine.
func (w *world) lost() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastLoss = time.Now()
}

// lossUntold says that an engine may know of a lost cache that nobody else knows of yet. An engine that dies then takes that along, and the next one
// believes a disk that has forgotten: pkg/mirror/DESIGN.md says so, and nothing here asks for more.
func (w *world) lossUntold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.lastLoss.IsZero() && time.Since(w.lastLoss) < tellWithin
}
