package host

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// often is how often a choice is made that must not be one: if chance had it, it would show.
const often = 30

// TestDeathIsFirst: of all that has come up while the goroutine of a device was busy the death of its engine is first, and what is asked is next.
func TestDeathIsFirst(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	due := make(chan time.Time)
	close(due)
	for range often {
		d := newHeld(&Host{}, entry{Volume: "v"})
		d.commands = make(chan func(context.Context), 1)
		d.commands <- func(context.Context) {}
		d.retry = due
		d.engine = &process{ended: closed}
		if f := d.next(closed); f == nil || len(d.commands) != 1 {
			t.Fatal("something went before the death of the engine")
		}
		d.engine = nil
		if f := d.next(closed); f == nil || len(d.commands) != 0 {
			t.Fatal("something went before what was asked")
		}
	}
}

// TestGivenUpIsNotDone: nothing is done for who has given up before, also where the goroutine is idle.
func TestGivenUpIsNotDone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d := newHeld(&Host{}, entry{Volume: "v"})
	d.commands = make(chan func(context.Context), often)
	for range often {
		if err := d.do(ctx, false, func(context.Context) error { return nil }); !errors.Is(err, engine.ErrBusy) || len(d.commands) > 0 {
			t.Fatalf("got %v, %d commands wait", err, len(d.commands))
		}
	}
}
