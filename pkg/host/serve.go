package host

import (
	"context"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// About is what the host says of itself.
type About struct {
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// Requests of the host's methods.
type (
	which   struct{ Volume volume.ID }
	givenUp struct {
		Volume volume.ID
		Cause  string
	}
	upgrading struct {
		Volume  volume.ID
		Program string
	}
	following struct {
		Host  int // whose sequence it is
		After uint64
	}
	followed struct {
		Host   int
		Events []Event
	}
)

// methods are what the host answers.
func (h *Host) methods() *wire.Server {
	s := wire.NewServer(Codes, h.log)
	wire.Handle(s, "about", func(context.Context, nothing, func(nothing)) (About, error) {
		return About{PID: h.machine.Self().PID, Version: h.version, Started: h.started}, nil
	})
	wire.Handle(s, "attach", h.attach)
	wire.Handle(s, "devices", func(context.Context, nothing, func(nothing)) ([]Device, error) { return h.list(), nil })
	wire.Handle(s, "device", func(_ context.Context, w which, _ func(nothing)) (Device, error) {
		d, err := h.find(w.Volume)
		if err != nil {
			return Device{}, err
		}
		return d.device(), nil
	})
	wire.Handle(s, "detach", func(ctx context.Context, w which, _ func(nothing)) (nothing, error) {
		return nothing{}, h.on(ctx, w.Volume, false, (*held).detach)
	})
	wire.Handle(s, "resize", func(ctx context.Context, w which, _ func(nothing)) (nothing, error) {
		return nothing{}, h.on(ctx, w.Volume, false, (*held).resize)
	})
	wire.Handle(s, "give-up", func(ctx context.Context, g givenUp, _ func(nothing)) (nothing, error) {
		return nothing{}, h.on(ctx, g.Volume, true, func(d *held, _ context.Context) error { return d.giveUp(g.Cause) })
	})
	wire.Handle(s, "upgrade", h.upgrade)
	wire.Handle(s, "events", h.follow)
	return s
}

// on has the volume's goroutine do f.
func (h *Host) on(ctx context.Context, id volume.ID, urgent bool, f func(*held, context.Context) error) error {
	d, err := h.find(id)
	if err != nil {
		return err
	}
	return d.do(ctx, urgent, func(ctx context.Context) error { return f(d, ctx) })
}

// upgrade goes on when the caller hangs up: nothing but the channel is shared with the volume's goroutine, which also opens the program, so
// that it is not left open where its turn never comes.
func (h *Host) upgrade(ctx context.Context, u upgrading, report func(engine.Progress)) (out Upgrade, err error) {
	upgraded := make(chan Upgrade, 1)
	err = h.on(ctx, u.Volume, false, func(d *held, ctx context.Context) error {
		program, err := h.machine.Open(u.Program)
		if err != nil {
			return fmt.Errorf("%w: program: %w", engine.ErrInvalid, err)
		}
		out, err := d.upgrade(ctx, program, report)
		upgraded <- out
		if d.program != program {
			program.Close()
		}
		return err
	})
	select {
	case out = <-upgraded:
	default: // not done, or not even begun
	}
	return out, err
}

// follow answers with the events behind a sequence, as soon as there are any.
func (h *Host) follow(ctx context.Context, f following, _ func(nothing)) (followed, error) {
	h.events.watch(1)
	defer h.events.watch(-1)
	if f.Host != h.machine.Self().PID {
		f.After = 0
	}
	return followed{Host: h.machine.Self().PID, Events: h.events.after(ctx, f.After)}, nil
}
