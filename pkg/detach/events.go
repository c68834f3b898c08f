package detach

import (
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Events are callbacks for metrics and for the orchestrator's own events. Any may be nil. They are called from
// several goroutines and must not block.
type Events struct {
	// DetachRefused: the gate answered an Unpublish with an error.
	DetachRefused func(id volume.ID, node volume.NodeID, cause error)
	// BarrierStarted: the work that ends in a receipt began for the attachment.
	BarrierStarted func(a volume.Attachment)
	// BarrierProgress: how far it is.
	BarrierProgress func(a volume.Attachment, p engine.Progress)
	// ReceiptWritten: the receipt is in force.
	ReceiptWritten func(a volume.Attachment, r receipt.Receipt)
	// Fenced: every writer up to the attachment's is shut out.
	Fenced func(a volume.Attachment, proof engine.FenceProof, reason string)
	// Quarantined: copies disagree.
	Quarantined func(a volume.Attachment, cause string)
}

func (e Events) refused(id volume.ID, node volume.NodeID, cause error) {
	if e.DetachRefused != nil {
		e.DetachRefused(id, node, cause)
	}
}

func (e Events) started(a volume.Attachment) {
	if e.BarrierStarted != nil {
		e.BarrierStarted(a)
	}
}

func (e Events) receipt(a volume.Attachment, r receipt.Receipt) {
	if e.ReceiptWritten != nil {
		e.ReceiptWritten(a, r)
	}
}

func (e Events) fenced(a volume.Attachment, proof engine.FenceProof, reason string) {
	if e.Fenced != nil {
		e.Fenced(a, proof, reason)
	}
}

func (e Events) quarantined(a volume.Attachment, cause string) {
	if e.Quarantined != nil {
		e.Quarantined(a, cause)
	}
}

// reporting returns report with BarrierProgress beside it.
func (e Events) reporting(a volume.Attachment, report func(engine.Progress)) func(engine.Progress) {
	return func(p engine.Progress) {
		report(p)
		if e.BarrierProgress != nil {
			e.BarrierProgress(a, p)
		}
	}
}
