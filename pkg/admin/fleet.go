package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// FleetConfig is what a server for several machines answers from. All fields are required.
type FleetConfig struct {
	About About
	// Nodes names every machine that has a server of ours, or had one and has volumes, whether it can be reached or not.
	Nodes func(ctx context.Context) ([]volume.NodeID, error)
	// Client asks the machine's server.
	Client func(volume.NodeID) *Client
	Log    *slog.Logger
}

type fleet struct{ FleetConfig }

// NewFleetServer returns a server for the API which has the servers of several machines answer: the one that a volume's handle names (volume.Handle), or else the one
// that has a volume of that name. Notices are asked of each machine itself.
func NewFleetServer(c FleetConfig) *wire.Server {
	f, w := fleet{c}, wire.NewServer(Codes, c.Log)
	wire.Handle(w, methodAbout, func(context.Context, none, func(none)) (About, error) { return c.About, nil })
	wire.Handle(w, methodVolumes, f.volumes)
	handle(w, f, methodReceipts, func(ctx context.Context, c *Client, v string, _ named, _ func(none)) (Receipts, error) {
		return c.Receipts(ctx, v)
	})
	handle(w, f, methodWhy, func(ctx context.Context, c *Client, v string, _ named, _ func(none)) (Why, error) {
		return c.Why(ctx, v)
	})
	handle(w, f, methodHistory, func(ctx context.Context, c *Client, v string, _ named, _ func(none)) (history.History, error) {
		return c.History(ctx, v)
	})
	handle(w, f, methodVerify, func(ctx context.Context, c *Client, v string, _ named, told func(engine.Progress)) (Verification, error) {
		return c.Verify(ctx, v, told)
	})
	handle(w, f, methodFence, func(ctx context.Context, c *Client, v string, q fencing, _ func(none)) (receipt.Receipt, error) {
		return c.Fence(ctx, v, detach.Override{Epoch: q.Epoch, Reason: q.Reason, Actor: q.Actor})
	})
	handle(w, f, methodUpgrade, func(ctx context.Context, c *Client, v string, q upgrading, told func(engine.Progress)) (engine.Upgrade, error) {
		return c.Upgrade(ctx, v, q.Binary, told)
	})
	handle(w, f, methodPlan, func(ctx context.Context, c *Client, v string, q planning, told func(engine.Progress)) (SalvagePlan, error) {
		return c.SalvagePlan(ctx, v, q.Read, told)
	})
	handle(w, f, methodSalvage, func(ctx context.Context, c *Client, v string, q salvaging, told func(engine.Progress)) (receipt.Receipt, error) {
		return c.Salvage(ctx, v, detach.Salvage{From: q.From, Reason: q.Reason, Actor: q.Actor, Kill: q.Kill}, told)
	})
	return w
}

// handle answers a method by the server of the machine that has the volume.
func handle[Q interface{ subject() string }, P, A any](w *wire.Server, f fleet, method string, do func(ctx context.Context, c *Client, volume string, q Q, told func(P)) (A, error)) {
	wire.Handle(w, method, func(ctx context.Context, q Q, told func(P)) (none A, _ error) {
		node, id, err := f.find(ctx, q.subject())
		if err != nil {
			return none, err
		}
		return do(ctx, f.Client(node), id, q, told)
	})
}

func (n named) subject() string     { return n.Volume }
func (q fencing) subject() string   { return q.Volume }
func (q upgrading) subject() string { return q.Volume }
func (q planning) subject() string  { return q.Volume }
func (q salvaging) subject() string { return q.Volume }

// find says on which machine the volume is, and its ID there.
func (f fleet) find(ctx context.Context, name string) (volume.NodeID, string, error) {
	if id, node, err := volume.ParseHandle(name); err == nil && node != "" {
		return node, string(id), f.known(ctx, node)
	}
	all, err := f.volumes(ctx, none{}, nil)
	if err != nil {
		return "", "", err
	}
	var found []Volume
	for _, v := range all.Volumes {
		if string(v.ID) == name || v.Name == name {
			found = append(found, v)
		}
	}
	switch {
	case len(found) == 1:
		return found[0].At, string(found[0].ID), nil
	case len(found) > 1:
		return "", "", fmt.Errorf("%w: %s names several volumes: say which: %s", engine.ErrInvalid, name, strings.Join(handlesOf(found), ", "))
	case len(all.Away) > 0:
		return "", "", fmt.Errorf("%w: volume %s: not on a node that answers, and %s", engine.ErrUnavailable, name, all.Away[0])
	}
	return "", "", fmt.Errorf("volume %s: %w on any node; `belay volumes` lists those there are", name, engine.ErrNotFound)
}

func handlesOf(all []Volume) (out []string) {
	for _, v := range all {
		out = append(out, string(v.ID)+"@"+string(v.At))
	}
	return out
}

func (f fleet) known(ctx context.Context, node volume.NodeID) error {
	nodes, err := f.Nodes(ctx)
	if err == nil && !slices.Contains(nodes, node) {
		err = fmt.Errorf("node %s: %w", node, engine.ErrNotFound)
	}
	return err
}

// volumes asks all machines at the same time.
func (f fleet) volumes(ctx context.Context, _ none, _ func(none)) (Listing, error) {
	nodes, err := f.Nodes(ctx)
	if err != nil {
		return Listing{}, err
	}
	listings, all := make([]Listing, len(nodes)), Listing{Volumes: []Volume{}}
	var asked sync.WaitGroup
	for i, n := range nodes {
		asked.Go(func() { listings[i] = f.volumesOf(ctx, n) })
	}
	asked.Wait()
	for _, l := range listings {
		all.Volumes, all.Away = append(all.Volumes, l.Volumes...), append(all.Away, l.Away...)
	}
	slices.SortFunc(all.Volumes, func(a, b Volume) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.At, b.At))
	})
	return all, ctx.Err()
}

func (f fleet) volumesOf(ctx context.Context, node volume.NodeID) Listing {
	ctx, cancel := context.WithTimeout(ctx, detach.StatusTimeout)
	defer cancel()
	l, err := f.Client(node).Volumes(ctx)
	if err != nil {
		return Listing{Away: []Away{{Node: node, Cause: err.Error()}}}
	}
	for i := range l.Volumes {
		l.Volumes[i].At = node
	}
	return l
}

// Listing is what volumes there are, ordered by ID.
type Listing struct {
	Volumes []Volume `json:"volumes"`
	Away    []Away   `json:"away,omitempty"` // machines whose volumes are not listed
}

// Err says which machines did not answer; nil where all did.
func (l Listing) Err() error {
	var errs []error
	for _, a := range l.Away {
		errs = append(errs, errors.New(a.String()+"; its volumes are not listed"))
	}
	return errors.Join(errs...)
}

// Away is a machine that does not answer.
type Away struct {
	Node  volume.NodeID `json:"node"`
	Cause string        `json:"cause"`
}

func (a Away) String() string { return fmt.Sprintf("node %s does not answer: %s", a.Node, a.Cause) }
