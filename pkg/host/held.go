package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/wire"
)

// held is a device that this host holds. Its own goroutine does all that is done to it, one thing after the other:
//
//	Attaching ──▶ Serving ◀──▶ Waiting     an engine dies and the next one takes over, at once or when it can
//	                │  ▲          │
//	                ▼  │          │
//	             Upgrading        │
//	                              ▼
//	   any of them ───────────▶ Lost ──▶ (detached)
type held struct {
	host     *Host
	commands chan func(context.Context)
	over     chan struct{} // closed when the goroutine has ended

	// Owned by the goroutine.
	export   Export     // nil where the device was lost with an earlier host
	program  Executable // what the next engine runs
	since    time.Time  // requests wait, where they do
	failures int        // in a row
	retry    <-chan time.Time
	gone     bool // detached

	mu        locks.Mutex // guards the rest, which the goroutine changes and others read
	entry     entry
	state     State
	cause     string
	engine    *process
	serving   time.Time
	pause     time.Duration
	interrupt context.CancelCauseFunc // ends what the goroutine does now
}

// errInterrupted ends what the goroutine of a device does, for something that does not wait.
var errInterrupted = errors.New("interrupted")

func newHeld(h *Host, e entry) *held {
	return &held{host: h, entry: e, state: Attaching, commands: make(chan func(context.Context)), over: make(chan struct{}), interrupt: func(error) {}}
}

// run is the goroutine. It ends when the device is detached, or with the host: then the engine serves on. A host on which alone a
// device rests, since its engine is dead, does not end before another serves.
func (d *held) run(ctx context.Context) {
	defer close(d.over)
	end := ctx.Done()
	for !d.gone {
		if f := d.next(end); f != nil {
			d.step(ctx, f)
		} else if d.retry != nil {
			d.host.log.Warn("host waits for an engine before it ends: without either the device would be lost", d.log()...)
			end = nil
		}
		if ctx.Err() != nil && d.retry == nil {
			return
		}
	}
}

// next waits for something to do and returns it, nil when the host ends. Of what has come up meanwhile a death is first, so that whatever is
// asked finds things as they are, and what is asked is next.
func (d *held) next(end <-chan struct{}) func(context.Context) {
	select {
	case <-d.death():
		return d.died
	default:
	}
	select {
	case f := <-d.commands:
		return f
	default:
	}
	select {
	case <-end:
		return nil
	case f := <-d.commands:
		return f
	case <-d.death():
		return d.died
	case <-d.retry:
		return d.revive
	}
}

// step does one thing. It can be interrupted, and is not by the end of the host: half of it done is worse than a late end.
func (d *held) step(ctx context.Context, f func(context.Context)) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	d.mu.Lock()
	d.interrupt = cancel
	d.mu.Unlock()
	f(ctx)
}

// do has the goroutine do f and waits for it, or for ctx. Where urgent it does not wait for what is being done now.
func (d *held) do(ctx context.Context, urgent bool, f func(context.Context) error) error {
	if ctx.Err() != nil { // it would be done or not by chance
		return d.busy(ctx)
	}
	if urgent {
		d.mu.Lock()
		d.interrupt(errInterrupted)
		d.mu.Unlock()
	}
	done := make(chan error, 1)
	select {
	case d.commands <- func(ctx context.Context) { done <- f(ctx) }:
	case <-d.over:
		return d.ended()
	case <-ctx.Done():
		return d.busy(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// busy is what is answered to who has given up before it was his turn.
func (d *held) busy(ctx context.Context) error {
	return fmt.Errorf("%w on the device of volume %s: %w", engine.ErrBusy, d.entry.Volume, context.Cause(ctx))
}

// ended says why the goroutine does nothing more. Only a device that is detached is not there.
func (d *held) ended() error {
	if d.gone {
		return fmt.Errorf("%w: volume %s has no device on this machine", engine.ErrNotFound, d.entry.Volume)
	}
	return fmt.Errorf("%w: volume %s: its host is ending; ask again", engine.ErrBusy, d.entry.Volume)
}

// death is closed when the engine that should serve is dead; nil where none should.
func (d *held) death() <-chan struct{} {
	if d.engine == nil {
		return nil
	}
	return d.engine.ended
}

func (d *held) log() []any { return []any{"volume", d.entry.Volume} }

// update changes what others see, and keeps it for the next host.
func (d *held) update(change func(*entry)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.entry)
	return d.host.book.put(d.entry)
}

// note is update where the change is made in any case: that the next host will not know of it is better than to give up what serves.
func (d *held) note(change func(*entry)) {
	if err := d.update(change); err != nil {
		d.host.log.Error("host's entry cannot be written", append(d.log(), "error", err)...)
	}
}

func (d *held) become(s State, cause string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state, d.cause, d.entry.Since = s, cause, time.Now().UTC()
}

// setEngine makes p the one that serves. nil: none does.
func (d *held) setEngine(p *process) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.engine, d.serving = p, time.Now().UTC()
}

// device is what is said of it.
func (d *held) device() Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := Device{
		Volume: d.entry.Volume, Name: d.entry.Name, Key: d.entry.Key, State: d.state, Cause: d.cause, Since: d.entry.Since,
		First: d.entry.First, Info: d.entry.Info, Deaths: d.entry.Deaths, Pause: d.pause,
	}
	if d.export != nil {
		out.Path = d.export.Path()
	}
	if p := d.engine; p != nil {
		out.Engine = Engine{PID: p.pid, Start: p.start, Version: p.version, Socket: p.socket, Since: d.serving}
	}
	return out
}

// first makes the device and has the first engine serve it. Where that fails nothing is left.
func (d *held) first(ctx context.Context, s Spec, report func(engine.Progress)) error {
	err := d.make(ctx, s, report)
	if err == nil {
		d.become(Serving, "")
		d.host.log.Info("device attached", append(d.log(), "device", d.export.Path(), "engine", d.engine.pid)...)
		d.tell(Event{Kind: Attached, To: d.engine.version})
		return nil
	}
	if d.engine != nil {
		err = errors.Join(err, d.engine.kill())
	}
	if d.export != nil {
		d.export.Abandon()
		err = errors.Join(err, d.host.machine.RemoveLeftovers(ctx, d.entry.Name)) // it may have appeared just when its engine died
	}
	return errors.Join(err, d.forget())
}

func (d *held) make(ctx context.Context, s Spec, report func(engine.Progress)) (err error) {
	if d.program, err = d.host.machine.Open(s.Executable); err != nil {
		return fmt.Errorf("engine program of volume %s: %w", s.Volume, err)
	}
	export, err := d.host.machine.CreateDevice(device.Config{Name: s.Name, BlockSize: s.BlockSize, Log: d.host.log})
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.export = export
	d.mu.Unlock()
	p, err := d.spawn(ctx, d.program)
	if err != nil {
		return err
	}
	d.setEngine(p)
	d.host.step("first: started")
	info, err := p.take(ctx, Take{Order: s.Order}, 0, report)
	if errors.Is(err, wire.ErrLost) || errors.Is(err, wire.ErrNotRunning) || errors.Is(err, ErrGone) {
		return fmt.Errorf("%w: volume %s: its engine died while it attached the volume; ask again: %w", engine.ErrUnavailable, s.Volume, err)
	}
	if err != nil {
		return err
	}
	d.host.step("first: taken")
	if err := d.appear(ctx, p); err != nil {
		return err
	}
	d.host.step("first: attached")
	format := formatOf(ctx, p, 0)
	return d.update(func(e *entry) { e.First, e.Info, e.Format = info, info, format })
}

// appearWithin bounds how long the kernel may take to make a block device of a file that is served.
const appearWithin = 10 * time.Second

// appear has the kernel make the block device, for which it asks the engine. Where that dies or hangs it would wait for ever, with a lock
// without which nobody on the machine gets a loop device: so the device is given up then.
func (d *held) appear(ctx context.Context, p *process) error {
	made := make(chan error, 1)
	go func() {
		_, err := d.export.Attach(context.WithoutCancel(ctx))
		made <- err
	}()
	cause := "its engine died"
	select {
	case err := <-made:
		return err
	case <-p.ended:
	case <-time.After(appearWithin):
		cause = fmt.Sprintf("it did not appear within %v: its engine hangs, or something holds up the loop devices of this machine", appearWithin)
	case <-ctx.Done():
		cause = context.Cause(ctx).Error()
	}
	err := errors.Join(fmt.Errorf("%w: device of volume %s: %s; ask again", engine.ErrUnavailable, d.entry.Volume, cause), p.kill())
	d.export.Abandon() // nobody has the channel any more, which ends the wait
	select {
	case <-made:
	case <-time.After(closeWithin):
	}
	return err
}

// spawn starts an engine process that stands by, and names it beside those given at once: a killed host leaves none that the next one does not know.
func (d *held) spawn(ctx context.Context, program Executable, beside ...running) (*process, error) {
	if err := d.update(func(e *entry) { e.Spawned++ }); err != nil {
		return nil, err
	}
	name := func(r running) error {
		return d.update(func(e *entry) { e.Engines = append(beside[:len(beside):len(beside)], r) })
	}
	p, err := spawn(ctx, d.host.machine, launch{
		volume: d.entry.Volume, program: program, device: d.export,
		socket: socketOf(d.host.sockets, d.entry.Volume, d.entry.Spawned),
		words:  filepath.Join(d.host.book.dir, fmt.Sprintf("%s.%d.words", d.entry.Volume, d.entry.Spawned)),
		named:  name,
	})
	if err != nil {
		return nil, err
	}
	if err := name(p.running()); err != nil { // with what it has said of itself
		return nil, errors.Join(err, p.kill())
	}
	return p, nil
}

// forget removes what is kept of a device that is no more.
func (d *held) forget() error {
	d.gone = true
	d.host.remove(d)
	if d.program != nil {
		d.program.Close()
	}
	return d.host.book.remove(d.entry.Volume)
}

func (d *held) tell(e Event) {
	e.Volume = d.entry.Volume
	d.host.events.add(e)
}

// giveUp has every request fail from now on. What is left of the device waits to be detached.
func (d *held) giveUp(cause string) error {
	if d.state == Lost {
		return nil
	}
	if p := d.engine; p != nil {
		if err := p.kill(); err != nil {
			return err
		}
		d.hear(p)
	}
	d.setEngine(nil)
	d.retry = nil
	d.become(Lost, cause) // before anybody can notice
	err := d.update(func(e *entry) { e.Lost, e.Engines = cause, nil })
	if d.export != nil {
		d.export.Abandon()
	}
	d.host.log.Error("device given up", append(d.log(), "cause", cause)...)
	d.tell(Event{Kind: GivenUp, Cause: cause})
	return err
}

// closeWithin bounds a wait for the kernel in the device's goroutine, which must look after the engine too. The work goes on
// in the kernel, and the next call joins it.
const closeWithin = 2 * time.Second

// detach takes the device away and ends its engine. The caller knows that nothing is owed to the guest any more.
func (d *held) detach(ctx context.Context) error {
	if d.state == Lost {
		return d.removeDead(ctx)
	}
	bounded, cancel := context.WithTimeoutCause(ctx, closeWithin, fmt.Errorf("%w: the kernel takes its time; ask again", engine.ErrBusy))
	defer cancel()
	if err := d.export.Close(bounded); err != nil {
		return err
	}
	if p := d.engine; p != nil {
		if err := p.leave(ctx); err != nil {
			d.host.log.Warn("engine did not end well", append(d.log(), "error", err)...)
		}
	}
	d.host.log.Info("device detached", d.log()...)
	d.tell(Event{Kind: Detached})
	return d.forget()
}

// removeDead takes away what the kernel has of a device that answers nothing.
func (d *held) removeDead(ctx context.Context) error {
	if err := d.host.machine.RemoveLeftovers(ctx, d.entry.Name); err != nil {
		return err
	}
	d.tell(Event{Kind: Detached, Cause: d.entry.Lost})
	return d.forget()
}

func (d *held) resize(ctx context.Context) error {
	if d.state != Serving {
		return fmt.Errorf("%w: volume %s: %s", ErrNotServing, d.entry.Volume, d.state)
	}
	bounded, cancel := context.WithTimeoutCause(ctx, closeWithin, fmt.Errorf("%w: the kernel takes its time; ask again", engine.ErrBusy))
	defer cancel()
	_, err := d.export.Resize(bounded)
	return err
}
