package driver

import (
	"context"
	"errors"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// An orchestrator that has staged a volume for one workload does not stage it again for the next on the same node: kubelet goes straight to
// NodePublishVolume, and tries that for ever. Where the device was lost meanwhile nothing would ever come of it. So NodePublishVolume stages anew what
// has no user left.

// restageable returns the staging that a refused publication needs, if that is the one thing in its way.
func (d *Driver) restageable(ctx context.Context, p publication, refusal error) (staging, bool) {
	s := staging{at: volume.Attachment{Volume: p.id, Node: d.NodeID, Epoch: p.epoch}, path: p.staging, want: p.want}
	if refusal == nil || p.epoch == 0 {
		return s, false
	}
	e, known, err := d.Agent.Entry(p.id)
	switch {
	case err != nil:
		return s, false
	case known:
		unused := e.Attachment == s.at && e.Staging == p.staging && len(e.Targets) == 0
		// On its way off or back: an earlier call had begun this, and what it needed was away, or takes longer than a call.
		return s, unused && (e.Phase != detach.Staged || errors.Is(refusal, engine.ErrDeviceLost))
	}
	return s, d.endedWithin(ctx, s.at)
}

// endedWithin says that a writer of the attachment has ended and no other has come, though the attachment is open still: the remains of a lost device were
// taken away, and the staging anew was cut short.
func (d *Driver) endedWithin(ctx context.Context, at volume.Attachment) bool {
	v, err := d.Control.Get(ctx, at.Volume)
	return err == nil && v.Attachment != nil && *v.Attachment == at && v.Staged && v.Sealed
}
