package detach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// notary turns a stopped or fenced writer into a receipt in force. Agent and gate share it.
type notary struct {
	control engine.Control
	book    *receipt.Book
	log     *slog.Logger
	events  Events
}

// standing is where a volume stands with regard to one of its attachments.
type standing struct {
	volume  engine.Volume
	current bool // the attachment is the open one
	// settled: nothing is left to prove for the attachment: a receipt covers it, it is closed, or nobody ever wrote in it.
	settled bool
	fault   string // why a seal is there and no receipt that covers it
}

// standing observes. An unknown volume is settled: the engine says so only where a majority proves it.
func (n notary) standing(ctx context.Context, a volume.Attachment) (standing, error) {
	v, err := n.control.Get(ctx, a.Volume)
	if errors.Is(err, engine.ErrNotFound) {
		return standing{settled: true}, nil
	}
	if err != nil {
		return standing{}, err
	}
	s := standing{volume: v, current: v.Attachment != nil && *v.Attachment == a}
	if !s.current || !v.Staged {
		// A newer attachment is only opened once this one is sealed. In a view that too few replicas support,
		// "closed" and "never staged" prove nothing.
		s.settled = v.State != engine.Unavailable
		return s, nil
	}
	s.settled, s.fault, err = n.covered(ctx, v)
	return s, err
}

// covered says whether a verified receipt in force covers every writer of the open attachment, and why not where the
// volume is sealed all the same. A receipt of an older attachment, or from before the newest writer, covers nothing.
func (n notary) covered(ctx context.Context, v engine.Volume) (bool, string, error) {
	if !v.Sealed && !mutant.ReceiptOfEarlierWriter || v.Attachment == nil {
		return false, "", nil
	}
	raws, err := n.control.Receipts(ctx, v.ID)
	if err != nil {
		return false, "", err
	}
	if len(raws) == 0 {
		return false, fmt.Sprintf("volume %s is sealed without a receipt", v.ID), nil
	}
	r, err := n.book.Verify(raws[len(raws)-1])
	switch {
	case err != nil:
		return false, fmt.Sprintf("the receipt of volume %s is not to be trusted: %v", v.ID, err), nil
	case r.Attachment != *v.Attachment || r.Writer < v.Writer && !mutant.ReceiptOfEarlierWriter:
		return false, fmt.Sprintf("the newest receipt of volume %s is for %v and writers up to %d, not for %v and writer %d",
			v.ID, r.Attachment, r.Writer, *v.Attachment, v.Writer), nil
	}
	return true, "", nil
}

// fence shuts the attachment's writers out.
func (n notary) fence(ctx context.Context, a volume.Attachment, kill bool, reason string) error {
	proof, err := n.control.Fence(ctx, a, engine.FenceOptions{Kill: kill, Reason: reason})
	if errors.Is(err, engine.ErrAttached) {
		return fmt.Errorf("%w: %v: its writer lives after all: %w; next: end it, or declare node %s lost (out-of-service taint)", ErrHeld, a, err, a.Node)
	}
	if err != nil {
		return fmt.Errorf("fence %v: %w", a, err)
	}
	n.log.Info("writer fenced", "volume", a.Volume, "node", a.Node, "epoch", a.Epoch, "fence", proof.Epoch, "reason", reason)
	n.events.fenced(a, proof, reason)
	return nil
}

// earn collects the evidence of a writer that is stopped, judges it, and puts the receipt in force. engine.ErrStaleEpoch
// where something happened meanwhile: observe and start over.
func (n notary) earn(ctx context.Context, a volume.Attachment, f receipt.Facts, report func(engine.Progress)) error {
	b, err := n.control.Evidence(ctx, a, report)
	if err != nil {
		return fmt.Errorf("evidence for %v: %w", a, lossOf(err))
	}
	if b.Attachment != a {
		return fmt.Errorf("evidence for %v: the engine answered for %v", a, b.Attachment)
	}
	if !f.Forced {
		if err := n.judge(ctx, a, b); err != nil {
			return err
		}
	}
	return n.tell(ctx, b, f)
}

// tell signs what the barrier says and puts it in force.
func (n notary) tell(ctx context.Context, b engine.Barrier, f receipt.Facts) error {
	a := b.Attachment
	raw, r, err := n.book.Sign(b, f)
	if err != nil {
		return err
	}
	if err := n.control.Seal(ctx, b, raw); err != nil {
		return fmt.Errorf("seal %v: %w", a, err)
	}
	n.log.Info("receipt in force", "volume", a.Volume, "node", a.Node, "epoch", a.Epoch, "writer", r.Writer, "kind", r.Kind,
		"verified", int64(r.Verified), "repairs", r.RepairCount, "reason", r.Reason)
	n.events.receipt(a, r)
	return nil
}

// judge turns a verdict that is not Pass into the refusal, after recording a disagreement.
func (n notary) judge(ctx context.Context, a volume.Attachment, b engine.Barrier) error {
	v := Judge(b)
	switch v.Outcome {
	case Pass:
		return nil
	case TooFew:
		return fmt.Errorf("%w: %v: %s; bring the missing replicas back, then ask again", engine.ErrUnavailable, a, v.Because)
	}
	refusal := fmt.Errorf("%w: %v: %s; the volume is quarantined until a person decides", ErrDataLoss, a, v.Because)
	if err := n.control.Quarantine(ctx, a, b); err != nil {
		return fmt.Errorf("%w (and could not be recorded: %w)", refusal, err)
	}
	n.log.Error("volume quarantined", "volume", a.Volume, "node", a.Node, "epoch", a.Epoch, "cause", v.Because)
	n.events.quarantined(a, v.Because)
	return refusal
}

// lossOf adds ErrDataLoss to an engine's word that copies disagree.
func lossOf(err error) error {
	if errors.Is(err, engine.ErrQuarantined) {
		return fmt.Errorf("%w: %w", ErrDataLoss, err)
	}
	return err
}
