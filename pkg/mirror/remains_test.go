package mirror

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
)

// promiseOnly has the stores but for one take a promise and no configuration after it.
func promiseOnly(store int) vfs.Hook {
	var mu sync.Mutex
	records := map[string]int{}
	return func(op *vfs.Op) error {
		if op.Kind != vfs.OpWrite || !strings.HasSuffix(op.Name, "/meta") || strings.HasPrefix(op.Name, fmt.Sprintf("/disk%d/", store)) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if records[op.Name]++; records[op.Name] > 1 {
			return syscall.EIO
		}
		return nil
	}
}

// TestDeletionOfAMinorityIsNone: a deletion came to one of three stores, which was away then, while the others went on. When it is back
// the volume is there, with everything that was written since.
func TestDeletionOfAMinorityIsNone(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	y.hook = promiseOnly(0)
	y.restart()
	if err := y.engine.Delete(t.Context(), testID); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("deleted at one of three: %v", err)
	}
	y.hook = nil
	y.away(0)
	y.restart()
	a := y.publish()
	y.write(a, 1, 1<<20, 0)
	for range 2 {
		y.back(0)
		y.restart()
		y.engine.finishRemovals()
		v, err := y.engine.Get(t.Context(), testID)
		if err != nil || v.Attachment == nil {
			t.Fatalf("%+v, %v", v, err)
		}
		s := y.attach(a)
		mustRead(t, s, pattern(1, 1<<20), 0)
		s.Close()
		y.away(1, 2) // alone it knows no better, and is not believed
		y.restart()
		y.engine.finishRemovals()
		y.back(1, 2)
		y.away(0)
		y.restart()
		y.engine.finishRemovals()
	}
	s := y.attach(a)
	mustRead(t, s, pattern(1, 1<<20), 0)
}

// TestCreateAgain: a creation is cut short at every call that alters a disk, by an error or a death. The next one makes the volume,
// whatever the number of replicas, and whichever stores it takes.
func TestCreateAgain(t *testing.T) {
	h := idleHost(t)
	for _, c := range []struct{ replicas, stores int }{{1, 1}, {2, 2}, {2, 3}, {3, 3}, {3, 5}, {4, 4}} {
		t.Run(fmt.Sprintf("%d of %d", c.replicas, c.stores), func(t *testing.T) {
			n := int64(1)
			for ; createCut(t, newYardOf(t, h, c.stores), c.replicas, n); n++ {
			}
			t.Logf("%d calls", n-1)
		})
	}
}

// createCut is false where the creation ended before the n-th call.
func createCut(t *testing.T, y *yard, replicas int, n int64) bool {
	spec := engine.Spec{ID: testID, Name: "vol", Size: yardSize, Parameters: map[string]string{"verify": "off", "replicas": fmt.Sprint(replicas)}}
	hook, dead := cutAt(n)
	armed := false
	y.hook = func(op *vfs.Op) error {
		if !armed {
			return nil
		}
		return hook(op)
	}
	y.restart()
	armed = true
	_, err := y.engine.Create(t.Context(), spec)
	armed = false
	if !dead() {
		y.must(err)
		return false
	}
	if n%2 == 0 {
		y.restart()
		y.engine.finishRemovals()
	}
	for range 2 {
		v, err := y.engine.Create(t.Context(), spec)
		if err != nil || v.State != engine.Healthy || len(v.Replicas) != replicas {
			t.Fatalf("cut at call %d, again: %+v, %v", n, v, err)
		}
	}
	kept := 0
	for _, d := range y.engine.stores.present() {
		ids, err := d.Replicas()
		y.must(err)
		kept += len(ids)
	}
	if kept != replicas {
		t.Fatalf("cut at call %d, again: %d replicas are there", n, kept)
	}
	return true
}

// TestSealInDoubtHoldsNothing: the record of a seal reaches the disk, and its sync fails. Whether it is in force the next epoch finds out: the
// session in the lost writer's place, or of a salvage, is over, and does not stand in its way.
func TestSealInDoubtHoldsNothing(t *testing.T) {
	for _, salvage := range []bool{false, true} {
		y := newYard(t, 1)
		var armed, failed bool
		y.hook = func(op *vfs.Op) error {
			if armed && op.Kind == vfs.OpDatasync && strings.HasSuffix(op.Name, "/meta") {
				armed, failed = false, true
				return syscall.EIO
			}
			return nil
		}
		y.restart()
		y.must(y.engine.make(engine.Spec{ID: testID, Name: "vol", Size: yardSize, Parameters: map[string]string{"verify": "off"}},
			layout{replicas: 1, blockSize: 4096}, y.engine.stores.present()))
		a := y.publish()
		y.write(a, 1, 1<<20, 0)
		var b engine.Barrier
		var err error
		if salvage {
			y.leave(y.attach(a), a, "before")
			y.must(y.engine.update(t.Context(), testID, quarantine(nil)))
			b, err = y.engine.Salvage(t.Context(), testID, engine.SalvageOrder{From: y.id(0), Reason: "test"}, nil)
		} else {
			_, err = y.engine.Fence(t.Context(), a, engine.FenceOptions{Reason: "test"})
			y.must(err)
			b, err = y.engine.Evidence(t.Context(), a, nil)
		}
		y.must(err)
		armed = true
		if err := y.engine.Seal(t.Context(), b, []byte("receipt")); err == nil || !failed {
			t.Fatalf("the seal is not in doubt: %v", err)
		}
		y.must(y.engine.Seal(t.Context(), b, []byte("receipt"))) // it is in force
		if salvage {
			y.receipts("before", "receipt")
		} else {
			y.receipts("receipt")
		}
		y.must(y.engine.Unpublish(t.Context(), a))
		s := y.attach(y.publish())
		mustRead(t, s, pattern(1, 1<<20), 0)
	}
}
