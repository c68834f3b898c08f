package mirror

import (
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// TestCreateCutShort: the server died when two of three stores had the volume. The next Create makes the third; but not where the
// volume was in use since, when a replica that is missing was lost, and what it promised with it.
func TestCreateCutShort(t *testing.T) {
	r := newRig(t)
	spec := engine.Spec{ID: "short", Name: "short", Size: 16 * volume.MiB}
	create := func(want engine.State) engine.Volume {
		t.Helper()
		v, err := r.engine.Create(t.Context(), spec)
		if err != nil || v.State != want {
			t.Fatalf("Create: %s %s, want %s: %v", v.State, v.Reason, want, err)
		}
		return v
	}
	lose := func() {
		t.Helper()
		if err := r.engine.stores.present()[2].Remove(spec.ID); err != nil {
			t.Fatal(err)
		}
		if v, err := r.engine.Get(t.Context(), spec.ID); err != nil || v.State != engine.Degraded {
			t.Fatalf("with two replicas: %s: %v", v.State, err)
		}
	}
	create(engine.Healthy)
	lose()
	create(engine.Healthy)
	a, err := r.engine.Publish(t.Context(), spec.ID, "n1", engine.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.engine.Unpublish(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	lose()
	create(engine.Degraded)
}
