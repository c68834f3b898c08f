package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// Bounds of an upgrade.
const (
	// drainWithin is how long requests in flight may take. Longer ones mean a slow disk, and an upgrade is not worth the wait.
	drainWithin = 2 * time.Second
	// takeWithin is how long the new engine may take to serve.
	takeWithin = 3 * time.Second
	// probationFor is how long the old engine stands by; the new one must live and answer for so long.
	probationFor   = 3 * time.Second
	muteWithin     = 2 * time.Second // without an answer to any request, though some wait
	probationEvery = 100 * time.Millisecond
)

// errHangs: an engine process does not answer.
var errHangs = errors.New("it does not answer")

// upgrade has an engine of another program take the place of the present one. ErrRolledBack where the new one cannot, and
// the old one serves on. At every moment at most one engine has the device, and one that does not answer is killed, and
// proven dead, before another takes it.
func (d *held) upgrade(ctx context.Context, program Executable, report func(engine.Progress)) (Upgrade, error) {
	out := Upgrade{Volume: d.entry.Volume}
	old := d.engine
	if d.state != Serving || old == nil {
		return out, d.replaceProgram(ctx, program)
	}
	out.From = old.version
	say := func(phase string) { report(engine.Progress{Phase: phase, Since: time.Now()}) }
	say("start")
	next, hangs, err := d.standby(ctx, program, old)
	if err != nil {
		return out, d.rolledBack(old, nil, err)
	}
	out.To = next.version
	say("drain")
	d.become(Upgrading, "")
	if err := d.swap(ctx, old, next, hangs); err != nil {
		return out, err
	}
	out.Pause = d.pause
	say("watch")
	d.host.step("upgrade: taken over")
	if err := d.probation(ctx, next); err != nil {
		d.since = time.Now()
		return out, d.rolledBack(old, next, err)
	}
	return out, d.keep(ctx, old, next, program, out)
}

// standby starts the new engine and checks that it can read what the old one writes. Nothing waits for it yet. hangs says that the old
// one does not answer.
func (d *held) standby(ctx context.Context, program Executable, old *process) (next *process, hangs bool, err error) {
	if next, err = d.spawn(ctx, program, old.running()); err != nil {
		return nil, false, err
	}
	d.host.step("upgrade: started")
	is, err := old.pulse(ctx)
	format := d.entry.Format // what was known before it hung
	if err == nil {
		format = is.Format
	}
	if unfit := next.unfit(format); unfit != nil {
		return nil, false, errors.Join(unfit, next.kill())
	}
	if err != nil {
		d.host.log.Warn("engine does not answer", append(d.log(), "engine", old.pid, "error", err)...)
		return next, true, nil
	}
	// What can be written before requests are held need not be waited for then.
	if err := old.prepare(ctx); err != nil {
		d.host.log.Warn("engine did not prepare", append(d.log(), "error", err)...)
	}
	return next, false, nil
}

// swap holds requests, has the old engine yield, or ends one that hangs, and has the new one take over.
func (d *held) swap(ctx context.Context, old, next *process, hangs bool) error {
	d.host.step("upgrade: prepared")
	d.since = time.Now()
	err := errHangs
	if !hangs {
		err = old.yield(ctx)
	}
	d.host.step("upgrade: yielded")
	d.host.log.Debug("engine yielded", append(d.log(), "engine", old.pid, "after", time.Since(d.since), "error", err)...)
	switch {
	case err == nil:
	case errors.Is(err, engine.ErrBusy): // it did not drain, says so, and serves on
		return d.rolledBack(old, next, err)
	default: // dead, hanging or stopped: nobody can tell what it still does, so it ends
		d.host.log.Warn("engine does not yield", append(d.log(), "engine", old.pid, "error", err)...)
		if err := old.kill(); err != nil {
			return d.undead(old, next, err)
		}
		d.hear(old)
	}
	if err := d.takeOver(ctx, next, takeWithin); err != nil {
		return d.rolledBack(old, next, err)
	}
	d.setEngine(next)
	d.mu.Lock()
	d.pause = time.Since(d.since)
	d.mu.Unlock()
	return nil
}

// probation watches the new engine while the old one stands by.
func (d *held) probation(ctx context.Context, next *process) error {
	began := time.Now()
	tick := time.NewTicker(probationEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil // it serves, and something urgent is to be done: it has to do
		case <-next.ended:
			return errors.New(next.obituary())
		case <-tick.C: // also the end, so that no two timers are due at once
			if time.Since(began) >= probationFor {
				return nil
			}
			is, err := next.pulse(ctx)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				return fmt.Errorf("the new engine does not answer: %w", next.explain(err))
			case is.Waiting > muteWithin:
				return fmt.Errorf("the new engine has answered no request for %v", is.Waiting.Round(time.Millisecond))
			}
		}
	}
}

// unfit says why the engine cannot serve a volume of that format; 0: not known.
func (p *process) unfit(format int) error {
	if format == 0 || p.formats[0] <= format && format <= p.formats[1] {
		return nil
	}
	return fmt.Errorf("version %s reads formats %d to %d, the volume has %d", p.version, p.formats[0], p.formats[1], format)
}

// formatOf is the format on disk that the engine writes, or what it was where it does not say.
func formatOf(ctx context.Context, p *process, before int) int {
	if is, err := p.pulse(ctx); err == nil {
		return is.Format
	}
	return before
}

// keep ends the old engine. Whatever becomes of it, it has yielded.
func (d *held) keep(ctx context.Context, old, next *process, program Executable, u Upgrade) error {
	d.host.step("upgrade: watched")
	d.become(Serving, "")
	d.failures = 0
	before := d.program
	d.program = program
	if before != nil {
		before.Close()
	}
	format := formatOf(ctx, next, d.entry.Format)
	d.note(func(e *entry) { e.Engines, e.Format = []running{next.running()}, format })
	d.host.log.Info("engine upgraded", append(d.log(), "from", u.From, "to", u.To, "pause", u.Pause)...)
	d.tell(Event{Kind: Upgraded, From: u.From, To: u.To, Pause: u.Pause})
	if old.gone() {
		return nil
	}
	return old.kill() // it holds nothing
}

// rolledBack ends the new engine and has the old one serve on, or another of its kind where it is dead. next is nil where there was none.
func (d *held) rolledBack(old, next *process, cause error) error {
	if next != nil {
		if err := next.kill(); err != nil {
			return d.undead(next, old, fmt.Errorf("%w: %w", cause, err))
		}
		d.hear(next)
	}
	d.tell(Event{Kind: RolledBack, Cause: cause.Error(), From: old.version})
	d.host.log.Error("upgrade rolled back", append(d.log(), "cause", cause)...)
	d.resume(old)
	return fmt.Errorf("%w: volume %s: %w", ErrRolledBack, d.entry.Volume, cause)
}

// undead is where p was killed and does not die, like one that waits for a disk: requests wait until it is dead, since nobody may take its place
// before. The other, which does not serve, is ended, so that it does not stand by for ever.
func (d *held) undead(p, other *process, cause error) error {
	if other != nil {
		cause = errors.Join(cause, other.kill())
	}
	d.setEngine(p)
	d.become(Waiting, cause.Error())
	d.note(func(e *entry) { e.Engines = []running{p.running()} })
	d.host.log.Error("engine does not die", append(d.log(), "engine", p.pid, "cause", cause)...)
	return fmt.Errorf("%w: volume %s: %w", engine.ErrUnavailable, d.entry.Volume, cause)
}

// resume has the old engine serve again.
func (d *held) resume(old *process) {
	ctx, cancel := context.WithTimeout(context.Background(), stallWithin)
	defer cancel()
	if !old.gone() {
		d.note(func(e *entry) { e.Engines = []running{old.running()} }) // where that fails it is named still, beside the other
		is, err := old.pulse(ctx)
		if err == nil && !is.Serving {
			err = d.takeOver(ctx, old, takeWithin)
		}
		if err == nil {
			d.setEngine(old)
			d.become(Serving, "")
			return
		}
		d.host.log.Error("the old engine does not serve any more", append(d.log(), "error", err)...)
		if err := old.kill(); err != nil {
			d.setEngine(old)
			d.become(Waiting, err.Error())
			return
		}
	}
	d.setEngine(nil)
	d.revive(ctx)
}

// replaceProgram is an upgrade where no engine serves: the next attempt is made with the new program.
func (d *held) replaceProgram(ctx context.Context, program Executable) error {
	if d.state != Waiting {
		return fmt.Errorf("%w: volume %s: %s", ErrNotServing, d.entry.Volume, d.state)
	}
	before := d.program
	d.program = program
	d.revive(ctx)
	if d.state == Serving {
		return nil
	}
	d.program = before
	return fmt.Errorf("%w: volume %s: %s", ErrRolledBack, d.entry.Volume, d.cause)
}
