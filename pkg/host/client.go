package host

import (
	"context"
	"errors"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// Client asks the host of this machine. A host that was killed is followed by another, so calls wait for one for a while. Safe for
// concurrent use.
type Client struct {
	wire    *wire.Client
	network wire.Network
}

// NewClient returns a client of the host of a state directory.
func NewClient(state string) *Client { return NewClientOn(wire.Unix{}, state) }

// NewClientOn is NewClient on another network than this machine's.
func NewClientOn(n wire.Network, state string) *Client {
	c := &Client{wire: n.Client(SocketIn(state), Codes), network: n}
	c.wire.Peer = "belay host"
	return c
}

// Engine returns a client of the engine process that serves the device now. Where it dies the next one has another socket.
func (c *Client) Engine(d Device) *wire.Client { return clientOf(c.network, d.Volume, d.Engine.Socket) }

// Pace of a client that waits for a host.
const (
	hostWithin = 10 * time.Second
	hostEvery  = 20 * time.Millisecond
)

// call asks, and asks again where nobody listens or the answer was lost with the host: every method is idempotent.
func call[Resp any](ctx context.Context, c *Client, method string, req any, progress func(engine.Progress)) (Resp, error) {
	deadline := time.Now().Add(hostWithin)
	for {
		resp, err := wire.Call[Resp](ctx, c.wire, method, req, progress)
		if !errors.Is(err, wire.ErrNotRunning) && !errors.Is(err, wire.ErrLost) || time.Now().After(deadline) {
			return resp, err
		}
		select {
		case <-ctx.Done():
			return resp, err
		case <-time.After(hostEvery):
		}
	}
}

// About says who answers. It does not wait for a host.
func (c *Client) About(ctx context.Context) (About, error) {
	return wire.Call[About, nothing](ctx, c.wire, "about", nothing{}, nil)
}

// Attach returns the volume's device, made where there is none: its engine has recovered the volume and serves. Another
// attachment's device, by its Key, is returned as it is. An error of the engine keeps its class.
func (c *Client) Attach(ctx context.Context, s Spec, progress func(engine.Progress)) (Device, error) {
	return call[Device](ctx, c, "attach", s, progress)
}

// Device describes the volume's device; engine.ErrNotFound where it has none.
func (c *Client) Device(ctx context.Context, id volume.ID) (Device, error) {
	return call[Device](ctx, c, "device", which{id}, nil)
}

// Devices describes all.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	return call[[]Device](ctx, c, "devices", nothing{}, nil)
}

// Detach takes the device away and ends its engine, or what is left of a lost one. device.ErrInUse where somebody has it open: then
// all is as before. It does not ask whether the volume is sealed.
func (c *Client) Detach(ctx context.Context, id volume.ID) error {
	_, err := call[nothing](ctx, c, "detach", which{id}, nil)
	return err
}

// Resize lets the kernel see the size that the engine has now.
func (c *Client) Resize(ctx context.Context, id volume.ID) error {
	_, err := call[nothing](ctx, c, "resize", which{id}, nil)
	return err
}

// GiveUp kills the engine and has every request to the device fail from now on. When it returns the engine is dead.
func (c *Client) GiveUp(ctx context.Context, id volume.ID, cause string) error {
	_, err := call[nothing](ctx, c, "give-up", givenUp{id, cause}, nil)
	return err
}

// Upgrade has an engine of another program serve the device. ErrRolledBack where it cannot and the old one serves on.
func (c *Client) Upgrade(ctx context.Context, id volume.ID, program string, progress func(engine.Progress)) (Upgrade, error) {
	return wire.Call[Upgrade](ctx, c.wire, "upgrade", upgrading{id, program}, progress)
}

// Follow hands events to f, in order and at least once each, until ctx ends, or the host does: then an error. Where another host
// follows, call it again: cursor remembers.
func (c *Client) Follow(ctx context.Context, cursor *Cursor, f func(Event)) error {
	for ctx.Err() == nil {
		got, err := wire.Call[followed, nothing](ctx, c.wire, "events", following(*cursor), nil)
		if err != nil {
			return err
		}
		for _, e := range got.Events {
			f(e)
			cursor.After = e.Sequence
		}
		cursor.Host = got.Host
	}
	return nil
}

// Cursor is how far a follower has come. The zero value: nothing seen.
type Cursor following
