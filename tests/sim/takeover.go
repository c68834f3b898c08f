package sim

import (
	"strings"
	"time"

	"github.com/belay-storage/belay/tests/sim/machine"
)

// fuseNext has the next engine process die at its n-th call that alters a disk; the store that has done its last sync may go away with it for a
// while: what is there is seen by nobody but those who come later.
func (p *programs) fuseNext(n int, away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = func(of *machine.Process, v *view) {
		v.light(n, func() {
			of.Kill()
			if away {
				p.w.vanish(of.String(), v.last())
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

// last is the disk that has done the process's last sync; nil where none has.
func (v *view) last() *disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.synced
}

// vanish has a store go away for a while.
func (w *world) vanish(why string, d *disk) {
	if d == nil || d.name == "" || w.healed() {
		return
	}
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
