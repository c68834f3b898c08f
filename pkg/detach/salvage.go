package detach

import (
	"context"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Salvage is an operator's word to make one replica what the volume is, where the rules do not bring it up.
type Salvage struct {
	Volume volume.ID        `json:"volume"`
	From   engine.ReplicaID `json:"from"`
	Reason string           `json:"reason"`
	Actor  string           `json:"actor"`
	Kill   bool             `json:"kill,omitempty"` // a device that stands still may be given up
}

// Salvage has the engine carry out an operator's decision, and puts a forced receipt in force that tells of it. The same
// decision again returns that receipt for as long as nobody has attached since, and finishes what was cut short. ErrOverride without a reason
// or somebody who answers for it; engine.ErrNotNeeded where the rules suffice; else the errors of engine.Control. The
// work goes on when ctx ends: ErrInProgress then. progress may be nil.
func (g *Gate) Salvage(ctx context.Context, o Salvage, progress func(engine.Progress)) (receipt.Receipt, error) {
	if strings.TrimSpace(o.Reason) == "" || strings.TrimSpace(o.Actor) == "" {
		return receipt.Receipt{}, fmt.Errorf("%w: salvage of volume %s: it needs a reason and somebody who answers for it", ErrOverride, o.Volume)
	}
	for {
		if r, done := g.salvaged(ctx, o); done {
			return r, nil
		}
		// Joining other work proves nothing about this decision: look again after it.
		started, err := g.jobs.do(ctx, o.Volume, g.salvage(o, progress))
		if started && err != nil {
			return receipt.Receipt{}, err
		}
		if err := ctx.Err(); err != nil {
			return receipt.Receipt{}, fmt.Errorf("%w: salvage of volume %s: %w", ErrInProgress, o.Volume, err)
		}
	}
}

// salvaged says whether the newest receipt in force tells of this very decision. Where that cannot be told the engine says why.
func (g *Gate) salvaged(ctx context.Context, o Salvage) (r receipt.Receipt, done bool) {
	v, err := g.c.Control.Get(ctx, o.Volume)
	if err != nil || !v.Sealed || v.State == engine.Unavailable || v.State == engine.Quarantined {
		return r, false
	}
	raws, err := g.c.Control.Receipts(ctx, o.Volume)
	if err != nil || len(raws) == 0 {
		return r, false
	}
	r, err = g.c.Book.Verify(raws[len(raws)-1])
	return r, err == nil && r.Salvaged != nil && r.Salvaged.From == o.From
}

func (g *Gate) salvage(o Salvage, progress func(engine.Progress)) work {
	return func(ctx context.Context, report func(engine.Progress)) error {
		g.c.Log.Warn("operator salvages a volume", "volume", o.Volume, "replica", o.From, "reason", o.Reason, "actor", o.Actor)
		b, err := g.c.Control.Salvage(ctx, o.Volume, engine.SalvageOrder{From: o.From, Reason: o.Reason, Kill: o.Kill}, both(report, progress))
		if err != nil {
			return err
		}
		return g.notary.tell(ctx, b, receipt.Facts{Name: g.nameOf(ctx, o.Volume), Forced: true, Reason: o.Reason, Actor: o.Actor})
	}
}

func both(one, other func(engine.Progress)) func(engine.Progress) {
	if other == nil {
		return one
	}
	return func(p engine.Progress) {
		one(p)
		other(p)
	}
}

func (g *Gate) nameOf(ctx context.Context, id volume.ID) string {
	v, err := g.c.Control.Get(ctx, id)
	if err != nil {
		return "" // the receipt names the volume by its ID in any case
	}
	return v.Name
}
