package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mutant"
)

// Pace of the attempts to start the next engine. The first is at once.
const (
	retryFirst = 100 * time.Millisecond
	retryMax   = 5 * time.Second
	// settledAfter: an engine that lived so long was well; what kills the one after it is something new.
	settledAfter = 2 * time.Second
	// atOnceMax is how many engines in a row may die young before the next one has to wait.
	atOnceMax = 3
	// stallWithin bounds how long an engine may take for the next step of a recovery.
	stallWithin = time.Minute
)

// died is what follows the death of the engine that served.
func (d *held) died(ctx context.Context) {
	p := d.engine
	d.since = time.Now()
	d.hear(p)
	cause := p.obituary()
	if time.Since(d.serving) > settledAfter {
		d.failures = 0
	}
	d.setEngine(nil)
	d.become(Waiting, cause)
	d.host.log.Warn("engine died", append(d.log(), "engine", p.pid, "cause", cause)...)
	d.tell(Event{Kind: Died, Cause: cause, From: p.version})
	d.note(func(e *entry) { e.Deaths, e.Engines = e.Deaths+1, nil })
	if !d.export.Resend() {
		d.lose("its engine died, and this kernel cannot send unanswered requests again (Linux 6.9 and later can): " + cause)
		return
	}
	if d.failures < atOnceMax {
		d.revive(ctx)
		return
	}
	d.later() // it dies young: not as fast as the processor can
}

func (d *held) lose(cause string) {
	if err := d.giveUp(cause); err != nil {
		d.host.log.Error("device cannot be given up", append(d.log(), "error", err)...)
	}
}

// later has revive called again after a while.
func (d *held) later() {
	wait := min(retryFirst<<min(max(d.failures-atOnceMax, 0), 10), retryMax)
	d.failures++
	d.retry = time.After(wait)
}

// revive starts the next engine and has it take over. Where it cannot, requests wait and it is tried again, unless the volume
// is out of reach for ever: then the device is given up.
func (d *held) revive(ctx context.Context) {
	d.retry = nil
	p, err := d.succeed(ctx)
	switch {
	case err == nil:
		d.failures++ // until it has lived for a while
		d.serve(p)
	case hopeless(err):
		d.lose("no engine can take over: " + err.Error())
	default:
		d.become(Waiting, err.Error())
		d.host.log.Error("no engine can take over yet; requests wait", append(d.log(), "error", err)...)
		d.later()
	}
}

// hopeless says that waiting does not help.
func hopeless(err error) bool {
	for _, final := range []error{engine.ErrStaleEpoch, engine.ErrDeviceLost, engine.ErrNotFound, engine.ErrQuarantined} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// serve notes that p serves what waited since d.since.
func (d *held) serve(p *process) {
	d.mu.Lock()
	d.pause = time.Since(d.since)
	pause := d.pause
	d.mu.Unlock()
	d.setEngine(p)
	d.become(Serving, "")
	d.host.log.Info("engine took over", append(d.log(), "engine", p.pid, "pause", pause)...)
	d.tell(Event{Kind: TakenOver, To: p.version, Pause: pause})
}

// succeed returns an engine that has taken the device over warm; nobody serves it otherwise.
func (d *held) succeed(ctx context.Context) (*process, error) {
	p, err := d.spawn(ctx, d.program)
	if err != nil {
		return nil, err
	}
	d.host.log.Debug("next engine stands by", append(d.log(), "engine", p.pid, "after", time.Since(d.since))...)
	d.host.step("next: started")
	if unfit := p.unfit(d.entry.Format); unfit != nil {
		return nil, errors.Join(unfit, p.kill())
	}
	if err := d.takeOver(ctx, p, 0); err != nil {
		err = errors.Join(err, p.kill())
		d.hear(p)
		return nil, err
	}
	return p, nil
}

// hear keeps the last words of a process that is dead until another one has been told them: also for the next host, since nobody else
// knows what they say.
func (d *held) hear(p *process) {
	if words := p.lastWords(); words != nil && !mutant.WordsForgotten {
		if err := d.update(func(e *entry) { e.Words = words }); err != nil {
			d.host.log.Error("host's entry cannot be written", append(d.log(), "error", err)...)
			return
		}
	}
	d.host.machine.Files().Remove(p.words) //nolint:errcheck // none where it died without; each process has its own name
}

// takeOver has p take the device from an engine that is dead or has yielded. within bounds it; 0 does not.
func (d *held) takeOver(ctx context.Context, p *process, within time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallWithin, func() { cancel(fmt.Errorf("engine process %d has not come further for %v", p.pid, stallWithin)) })
	defer stalled.Stop()
	info, err := p.take(ctx, Take{Order: d.entry.Order, Warm: true, Resend: d.export.Resend(), Previous: d.entry.Info, Words: d.entry.Words}, within, func(engine.Progress) {
		stalled.Reset(stallWithin)
	})
	if err != nil {
		return err
	}
	d.host.step("next: taken")
	d.note(func(e *entry) { e.Info, e.Words = info, nil }) // as where this host dies here: the next one asks the engine
	return nil
}
