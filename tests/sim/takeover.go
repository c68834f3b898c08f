package sim

import (
	"strings"
	"time"

	"github.com/belay-storage/belay/tests/sim/machine"
)

// fuseNext has the next engine process die at its n-th call that alters a disk; the store of that call may go away with it for a while.
func (p *programs) fuseNext(n int, away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = func(of *machine.Process, v *view) {
		v.light(n, func() {
			of.Kill()
			if away {
				p.w.vanish(of.String())
			}
		})
	}
}

// arm has happen to a new process what was planned for it. The caller holds mu.
func (p *programs) arm(of *machine.Process, v *view) {
	if p.next != nil && strings.HasPrefix(of.String(), "engine") {
		p.next(of, v)
		p.next = nil
	}
}

// vanish has a store go away for a while.
func (w *world) vanish(why string) {
	if w.healed() {
		return
	}
	r := w.dice.roll("vanish " + why)
	d := pick(r, w.disks)
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
