package admin

import (
	"context"
	"fmt"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

const (
	methodPlan    = "salvage-plan"
	methodSalvage = "salvage"
)

// SalvagePlan is what each store holds of a volume, and what a person may decide.
type SalvagePlan struct {
	engine.SalvagePlan
	Proof      *receipt.Receipt `json:"proof,omitempty"`      // the newest receipt, where any store that is there has it
	ProofError string           `json:"proofError,omitempty"` // why it is not believed
}

type planning struct {
	Volume string `json:"volume"`
	Read   bool   `json:"read,omitempty"`
}

// salvaging is a decision about a volume that is named as people do.
type salvaging struct {
	Volume string           `json:"volume"`
	From   engine.ReplicaID `json:"from"`
	Reason string           `json:"reason"`
	Actor  string           `json:"actor"`
	Kill   bool             `json:"kill,omitempty"`
}

func (s server) handleSalvage(w *wire.Server) {
	wire.Handle(w, methodPlan, s.plan)
	wire.Handle(w, methodSalvage, s.salvage)
}

// locate is resolve for volumes that nobody can get: those are listed all the same.
func (s server) locate(ctx context.Context, name string) (volume.ID, error) {
	id, err := volume.IDForName(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", engine.ErrInvalid, err)
	}
	all, err := s.Control.List(ctx)
	if err != nil {
		return "", err
	}
	for _, v := range all {
		if string(v.ID) == name || v.Name == name {
			return v.ID, nil
		}
	}
	return id, nil // the engine knows best
}

func (s server) plan(ctx context.Context, p planning, progress func(engine.Progress)) (SalvagePlan, error) {
	id, err := s.locate(ctx, p.Volume)
	if err != nil {
		return SalvagePlan{}, err
	}
	found, err := s.Control.SalvagePlan(ctx, id, p.Read, progress)
	if err != nil {
		return SalvagePlan{}, err
	}
	out := SalvagePlan{SalvagePlan: found}
	if len(found.Receipt) > 0 {
		r, err := s.Book.Verify(found.Receipt)
		out.ProofError = text(err)
		if err == nil {
			out.Proof = &r
		}
	}
	return out, nil
}

func (s server) salvage(ctx context.Context, o salvaging, progress func(engine.Progress)) (receipt.Receipt, error) {
	id, err := s.locate(ctx, o.Volume)
	if err != nil {
		return receipt.Receipt{}, err
	}
	return s.Gate.Salvage(ctx, detach.Salvage{Volume: id, From: o.From, Reason: o.Reason, Actor: o.Actor, Kill: o.Kill}, progress)
}

// SalvagePlan tells what each store holds of the volume, whether it comes up by itself, and what may be decided where it does not. It changes
// nothing. read: every block is read. progress may be nil.
func (c *Client) SalvagePlan(ctx context.Context, volume string, read bool, progress func(engine.Progress)) (SalvagePlan, error) {
	return wire.Call[SalvagePlan](ctx, c.wire, methodPlan, planning{volume, read}, progress)
}

// Salvage makes one store's replica what the volume is, and returns the forced receipt that tells of it. engine.ErrNotNeeded where the
// volume comes up by itself; else the errors of detach.Gate. progress may be nil.
func (c *Client) Salvage(ctx context.Context, volume string, o detach.Salvage, progress func(engine.Progress)) (receipt.Receipt, error) {
	return wire.Call[receipt.Receipt](ctx, c.wire, methodSalvage, salvaging{Volume: volume, From: o.From, Reason: o.Reason, Actor: o.Actor, Kill: o.Kill}, progress)
}
