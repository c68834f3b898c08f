package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/vfs"
)

// TestSalvageCutShort: killed, or the power cut, at every call that alters a disk. Afterwards either nothing was decided, and the old
// majority brings up the volume once it is back, or the salvage was decided, and nothing else is ever believed. The same order again
// finishes it, and the trace is complete whenever it was cut short.
func TestSalvageCutShort(t *testing.T) {
	for name, prepare := range map[string]func(*yard){
		"stale":       func(y *yard) { y.twoGone() },
		"with others": staleBesideOthers,
		"wrong":       wrongBlocks,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := int64(1)
			h := idleHost(t)
			for ; cutShort(t, h, n, prepare); n++ {
				if n > 2000 {
					t.Fatal("it never comes to an end")
				}
			}
			t.Logf("%d calls", n-1)
		})
	}
}

// staleBesideOthers: of the three stores the newest two are away; two empty ones are there.
func staleBesideOthers(y *yard) {
	y.stores = 5
	y.restart()
	y.must(y.engine.make(engine.Spec{ID: testID, Name: "vol", Size: yardSize, Parameters: map[string]string{"verify": "off"}},
		layout{replicas: 3, blockSize: 4096}, y.engine.stores.present()[:3]))
	a := y.publish()
	y.write(a, 1, 1<<20, 0)
	y.away(0)
	y.write(a, 2, 64<<10, 512<<10)
	y.back(0)
	y.away(1, 2)
}

// wrongBlocks: a block of the only replica left is not what its checksum says.
func wrongBlocks(y *yard) {
	y.create()
	a := y.publish()
	s := y.attach(a)
	mustWrite(y.t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 1")
	y.must(y.engine.update(y.t.Context(), testID, quarantine(nil)))
	for i := range 3 {
		y.spoilBlock(i, 200)
	}
	y.away(1, 2)
}

// cutShort cuts the salvage short at the n-th altering call; false where it had ended by then.
func cutShort(t *testing.T, h *host.Client, n int64, prepare func(*yard)) bool {
	y := newYardOf(t, h, 3)
	prepare(y)
	rng := rand.New(rand.NewPCG(uint64(n), 5))
	hook, dead := cutAt(n)
	y.hook = hook
	y.mem = y.mem.Restart()
	err := y.tryStart()
	if err == nil {
		_, err = y.trySalvage(0, "forced")
	}
	if !dead() {
		y.must(err)
		return false
	}
	y.hook = nil
	if rng.IntN(2) == 0 {
		y.mem = y.mem.CrashClone(rng)
	} else {
		y.mem = y.mem.Restart()
	}
	y.start()
	y.afterCut(fmt.Sprintf("cut with %v", err))
	return true
}

// cutAt fails the n-th call that alters a disk and every one after it; dead says that it has come to that.
func cutAt(n int64) (hook vfs.Hook, dead func() bool) {
	var calls atomic.Int64
	hook = func(op *vfs.Op) error {
		if op.Kind.Alters() && !(op.Kind == vfs.OpOpen && op.Mode&vfs.ReadOnly != 0) && calls.Add(1) >= n {
			return syscall.EIO
		}
		return nil
	}
	return hook, func() bool { return calls.Load() >= n }
}

// afterCut looks what came of it, and finishes it.
func (y *yard) afterCut(how string) {
	t := y.t
	t.Helper()
	p := y.plan(false)
	decided := p.Salvaged != nil
	if p.Outlook == engine.OutlookComesUp && (!decided || p.Pending) {
		t.Fatalf("%s: comes up without a decision: %+v", how, p)
	}
	if !decided {
		y.undecided(how)
		return
	}
	if p.Pending {
		if v, err := y.engine.Get(t.Context(), testID); err == nil && v.State != engine.Quarantined {
			t.Fatalf("%s: pending, and %s", how, v.State)
		}
		b := y.salvage(0, "forced")
		if b.Salvaged.Configuration != p.Salvaged.Configuration || b.Salvaged.Lost != p.Salvaged.Lost {
			t.Fatalf("%s: the trace was %+v, is %+v", how, p.Salvaged, b.Salvaged)
		}
		y.told(how, b)
	}
	y.finished(how)
}

// told wants the wrong block in the barrier, whatever has been done to it before.
func (y *yard) told(how string, b engine.Barrier) {
	y.t.Helper()
	if _, wrong := y.wrongBlock(); wrong && (len(b.Unresolved) != 1 || b.Unresolved[0].Offset != 200*4096) {
		y.t.Fatalf("%s: unresolved %+v", how, b.Unresolved)
	}
}

// wrongBlock says whether the history is the one with the wrong block: nothing was written after its first receipt.
func (y *yard) wrongBlock() (int64, bool) {
	raw, err := y.engine.Receipts(y.t.Context(), testID)
	return 200, err == nil && len(raw) > 0 && string(raw[0]) == "receipt 1"
}

// undecided: the old majority comes back, and with it everything that was promised; or the salvage is done from the beginning.
func (y *yard) undecided(how string) {
	y.t.Helper()
	there := y.mem
	p := y.plan(false)
	y.mem = there.CrashClone(nil)
	y.start()
	y.back(1, 2)
	if p.Outlook == engine.OutlookWaits {
		v, err := y.engine.Get(y.t.Context(), testID)
		if err != nil || v.State == engine.Unavailable {
			y.t.Fatalf("%s: nothing was decided, and the old majority does not come up: %+v, %v", how, v, err)
		}
		if v.State != engine.Quarantined {
			s, err := y.engine.open(y.t.Context(), testID, ForRecovery, 0)
			y.must(err)
			mustRead(y.t, s, pattern(2, 64<<10), 512<<10)
			s.Close()
		}
	}
	y.mem = there.CrashClone(nil)
	y.start()
	y.told(how, y.salvage(0, "forced"))
	y.finished(how)
}

// finished wants the receipt in force, the content of store 0, and nobody else believed.
func (y *yard) finished(how string) {
	t := y.t
	t.Helper()
	raw, err := y.engine.Receipts(t.Context(), testID)
	y.must(err)
	if len(raw) == 0 || string(raw[len(raw)-1]) != "forced" {
		t.Fatalf("%s: receipts %q", how, raw)
	}
	y.outlook(y.plan(false), engine.OutlookComesUp)
	s, err := y.engine.open(t.Context(), testID, ForDevice, 0)
	y.must(err)
	defer s.Close()
	if !s.unclean {
		t.Fatalf("%s: the attach is not unclean", how)
	}
	want := pattern(1, 1<<20)
	if block, wrong := y.wrongBlock(); wrong {
		want[block*4096] ^= 0x55
	}
	mustRead(t, s, want, 0)
	s.Close()
	y.away(0)
	y.back(1, 2)
	if v, err := y.engine.Get(t.Context(), testID); err == nil && v.State != engine.Unavailable {
		t.Fatalf("%s: the old majority comes up: %+v", how, v)
	}
	_, err = y.engine.open(t.Context(), testID, ForDevice, 0)
	if !errors.Is(err, engine.ErrUnavailable) && !errors.Is(err, engine.ErrQuarantined) {
		t.Fatalf("%s: attach of the old majority: %v", how, err)
	}
}
