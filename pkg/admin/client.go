package admin

import (
	"context"
	"net"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// Client asks a running `belay serve`. Volumes are named by their ID or the orchestrator's name. Errors wrap those of
// pkg/engine, pkg/detach and pkg/wire; wire.ErrNotRunning says that nobody serves there.
type Client struct{ wire *wire.Client }

// NewClient returns a client of the server at the socket.
func NewClient(socket string) *Client {
	c := wire.NewClient(socket, Codes)
	c.Peer = "belay serve"
	return &Client{wire: c}
}

// NewDialClient returns a client that calls dial for a connection to the server of the node, once for each call.
func NewDialClient(node volume.NodeID, dial func(context.Context) (net.Conn, error)) *Client {
	c := wire.NewDialClient(dial, "node "+string(node), Codes)
	c.Peer = "belay of node " + string(node)
	return &Client{wire: c}
}

// About says who answers.
func (c *Client) About(ctx context.Context) (About, error) {
	return wire.Call[About, none](ctx, c.wire, methodAbout, none{}, nil)
}

// Volumes lists every volume of every machine that answers.
func (c *Client) Volumes(ctx context.Context) (Listing, error) {
	return wire.Call[Listing, none](ctx, c.wire, methodVolumes, none{}, nil)
}

// Receipts lists the volume's receipts, oldest first.
func (c *Client) Receipts(ctx context.Context, volume string) (Receipts, error) {
	return wire.Call[Receipts, none](ctx, c.wire, methodReceipts, named{volume}, nil)
}

// Verify reads every replica of the volume again. progress may be nil. Cancelling ctx stops the reading.
func (c *Client) Verify(ctx context.Context, volume string, progress func(engine.Progress)) (Verification, error) {
	return wire.Call[Verification](ctx, c.wire, methodVerify, named{volume}, progress)
}

// Why tells what holds the volume, who said what, and what to do next.
func (c *Client) Why(ctx context.Context, volume string) (Why, error) {
	return wire.Call[Why, none](ctx, c.wire, methodWhy, named{volume}, nil)
}

// History tells what became of the volume, oldest first.
func (c *Client) History(ctx context.Context, volume string) (history.History, error) {
	return wire.Call[history.History, none](ctx, c.wire, methodHistory, named{volume}, nil)
}

// Fence overrides the gate: it shuts out every writer of the volume's open attachment, which epoch must name, alive or not, and
// returns the forced receipt that is in force then. What the writer had not synced may be gone. detach.ErrOverride where there
// is nothing to override or o does not apply; engine.ErrUnavailable where too few replicas answer.
func (c *Client) Fence(ctx context.Context, volume string, o detach.Override) (receipt.Receipt, error) {
	return wire.Call[receipt.Receipt, none](ctx, c.wire, methodFence, fencing{Volume: volume, Epoch: o.Epoch, Reason: o.Reason, Actor: o.Actor}, nil)
}

// Upgrade has an engine of another program, an absolute path on the server's machine, serve the attached volume. An error says why it
// does not; the engine before serves on then. progress may be nil. It goes on when ctx ends.
func (c *Client) Upgrade(ctx context.Context, volume, binary string, progress func(engine.Progress)) (engine.Upgrade, error) {
	return wire.Call[engine.Upgrade](ctx, c.wire, methodUpgrade, upgrading{Volume: volume, Binary: binary}, progress)
}
