package mirror

import (
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// salvagedAlone is a volume of three replicas of which one is left, salvaged and detached.
func (y *yard) salvagedAlone() {
	y.t.Helper()
	a := y.twoGone()
	y.salvage(0, "forced")
	y.must(y.engine.Unpublish(y.t.Context(), a))
}

// TestRefillAfterASalvage: new disks take the place of those that burnt; then any one of the three may go, with all receipts.
func TestRefillAfterASalvage(t *testing.T) {
	y := newYard(t, 3)
	y.salvagedAlone()
	y.stores = 5
	y.restart()
	a := y.publish()
	s := y.attach(a)
	s.bringBack(s.background.ctx)
	if c := s.Config(); len(c.Voters) != 3 || c.Members != quorum.All(3) {
		t.Fatalf("configuration %+v", c)
	}
	agreeing(t, y.leave(s, a, "receipt 2"), 3)
	if v, err := y.engine.Get(t.Context(), testID); err != nil || v.State != engine.Healthy {
		t.Fatalf("volume %+v, %v", v, err)
	}
	y.away(0) // the one that was salvaged
	y.receipts("forced", "receipt 2")
	a = y.publish()
	s = y.attach(a)
	mustRead(t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 3")
	y.back(1, 2) // the old majority
	s = y.attach(y.publish())
	mustRead(t, s, pattern(1, 1<<20), 0)
}

// TestRefillCutShort: at whatever call, the volume comes up with what it had.
func TestRefillCutShort(t *testing.T) {
	h := idleHost(t)
	n, ended := int64(1), false
	for ; !ended; n++ {
		y := newYardOf(t, h, 3)
		y.salvagedAlone()
		y.stores = 5
		hook, dead := cutAt(n)
		y.hook = hook
		y.mem = y.mem.Restart()
		err := y.tryStart()
		if err == nil {
			_, err = y.engine.Publish(t.Context(), testID, "n1", engine.PublishOptions{})
		}
		if ended = !dead(); ended {
			y.must(err)
		}
		y.hook = nil
		y.powerCut()
		var a volume.Attachment
		if v, err := y.engine.Get(t.Context(), testID); err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		} else if a = y.publish(); v.Attachment != nil && *v.Attachment != a {
			t.Fatalf("cut at %d: published %v, then %v", n, *v.Attachment, a)
		}
		s := y.attach(a)
		mustRead(t, s, pattern(1, 1<<20), 0)
		s.bringBack(s.background.ctx)
		y.leave(s, a, "receipt 2")
		y.receipts("forced", "receipt 2")
		y.back(1, 2)
		y.away(0)
		if s, err := y.engine.open(t.Context(), testID, ForDevice, 0); err == nil {
			mustRead(t, s, pattern(1, 1<<20), 0)
			s.Close()
		} else if !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("cut at %d: without the salvaged store: %v", n, err)
		}
	}
	t.Logf("%d calls", n-1)
}
