package admin

import (
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestSalvage(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, fakeGate(nil))
	for _, name := range []string{"pvc-1", "data of Ann"} {
		var seen engine.Progress
		p, err := c.SalvagePlan(t.Context(), name, true, func(p engine.Progress) { seen = p })
		if err != nil || p.Outlook != engine.OutlookComesUp || p.Proof == nil || p.Proof.Writer != 3 || p.Read != volume.GiB || seen.Done != volume.GiB {
			t.Errorf("%s: %+v, %v, progress %+v", name, p, err, seen)
		}
	}
	if _, err := c.SalvagePlan(t.Context(), "pvc-9", false, nil); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("an unknown volume: %v", err)
	}
	e.receipts["pvc-1"][1] = append([]byte(nil), e.receipts["pvc-1"][0][1:]...)
	if p, err := c.SalvagePlan(t.Context(), "pvc-1", false, nil); err != nil || p.Proof != nil || p.ProofError == "" {
		t.Errorf("a receipt that is not to be believed: %+v, %v", p, err)
	}
	o := detach.Salvage{From: "a", Reason: "it burns", Actor: "ann", Kill: true}
	r, err := c.Salvage(t.Context(), "data of Ann", o, nil)
	if err != nil || r.Kind != receipt.Forced || r.Salvaged.From != "a" {
		t.Errorf("%+v, %v", r, err)
	}
	o.Kill = false
	if _, err := c.Salvage(t.Context(), "pvc-1", o, nil); !errors.Is(err, engine.ErrNotNeeded) {
		t.Errorf("the class of a refusal is lost: %v", err)
	}
}
