package enginetest

import (
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestMemory(t *testing.T) { Suite(t, MemoryHarness) }

func attached(t *testing.T, o MemoryOptions) (*Memory, volume.Attachment, engine.Device) {
	t.Helper()
	m := NewMemory(o)
	if _, err := m.Create(t.Context(), engine.Spec{ID: id, Size: volume.MiB}); err != nil {
		t.Fatal(err)
	}
	a, err := m.Publish(t.Context(), id, "node", engine.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := m.On("node").Attach(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return m, a, d
}

// TestMemoryRefusesOldEpochs: it is the replicas that refuse a fenced writer, not the knowledge that it was killed.
func TestMemoryRefusesOldEpochs(t *testing.T) {
	m, a, d := attached(t, MemoryOptions{})
	if _, err := m.Fence(t.Context(), a, engine.FenceOptions{Kill: true}); err != nil {
		t.Fatal(err)
	}
	if err := m.Write(id, d.Writer, 0, pattern(1, 1)); !errors.Is(err, engine.ErrStaleEpoch) {
		t.Errorf("a fenced writer: %v", err)
	}
	m.Down(m.Replicas()[0])
	if err := m.Write(id, d.Writer, 0, pattern(1, 1)); !errors.Is(err, engine.ErrStaleEpoch) {
		t.Errorf("a fenced writer, with a replica gone: %v", err)
	}
}

func TestMemoryWaitsAndFailsOnDemand(t *testing.T) {
	broken := errors.New("broken")
	steps := 0
	m, a, d := attached(t, MemoryOptions{Clock: time.Now, Verifying: func(_ volume.ID, p engine.Progress) error {
		steps++
		if p.Total != 2*blockSize || p.Phase != "verify" {
			t.Errorf("progress %+v", p)
		}
		if steps == 2 {
			return broken
		}
		return nil
	}})
	if err := m.Write(id, d.Writer, 0, pattern(2, 1)); err != nil {
		t.Fatal(err)
	}
	if err := m.On("node").Barrier(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Evidence(t.Context(), a, nil); !errors.Is(err, broken) {
		t.Errorf("evidence: %v", err)
	}
}
