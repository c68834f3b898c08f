package mirror

import (
	"strings"
	"sync"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestCloseWhileAFenceOpens: the server ends while a fence opens its session. Nothing of it is left: the next server has the volume.
// (Simulation, seed 14679: the replicas stayed locked by the session that nobody had any more.)
func TestCloseWhileAFenceOpens(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	y.write(a, 1, 4096, 0)
	var ends sync.Once
	y.hook = func(op *vfs.Op) error {
		if op.Kind == vfs.OpLock && strings.HasSuffix(op.Name, "/volumes/"+string(testID)+"/lock") {
			ends.Do(func() { y.must(y.engine.Close(t.Context())) })
		}
		return nil
	}
	y.must(y.engine.Close(t.Context()))
	y.start()
	if _, err := y.engine.Fence(t.Context(), a, engine.FenceOptions{Reason: "test"}); err == nil {
		t.Error("a server that has ended has fenced")
	}
	y.hook = nil
	y.start()
	if _, err := y.engine.Fence(t.Context(), a, engine.FenceOptions{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	y.must(y.engine.Close(t.Context()))
}
