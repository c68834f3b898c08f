package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

func isNotFound(err error) bool { return errors.Is(err, engine.ErrNotFound) }

// Fence implements engine.Control: the old engine process is ended where it lives, which the kernel's locks prove, and a
// session without a device takes its place under a newer epoch.
func (e *Engine) Fence(ctx context.Context, a volume.Attachment, o engine.FenceOptions) (engine.FenceProof, error) {
	h := e.handle(a.Volume)
	return h.fence.do(ctx, nil, func(ctx context.Context, _ func(engine.Progress)) (engine.FenceProof, error) {
		if err := h.lock(ctx); err != nil {
			return engine.FenceProof{}, err
		}
		defer h.unlock()
		return e.takeOver(ctx, h, a, o)
	})
}

func (e *Engine) takeOver(ctx context.Context, h *handle, a volume.Attachment, o engine.FenceOptions) (engine.FenceProof, error) {
	if err := e.current(a); err != nil {
		return engine.FenceProof{}, err
	}
	recovery := h.recovering()
	if recovery != nil && recovery.salvaging {
		return engine.FenceProof{}, errSalvaging(a.Volume)
	}
	if recovery != nil && recovery.broken.Load() == nil {
		return proofOf(recovery), nil
	}
	if recovery != nil { // it lost its replicas, or a seal of it is in doubt: the next epoch finds out
		recovery.Close()
		h.setRecovery(nil)
	}
	if err := e.endWriter(ctx, a, o); err != nil {
		return engine.FenceProof{}, err
	}
	s, err := e.open(ctx, a.Volume, ForRecovery, a.Epoch)
	if errors.Is(err, engine.ErrBusy) && o.Kill {
		if err = e.endHolder(ctx, a.Volume); err == nil {
			s, err = e.open(ctx, a.Volume, ForRecovery, a.Epoch)
		}
	}
	if err != nil {
		return engine.FenceProof{}, err
	}
	return proofOf(s), e.keep(h, s)
}

// endWriter gives the device up where that is allowed. Its engine is dead then, and none will follow it.
func (e *Engine) endWriter(ctx context.Context, a volume.Attachment, o engine.FenceOptions) error {
	p, err := e.process(ctx, a.Volume)
	switch {
	case isNotFound(err), errors.Is(err, engine.ErrDeviceLost):
		return nil
	case err != nil:
		return err
	case !o.Kill:
		return fmt.Errorf("%w: %s: its device is %s, its engine process %d", engine.ErrAttached, a, p.device.State, p.device.Engine.PID)
	}
	e.Log.Warn("ending a writer to fence it", "volume", a.Volume, "epoch", a.Epoch, "cause", o.Reason)
	return e.Host.GiveUp(ctx, a.Volume, "fenced: "+o.Reason)
}

// current refuses an attachment that is not the open one, before anybody is ended for it.
func (e *Engine) current(a volume.Attachment) error {
	c, err := e.survey(a.Volume).newest()
	if err == nil && c.Published != a.Epoch {
		err = fmt.Errorf("%w: %s: the open attachment has epoch %d", engine.ErrStaleEpoch, a, c.Published)
	}
	return err
}

func proofOf(s *Session) engine.FenceProof {
	p := engine.FenceProof{Epoch: s.epoch}
	for _, r := range s.view.Load().voters() {
		p.Witness = append(p.Witness, r.id())
	}
	return p
}

// Evidence implements engine.Control.
func (e *Engine) Evidence(ctx context.Context, a volume.Attachment, progress func(engine.Progress)) (engine.Barrier, error) {
	h := e.handle(a.Volume)
	return h.evidence.do(ctx, progress, func(ctx context.Context, report func(engine.Progress)) (engine.Barrier, error) {
		recovery := h.recovering()
		if recovery != nil && recovery.salvaging {
			return engine.Barrier{}, errSalvaging(a.Volume)
		}
		if recovery != nil {
			return sameAttachment(a)(recovery.Evidence(ctx, report))
		}
		p, err := e.alive(ctx, a.Volume)
		switch {
		case err != nil:
			return engine.Barrier{}, err
		case p != nil:
			return sameAttachment(a)(p.evidence(ctx, report))
		}
		return engine.Barrier{}, fmt.Errorf("%w: %s: nobody holds its epoch; fence it first", engine.ErrNotStopped, a)
	})
}

func sameAttachment(a volume.Attachment) func(engine.Barrier, error) (engine.Barrier, error) {
	return func(b engine.Barrier, err error) (engine.Barrier, error) {
		if err == nil && b.Attachment.Epoch != a.Epoch {
			err = fmt.Errorf("%w: %s: the open attachment is %s", engine.ErrStaleEpoch, a, b.Attachment)
		}
		return b, err
	}
}

// Seal implements engine.Control.
func (e *Engine) Seal(ctx context.Context, b engine.Barrier, receipt []byte) error {
	h := e.handle(b.Attachment.Volume)
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	if recovery := h.recovering(); recovery != nil {
		err := recovery.Seal(b, receipt)
		if err == nil || recovery.LostCause() != nil { // in doubt: the next epoch finds out, and needs the replicas for that
			recovery.Close()
			h.setRecovery(nil)
		}
		return err
	}
	p, err := e.alive(ctx, b.Attachment.Volume)
	switch {
	case err != nil:
		return err
	case p != nil:
		return p.seal(ctx, b, receipt)
	}
	return e.sealedBy(b, receipt)
}

// sealedBy answers a repeated Seal whose first call succeeded.
func (e *Engine) sealedBy(b engine.Barrier, receipt []byte) error {
	c, err := e.survey(b.Attachment.Volume).newest()
	if err != nil {
		return err
	}
	if c.Flags.Has(quorum.Sealed) && c.Head == sha256.Sum256(receipt) {
		return nil
	}
	return fmt.Errorf("%w: %s: the writer of barrier %s is gone", engine.ErrStaleEpoch, b.Attachment, b.View)
}

// Quarantine implements engine.Control.
func (e *Engine) Quarantine(ctx context.Context, a volume.Attachment, b engine.Barrier) error {
	local := quarantine(b.Unresolved)
	return e.change(ctx, a.Volume, func(p *process) error { return p.quarantine(ctx, b.Unresolved) }, local)
}

// quarantineFindings bounds the findings kept in the record.
const quarantineFindings = 8

func quarantine(findings []engine.Finding) func(*quorum.Config) error {
	return func(c *quorum.Config) error {
		c.Flags |= quorum.Quarantined
		return editAttributes(c, func(a *attributes) { a.Unresolved = findings[:min(len(findings), quarantineFindings)] })
	}
}

// Receipts implements engine.Control: the chain that ends in the receipt that the seal names. Receipts that no seal names are
// leftovers of a detach that was cut short, and are left out.
func (e *Engine) Receipts(_ context.Context, id volume.ID) ([][]byte, error) {
	f := e.survey(id)
	c, err := f.newest()
	if err != nil {
		return nil, e.maybeAway(err)
	}
	all, _ := keptIn(id, dirsOf(f.peeks), e.Log)
	return chain(all, c.Head, id)
}

// linked is a receipt as it is kept: behind the hash of the one before it, so that leftovers drop out of the chain.
type linked struct {
	previous [32]byte
	receipt  []byte
}

func link(previous [32]byte, receipt []byte) []byte {
	return append(previous[:], receipt...)
}

func unlink(kept []byte) (l linked, ok bool) {
	if len(kept) < len(l.previous) {
		return l, false
	}
	copy(l.previous[:], kept)
	l.receipt = kept[len(l.previous):]
	return l, true
}

// chain follows the receipts back from the head. Where one is missing the rest cannot be told from leftovers, and the
// newest part is returned with an error.
func chain(all map[[32]byte]linked, head [32]byte, id volume.ID) (out [][]byte, err error) {
	for at := head; at != [32]byte{}; {
		if len(out) > len(all) {
			return nil, fmt.Errorf("%w: volume %s: receipt %x leads back to itself", engine.ErrUnavailable, id, at[:8])
		}
		l, ok := all[at]
		if !ok {
			err = fmt.Errorf("%w: volume %s: receipt %x is on no store that is there", engine.ErrUnavailable, id, at[:8])
			break
		}
		out = append(out, l.receipt)
		at = l.previous
	}
	slices.Reverse(out)
	return out, err
}
