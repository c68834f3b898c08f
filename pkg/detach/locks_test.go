package detach

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// mute is an engine that does not answer about one volume.
type mute struct {
	engine.Node
	asked, answer chan struct{}
}

func (m mute) Attached(ctx context.Context, id volume.ID) (engine.Device, error) {
	if id != vol {
		return m.Node.Attached(ctx, id)
	}
	m.asked <- struct{}{}
	select {
	case <-m.answer:
	case <-ctx.Done():
	}
	return engine.Device{}, engine.ErrNotFound
}

// TestTroubleOfOneVolumeHoldsUpNoOther: while the engine does not answer about one volume, whatever is asked about it, the journal's entries of all others can be
// changed.
func TestTroubleOfOneVolumeHoldsUpNoOther(t *testing.T) {
	const others = 500
	for what, ask := range map[string]func(*world) error{
		"unstage": func(w *world) error { return w.agent.Unstage(w.ctx(), vol, staging) },
		"finish": func(w *world) error {
			return w.agent.Finish(w.ctx(), volume.Attachment{Volume: vol, Node: nodeA, Epoch: 1})
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			m := mute{w.mem.On(nodeA), make(chan struct{}, 1), make(chan struct{})}
			w.start(w.mem, m, w.kernel, w.disk)
			answered, done := make(chan error, 1), make(chan error, others)
			go func() { answered <- ask(w) }()
			<-m.asked
			for n := range others {
				go func() { done <- w.agent.RemoveTarget(w.ctx(), volume.ID(fmt.Sprintf("other-%d", n)), podA) }()
			}
			late := time.After(30 * time.Second)
			for n := range others {
				select {
				case err := <-done:
					w.must(err)
				case <-late:
					t.Fatalf("%d of %d volumes wait for another", others-n, others)
				}
			}
			close(m.answer)
			w.must(<-answered)
		})
	}
}
