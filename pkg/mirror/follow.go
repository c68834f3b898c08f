package mirror

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// followEvery is how often a host that went away is looked for.
const followEvery = 200 * time.Millisecond

// follow reports what the host says until ctx ends.
func (e *Engine) follow(ctx context.Context) {
	var at host.Cursor
	var relayed sync.Map // engine processes whose tally is followed
	for ctx.Err() == nil {
		e.relayAll(ctx, &relayed)
		// An error: the host has gone, and another comes.
		_ = e.Host.Follow(ctx, &at, func(v host.Event) {
			e.happened(v)
			e.relayAll(ctx, &relayed)
		})
		select {
		case <-ctx.Done():
		case <-time.After(followEvery):
		}
	}
}

// happened hands an event on.
func (e *Engine) happened(v host.Event) {
	if e.Events.Host != nil {
		e.Events.Host(v)
	}
	switch v.Kind {
	case host.Attached, host.TakenOver:
		e.Events.engine(v.Volume, true)
	case host.Died, host.GivenUp, host.Detached:
		e.Events.engine(v.Volume, false)
	}
}

// relayAll follows the tally of every engine process that is not followed yet. Sockets do not tell them apart: the next attachment of a
// volume has the same again.
func (e *Engine) relayAll(ctx context.Context, relayed *sync.Map) {
	devices, err := e.Host.Devices(ctx)
	if err != nil {
		return
	}
	for _, d := range devices {
		if d.State != host.Serving {
			continue
		}
		process := fmt.Sprint(d.Engine.PID, "/", d.Engine.Start)
		if _, known := relayed.LoadOrStore(process, true); known {
			continue
		}
		e.follows.Go(func() {
			relay(ctx, d.Volume, e.Host.Engine(d), e.Events)
			relayed.Delete(process)
		})
	}
}

// relay turns what an engine process counts into events here, until the process ends.
func relay(ctx context.Context, id volume.ID, process *wire.Client, events Events) {
	var before tally
	// An error means that it ended: its successor is followed on its own.
	_, _ = wire.Call[nothing](ctx, process, "tally", nothing{}, func(now tally) {
		events.difference(id, before, now)
		before = now
	})
}
