package detach

import (
	"context"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// looked is a node on which something happens just when its device is first looked at.
type looked struct {
	engine.Node
	then func()
}

func (l *looked) Attached(ctx context.Context, id volume.ID) (engine.Device, error) {
	if then := l.then; then != nil {
		l.then = nil
		then()
	}
	return l.Node.Attached(ctx, id)
}

// TestTargetThatGoesDuringTheJob: the job goes on after the call that began it, and the last target goes meanwhile. It does not come back into the
// journal by what the job notes: where the orchestrator forgets the volume then, the gate would take it for published, for ever.
func TestTargetThatGoesDuringTheJob(t *testing.T) {
	w := newWorld(t)
	node := &looked{Node: w.mem.On(nodeA)}
	w.start(w.mem, node, w.kernel, w.disk)
	w.use()
	w.show(podA)
	w.kernel.inUse = "a shell"
	node.then = func() { w.hide(podA) }
	w.refused(w.agent.Unstage(w.ctx(), vol, staging), ErrHeld, "a shell")
	if e, _, err := w.agent.Entry(vol); err != nil || len(e.Targets) > 0 {
		t.Errorf("published to %v: %v", e.Targets, err)
	}
	w.kernel.inUse = ""
	w.agent.c.Clock = func() time.Time { return time.Now().Add(2 * ForgottenAfter) }
	w.must(w.gate.Unpublish(w.ctx(), vol, nodeA))
	w.detached(receipt.Clean)
	w.clear()
}
