package main

import (
	"errors"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/volume"
)

// reasons name, for metrics, why a detach was refused. The first that fits is taken.
var reasons = []struct {
	err  error
	word string
}{
	{detach.ErrDataLoss, "data-loss"}, {engine.ErrQuarantined, "data-loss"}, {detach.ErrInProgress, "in-progress"},
	{detach.ErrHeld, "held"}, {detach.ErrNodeSilent, "node-silent"}, {detach.ErrOverride, "override"}, {detach.ErrJournal, "journal"},
	{engine.ErrUnavailable, "unavailable"}, {engine.ErrBusy, "busy"},
}

func reasonOf(cause error) string {
	for _, r := range reasons {
		if errors.Is(cause, r.err) {
			return r.word
		}
	}
	return "unknown"
}

// detachEvents counts what the gate and the agent do.
func detachEvents(m *telemetry.Metrics) detach.Events {
	return detach.Events{
		DetachRefused:  func(_ volume.ID, _ volume.NodeID, cause error) { m.DetachRefused(reasonOf(cause)) },
		BarrierStarted: func(a volume.Attachment) { m.BarrierStarted(a.Volume) },
		BarrierProgress: func(a volume.Attachment, p engine.Progress) {
			if p.Phase == "verify" {
				m.BarrierVerified(a.Volume, p.Done)
			}
		},
		ReceiptWritten: func(a volume.Attachment, kind receipt.Kind) { m.Receipt(a.Volume, string(kind)) },
		Fenced:         func(volume.Attachment, engine.FenceProof, string) { m.Fenced() },
		Quarantined:    func(volume.Attachment, string) { m.Quarantined() },
	}
}

// mirrorEvents counts what the engine does.
func mirrorEvents(m *telemetry.Metrics) mirror.Events {
	return mirror.Events{
		Replicas: m.Replicas,
		Repaired: func(volume.ID) { m.Repaired() },
		Scrubbed: m.Scrubbed,
		Engine:   m.Engine,
	}
}
