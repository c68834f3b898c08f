package detach

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// stubborn is an engine whose first Detach fails, and that closes no attachment while its device is there.
type stubborn struct {
	engine.Control
	engine.Node
	failed bool
}

func (s *stubborn) Detach(ctx context.Context, a volume.Attachment) error {
	if !s.failed {
		s.failed = true
		return engine.ErrBusy
	}
	return s.Node.Detach(ctx, a)
}

func (s *stubborn) Unpublish(ctx context.Context, a volume.Attachment) error {
	if _, err := s.Attached(ctx, a.Volume); !errors.Is(err, engine.ErrNotFound) {
		return engine.ErrNotSealed
	}
	return s.Control.Unpublish(ctx, a)
}

// TestDeviceLeftBehindTheReceipt: the node's job fails after the receipt, before the device is gone, and the orchestrator has forgotten the volume:
// the gate has the node finish it. (Simulation, seed 20097: it looked again and again, for ever.)
func TestDeviceLeftBehindTheReceipt(t *testing.T) {
	w := newWorld(t)
	s := &stubborn{Control: w.mem, Node: w.mem.On(nodeA)}
	w.start(s, s, w.kernel, w.disk)
	w.use()
	w.agent.c.Clock = func() time.Time { return time.Now().Add(2 * ForgottenAfter) }
	w.refused(w.gate.Unpublish(w.ctx(), vol, nodeA), engine.ErrBusy)
	if _, covered := w.covered(); !covered {
		t.Fatal("the receipt is not in force yet: the test shows nothing")
	}
	w.must(w.gate.Unpublish(w.ctx(), vol, nodeA))
	w.detached(receipt.Clean)
	w.clear()
}
