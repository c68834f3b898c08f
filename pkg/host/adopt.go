package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/device"
)

// adopt takes back what a killed host left: engines that serve on, and devices whose engines have died since. Calls
// wait until it is done.
func (h *Host) adopt(ctx context.Context) error {
	entries, err := h.book.list(h.boot)
	if err != nil {
		h.log.Error("entries of an earlier host cannot be used; their volumes must be detached and attached anew", "error", err)
	}
	var errs []error
	for _, e := range entries {
		d := newHeld(h, e)
		if err := d.adopt(ctx); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", e.Volume, err))
			continue
		}
		if d.gone {
			continue
		}
		h.mu.Lock()
		h.add(d)
		h.mu.Unlock()
	}
	return errors.Join(errs...)
}

// adopt makes this host the holder. Of the processes that the entry names at most one serves; the others are ended, and where
// none serves the next one takes over as after a death. Where all are dead the device is lost.
func (d *held) adopt(ctx context.Context) error {
	alive := d.survivors()
	if d.entry.First == nil { // it was being made: nobody uses it
		return d.unmake(ctx, alive)
	}
	if d.entry.Lost != "" {
		d.become(Lost, d.entry.Lost)
		return nil
	}
	if len(alive) == 0 {
		d.lose("host and engine died together")
		return nil
	}
	if err := d.takeBack(alive[0]); err != nil {
		// Without the channel the device dies with the engine; with it nothing is left to do.
		d.host.log.Error("device cannot be taken back", append(d.log(), "error", err)...)
		return d.abandonAll(alive, err)
	}
	serving := d.choose(ctx, alive)
	undead, err := d.endOthers(alive, serving)
	d.program = alive[0].program
	if serving == nil {
		d.since = time.Now()
		if undead != nil {
			_ = d.undead(undead, nil, err) // which says so; its death is what goes on from here
			return nil
		}
		d.become(Waiting, "its host died")
		d.retry = time.After(0)
		d.note(func(e *entry) { e.Engines = nil })
		return nil
	}
	d.program = serving.program
	d.setEngine(serving)
	d.become(Serving, "")
	d.host.log.Info("device taken back", append(d.log(), "engine", serving.pid, "device", d.export.Path())...)
	// It has been told what those before it said, or is the one that nobody has followed yet.
	d.note(func(e *entry) { e.Engines, e.Words = []running{serving.running()}, nil })
	return nil
}

// endOthers ends the engines but for the one that serves. undead is one that was killed and does not die.
func (d *held) endOthers(alive []*process, serving *process) (undead *process, err error) {
	for _, p := range alive {
		if p == serving {
			continue
		}
		if failed := p.kill(); failed != nil {
			d.host.log.Error("engine does not die", append(d.log(), "engine", p.pid, "error", failed)...)
			undead, err = p, failed
			continue
		}
		d.hear(p)
	}
	return undead, err
}

// survivors are the engine processes that live. Of those that do not, what they left is taken.
func (d *held) survivors() (alive []*process) {
	for _, r := range d.entry.Engines {
		p, err := find(d.host.machine, d.entry.Volume, r)
		switch {
		case err == nil:
			alive = append(alive, p)
		case errors.Is(err, ErrGone):
			d.inherit(r)
		default:
			d.host.log.Error("engine process cannot be looked at", append(d.log(), "engine", r.PID, "error", err)...)
		}
	}
	return alive
}

// inherit takes what an engine process left that died while no host looked: its last words, and a socket that nobody has removed.
func (d *held) inherit(r running) {
	d.hear(newProcess(d.host.machine, d.entry.Volume, r.Socket, r.Words, nil))
	d.host.machine.Network().Remove(r.Socket) //nolint:errcheck // none where it ended in order; nobody else has this name
}

// takeBack gets the channel from an engine process, whatever that does now.
func (d *held) takeBack(p *process) error {
	path := d.pathOf()
	if path == "" {
		return errors.New("its block device is gone")
	}
	export, err := d.host.machine.AdoptDevice(device.Config{Name: d.entry.Name, BlockSize: d.entry.BlockSize, Log: d.host.log}, p.child, path)
	if err != nil {
		return err
	}
	d.export = export
	return nil
}

func (d *held) pathOf() string {
	all, err := d.host.machine.Leftovers(d.entry.Name)
	if err != nil {
		d.host.log.Error("devices of this machine cannot be listed", append(d.log(), "error", err)...)
	}
	if len(all) == 0 {
		return ""
	}
	return all[0]
}

// choose returns the engine that serves, nil where none does or the one that should does not answer. It also learns what an engine
// said that took over while no host listened.
func (d *held) choose(ctx context.Context, alive []*process) *process {
	for _, p := range alive {
		is, err := p.pulse(ctx)
		if err != nil {
			d.host.log.Warn("engine does not answer", append(d.log(), "engine", p.pid, "error", err)...)
			continue
		}
		if !is.Serving {
			continue
		}
		info, err := p.take(ctx, Take{Order: d.entry.Order, Warm: true, Previous: d.entry.Info}, answerWithin, nil)
		if err == nil {
			d.entry.Info = info
			return p
		}
	}
	return nil
}

// unmake removes what is left of a device that was not finished.
func (d *held) unmake(ctx context.Context, alive []*process) error {
	if err := d.abandonAll(alive, errors.New("its host died while it was made")); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, closeWithin)
	defer cancel()
	return d.removeDead(bounded)
}

// abandonAll ends the engines, and the device with them.
func (d *held) abandonAll(alive []*process, cause error) error {
	for _, p := range alive {
		if err := p.kill(); err != nil {
			return err
		}
	}
	d.lose(cause.Error())
	return nil
}
