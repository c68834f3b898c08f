package mirror

import (
	"context"
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
)

// TestGivenUpDoesNotLock: whoever has given up gets no volume, free or not, and interrupts nobody who verifies it.
func TestGivenUpDoesNotLock(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := &handle{id: "v", change: make(chan struct{}, 1)}
	h.setVerify(func() { t.Error("a verification is interrupted") })
	for range 30 { // chance would show
		if err := h.lock(ctx); !errors.Is(err, engine.ErrBusy) || !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
}

// TestLoopsNeverBeginTogether: no two loops of a session have the same phase.
func TestLoopsNeverBeginTogether(t *testing.T) {
	var b background
	if one, two, three := b.phase(), b.phase(), b.phase(); one == 0 || one == two || two == three || one == three {
		t.Fatalf("phases %v, %v, %v", one, two, three)
	}
}
