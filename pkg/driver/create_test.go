package driver

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
)

// halfway is an engine whose Create makes the volume, dies before it is whole, and finishes when it is asked again.
type halfway struct {
	engine.Control
	asked int
}

func (h *halfway) Create(ctx context.Context, s engine.Spec) (engine.Volume, error) {
	v, err := h.Control.Create(ctx, s)
	if h.asked++; h.asked == 1 && err == nil {
		err = errors.New("died half-way")
	}
	return v, err
}

// TestCreateIsFinished: that there is a volume of the name does not say that the engine has finished making it.
func TestCreateIsFinished(t *testing.T) {
	h := &halfway{}
	p := start(t, func(c *Config) { h.Control = c.Control; c.Control = h })
	_, err := p.CreateVolume(t.Context(), creationOf("pvc-1", 64, asMount("", writer)))
	wants(t, err, codes.Internal, "pvc-1")
	_, err = p.CreateVolume(t.Context(), creationOf("pvc-1", 64, asMount("", writer)))
	if must(t, err); h.asked != 2 {
		t.Errorf("the engine was asked %d times", h.asked)
	}
}
