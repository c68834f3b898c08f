package volume

import (
	"errors"
	"strings"
	"testing"
)

func TestHandle(t *testing.T) {
	for _, node := range []NodeID{"n1", "ip-10-0-0-1.eu-central-1.compute.internal"} {
		h, err := Handle("pvc-1", node)
		if err != nil {
			t.Fatal(err)
		}
		if id, at, err := ParseHandle(h); err != nil || id != "pvc-1" || at != node {
			t.Errorf("%q is read as %q on %q, %v", h, id, at, err)
		}
	}
	if id, at, err := ParseHandle("pvc-1"); err != nil || id != "pvc-1" || at != "" {
		t.Errorf("a plain ID: %q on %q, %v", id, at, err)
	}
	if _, err := Handle("pvc-1", NodeID(strings.Repeat("n", HandleMax))); !errors.Is(err, ErrInvalid) {
		t.Errorf("a handle over the limit of CSI: %v", err)
	}
	for _, bad := range []string{"", "@n1", "pvc-1@", "A@n1", "pvc-1@n\x00", "../x@n1"} {
		if _, _, err := ParseHandle(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
