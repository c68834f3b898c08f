package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// killed is what a dead process left: a lab for the next one.
func (l *lab) killed(s *Session) *lab {
	l.t.Helper()
	s.background.stop()
	next := *l
	next.fs = l.fs.(*vfs.Mem).Restart()
	next.openDirs(len(l.dirs))
	return &next
}

func (l *lab) tryWarm(w Warm) (*Session, error) {
	return Open(context.Background(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "engine", Log: l.log, Warm: &w})
}

func (l *lab) warm(w Warm) *Session {
	l.t.Helper()
	s, err := l.tryWarm(w)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Close)
	return s
}

// still is a warm session that settles nothing by itself.
func (l *lab) still(w Warm) *Session {
	s := l.warm(w)
	s.background.stop()
	return s
}

// TestWarmSettlesWhatIsAskedFor: a take-over reads nothing of the volume; what is asked for is settled, and the rest behind it.
func TestWarmSettlesWhatIsAskedFor(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	flushed, acked := pattern(1, 4096), pattern(2, 4096)
	mustWrite(t, s, flushed, 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range int64(8) { // a region each
		mustWrite(t, s, acked, i*store.RegionSize)
	}
	var read atomic.Int64
	l = l.killed(s)
	l.fs = vfs.Faulty(l.fs, func(op *vfs.Op) error {
		if op.Kind == vfs.OpRead && strings.HasSuffix(op.Name, "/data") {
			read.Add(op.Len)
		}
		return nil
	})
	l.openDirs(3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s = l.still(Warm{After: s.epoch})
	s.settleBehind(ctx) // what the background could do before it was stopped
	if s.Blank() {
		t.Error("it is called blank, and nobody has looked")
	}
	read.Store(0)
	mustRead(t, s, acked, 3*store.RegionSize)
	if most := int64(4 * (store.PagesPerRegion*store.PageSize + 2*store.PageSize + store.BlockSize)); read.Load() > most {
		t.Errorf("%d bytes were read from the stores for one block, at most %d should be", read.Load(), most)
	}
	mustRead(t, s, acked, 0)
	if n := s.regions.unsettled.Load(); n < 8 {
		t.Errorf("%d regions are unsettled, want 8: each has blocks that nobody has asked for", n)
	}
	s.catchUp(t.Context())
	if !s.regions.settled() {
		t.Error("unsettled blocks are left")
	}
	for i := range int64(8) {
		mustRead(t, s, acked, i*store.RegionSize)
	}
	agreeing(t, l.detach(s), 3)
}

// TestWarmIsRefused: nothing is promised to somebody who comes too late, or too early.
func TestWarmIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		between func(l *lab)
		after   volume.Epoch // above the epoch of the engine that died
		want    error
	}{
		"the gate has taken its place":                   {func(l *lab) { l.open(ForRecovery).Close() }, 0, engine.ErrStaleEpoch},
		"the gate has sealed it":                         {func(l *lab) { l.detach(l.open(ForRecovery)) }, 0, engine.ErrStaleEpoch},
		"it is sealed and used again":                    {func(l *lab) { l.detach(l.open(ForDevice)); l.open(ForControl).Close() }, 0, engine.ErrStaleEpoch},
		"the host knows of a newer one than stores do":   {func(*lab) {}, 1, engine.ErrStaleEpoch},
		"an engine took over of which no host has heard": {func(l *lab) { l.warm(Warm{}).Close() }, 0, nil},
		"an engine died while it took over": {func(l *lab) {
			for _, d := range l.dirs {
				r, err := d.Open(testID, "engine")
				if err == nil {
					err = errors.Join(r.Promise(r.Record().Promised+1), r.Close())
				}
				if err != nil {
					l.t.Fatal(err)
				}
			}
		}, 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := memLab(t, 3)
			s := l.open(ForDevice)
			l = l.killed(s)
			c.between(l)
			_, before, err := l.dirs[0].Peek(testID)
			if err != nil {
				t.Fatal(err)
			}
			next, err := l.tryWarm(Warm{After: s.epoch + c.after})
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil {
				next.Close()
				return
			}
			if _, after, err := l.dirs[0].Peek(testID); err != nil || after.Promised != before.Promised {
				t.Errorf("promised %d before and %d after: %v", before.Promised, after.Promised, err)
			}
		})
	}
}

// TestWarmFromLossyMembers: a member that lost its cache is no source of what was not flushed, and drops out. Where all did, the device
// is lost; where one may come back that did not, it is waited for.
func TestWarmFromLossyMembers(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	old, acked := pattern(1, 4096), pattern(2, 4096)
	mustWrite(t, s, old, 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, acked, 0)
	after := Warm{After: s.epoch}
	l = l.killed(s)
	for i := range 2 { // they hold what was flushed, and a checksum that matches it
		if err := l.fs.(*vfs.Mem).LoseUnsynced(fmt.Sprintf("/s%d/volumes/vol/data", i), nil); err != nil {
			t.Fatal(err)
		}
		after.Lossy = append(after.Lossy, engine.ReplicaID(l.dirs[i].ID().String()))
	}
	all := l.dirs
	l.dirs = all[:2]
	if _, err := l.tryWarm(after); !errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrDeviceLost) {
		t.Errorf("without the one that lost nothing: %v", err)
	}
	everyone := after
	everyone.Lossy = append(everyone.Lossy, engine.ReplicaID(all[2].ID().String()))
	l.dirs = all
	if _, err := l.tryWarm(everyone); !errors.Is(err, engine.ErrDeviceLost) {
		t.Errorf("with nobody who lost nothing: %v", err)
	}
	s = l.still(after)
	if got := s.Config().Members; got != quorum.SetOf(2) {
		t.Fatalf("members %v, want the one that lost nothing", got.Indexes())
	}
	mustRead(t, s, acked, 0)
	s.bringBack(t.Context())
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("members %v after they were brought back", got.Indexes())
	}
	for range 3 {
		mustRead(t, s, acked, 0)
	}
	agreeing(t, l.detach(s), 3)
}

// TestLossyIsRemembered: a member whose sync failed, and which no majority could exclude before the engine died, is no source even where
// the engine had no time to say so; and it is a member like any other once it was rebuilt.
func TestLossyIsRemembered(t *testing.T) {
	mem := vfs.NewMem()
	var failing atomic.Bool
	disk := vfs.Faulty(mem, func(op *vfs.Op) error {
		switch {
		case !failing.Load():
		case strings.HasPrefix(op.Name, "/s2/") && op.Kind.Alters(): // away
			return syscall.EIO
		case op.Name == "/s0/volumes/vol/data" && op.Kind == vfs.OpDatasync:
			return errors.Join(mem.LoseUnsynced(op.Name, nil), syscall.EIO)
		case op.Name == "/s0/volumes/vol/lock" && op.Kind == vfs.OpLock: // it does not come back before the engine dies
			return syscall.EIO
		}
		return nil
	})
	l := newLab(t, disk, "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	old, acked := pattern(1, 4096), pattern(2, 4096)
	mustWrite(t, s, old, 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, acked, 0)
	failing.Store(true)
	flushed := make(chan error, 1)
	go func() { flushed <- s.Flush() }()
	for s.Stalled() == "" {
		time.Sleep(time.Millisecond)
	}
	l.fs = mem
	l = l.killed(s)
	<-flushed
	_, rec, err := l.dirs[0].Peek(testID)
	if err != nil || !rec.Lossy {
		t.Fatalf("the record says nothing of it: %+v, %v", rec, err)
	}
	all := l.dirs
	l.dirs = all[:2] // of which one has what was acknowledged
	s = l.still(Warm{After: s.epoch})
	if got := s.Config().Members; got != quorum.SetOf(1) {
		t.Fatalf("members %v", got.Indexes())
	}
	mustRead(t, s, acked, 0)
	s.dirs = all
	s.bringBack(t.Context())
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("members %v after they were brought back", got.Indexes())
	}
	if got := s.LossyMembers(); got != nil {
		t.Errorf("%v are called lossy after they were rebuilt", got)
	}
	l.dirs = all
	agreeing(t, l.detach(s), 3)
}

// TestSickMemberDecidesNothing: a member whose sync has failed, and which is not excluded yet, shows what it held before the write that it
// lost, with a checksum that matches. Whoever settles the block meanwhile does not believe it.
func TestSickMemberDecidesNothing(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, 32*volume.MiB)
	s := l.open(ForDevice)
	old, acked := pattern(1, 4096), pattern(2, 4096)
	mustWrite(t, s, old, 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, acked, 0)
	l = l.killed(s)
	mem = l.fs.(*vfs.Mem)
	failed, release := make(chan struct{}), make(chan struct{})
	var armed atomic.Bool
	l.fs = vfs.Faulty(mem, func(op *vfs.Op) error {
		if !armed.Load() || op.Kind != vfs.OpDatasync {
			return nil
		}
		switch op.Name {
		case "/s0/volumes/vol/data":
			defer close(failed)
			return errors.Join(mem.LoseUnsynced(op.Name, nil), syscall.EIO)
		case "/s1/volumes/vol/data": // so the flush cannot exclude the other
			<-release
		}
		return nil
	})
	l.openDirs(3)
	s = l.still(Warm{After: s.epoch})
	armed.Store(true)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
	})
	<-failed
	for s.view.Load().replicas[0].Failed() == nil {
		time.Sleep(time.Millisecond) // the error is on its way up
	}
	settled := make(chan struct{})
	wg.Go(func() {
		defer close(settled)
		mustRead(t, s, acked, 0)
	})
	select {
	case <-settled: // wrongly or rightly
	case <-time.After(20 * time.Millisecond): // it waits for the exclusion, as it should
	}
	armed.Store(false)
	close(release)
	wg.Wait()
	mustRead(t, s, acked, 0)
}

// TestWarmFindsRegionsThatDiffer: that a clean region's sums are not the same everywhere is found behind the guest, and before a write into
// it can hide it.
func TestWarmFindsRegionsThatDiffer(t *testing.T) {
	for name, meanwhile := range map[string]func(t *testing.T, s *Session){
		"by the detach":     func(*testing.T, *Session) {},
		"in the background": func(t *testing.T, s *Session) { s.catchUp(t.Context()) },
		"by a write":        func(t *testing.T, s *Session) { mustWrite(t, s, pattern(3, 4096), 64<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			l := memLab(t, 3)
			s := l.open(ForDevice)
			want := pattern(1, 4096)
			mustWrite(t, s, want, 5*store.RegionSize)
			mustWrite(t, s, want, 0)
			s.verifyQuiet(t.Context(), 0)
			if left := s.regions.list(); len(left) > 0 {
				t.Fatalf("regions %v are dirty", left)
			}
			l = l.killed(s)
			l.flip(1, 0, 1)
			l.corrupt(1, "regions", 0, 1)
			s = l.still(Warm{After: s.epoch})
			if !s.regions.settled() {
				t.Fatal("something is unsettled, and nobody has looked")
			}
			meanwhile(t, s)
			for range 3 {
				mustRead(t, s, want, 5*store.RegionSize)
			}
			b := l.detach(s)
			agreeing(t, b, 3)
			s = l.open(ForDevice)
			v, err := s.ScrubNow(t.Context(), nil)
			if err != nil || len(v.Repairs)+len(v.Unresolved) > 0 {
				t.Errorf("the detach left something: %+v, %v", v, err)
			}
			mustRead(t, s, want, 0)
			if again := l.detach(s); !again.Expected.Equal(b.Expected) {
				t.Error("the digest was not that of the content")
			}
		})
	}
}

// TestUnreadableIsNotDecided: a block that no store can read for now is not taken for what its old checksum says.
func TestUnreadableIsNotDecided(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	acked := pattern(2, 4096)
	mustWrite(t, s, pattern(1, 4096), 4096)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, acked, 4096)
	l = l.killed(s)
	var blind atomic.Bool
	l.fs = vfs.Faulty(l.fs, func(op *vfs.Op) error {
		if at := store.DataOffset(1); blind.Load() && op.Kind == vfs.OpRead && op.Offset <= at && at < op.Offset+op.Len && strings.HasSuffix(op.Name, "/data") {
			return syscall.EIO
		}
		return nil
	})
	l.openDirs(3)
	blind.Store(true)
	s = l.still(Warm{After: s.epoch})
	p := vfs.AlignedBuffer(4096)
	for _, do := range map[string]func() error{
		"read": func() error { return s.ReadAt(p, 4096) }, "partial write": func() error { return s.WriteAt(p[:512], 4096) },
		"settle": func() error { return s.settleAll(t.Context()) },
	} {
		if err := do(); !errors.Is(err, syscall.EIO) {
			t.Errorf("got %v, want EIO", err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	b, err := s.Evidence(t.Context(), nil)
	if err != nil || len(b.Unresolved) != 1 || s.Config().Flags.Has(quorum.Clean) {
		t.Fatalf("barrier %+v, %v, flags %v: the block is unresolved, and the volume not clean", b, err, s.Config().Flags)
	}
	blind.Store(false)
	mustRead(t, s, acked, 4096)
	b = l.detach(s)
	agreeing(t, b, 3)
	if len(b.Unresolved) > 0 {
		t.Errorf("unresolved after it healed: %+v", b.Unresolved)
	}
}

// TestOverwrittenIsResolved: what nobody could decide is no matter any more once it is written anew.
func TestOverwrittenIsResolved(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(5, 4096), 8192)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		l.flip(i, 2, byte(1)<<i)
	}
	if err := s.ReadAt(vfs.AlignedBuffer(4096), 8192); !errors.Is(err, syscall.EIO) {
		t.Fatalf("read: %v", err)
	}
	mustWrite(t, s, pattern(6, 4096), 8192)
	if b := l.detach(s); len(b.Unresolved) > 0 {
		t.Errorf("unresolved: %+v", b.Unresolved)
	}
}

// TestYield: after it nothing is served and everything is free; the next session finds the checksums of what was acknowledged, in this process
// as in another.
func TestYield(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	acked := pattern(1, 1<<20)
	for n := range uint64(3) {
		copy(acked, pattern(n, 4096))
		mustWrite(t, s, acked, 3<<20)
		if err := s.Yield(); err != nil {
			t.Fatal(err)
		}
		if err := s.Yield(); err != nil {
			t.Errorf("again: %v", err)
		}
		for what, err := range map[string]error{
			"read": s.ReadAt(vfs.AlignedBuffer(4096), 0), "write": s.WriteAt(vfs.AlignedBuffer(4096), 0), "flush": s.Flush(),
			"zero": s.Zero(0, 4096), "update": s.Update(growTo(64 * volume.MiB)), "stop": s.Stop(),
		} {
			if !errors.Is(err, engine.ErrStaleEpoch) {
				t.Errorf("%s after it: %v", what, err)
			}
		}
		select {
		case <-s.Lost():
			t.Error("a session that was handed over is called lost")
		default:
		}
		s.Close()
		s = l.still(Warm{After: s.epoch})
		changed := s.pages.dirtyCount()
		if err := s.settleAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := s.pages.dirtyCount(); got != changed {
			t.Errorf("%d pages of checksums had to be changed", got-changed)
		}
		mustRead(t, s, acked, 3<<20)
	}
	l = l.killed(s)
	s = l.warm(Warm{After: s.epoch})
	mustRead(t, s, acked, 3<<20)
	agreeing(t, l.detach(s), 3)
}

// TestNobodyIsAnsweredByALostSession: where every store fails the guest waits, the process is told, and the next engine has everything.
func TestNobodyIsAnsweredByALostSession(t *testing.T) {
	for name, fails := range map[string]func(op *vfs.Op) bool{
		"write": func(op *vfs.Op) bool { return op.Kind.Alters() },
		"read":  func(op *vfs.Op) bool { return op.Kind == vfs.OpRead || op.Kind.Alters() },
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem()
			var away atomic.Bool
			l := newLab(t, vfs.Faulty(mem, func(op *vfs.Op) error {
				if away.Load() && fails(op) {
					return syscall.EIO
				}
				return nil
			}), "/", 3, 32*volume.MiB)
			s, err := Open(t.Context(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "engine", Log: l.log, Suspend: true})
			if err != nil {
				t.Fatal(err)
			}
			acked := pattern(1, 4096)
			mustWrite(t, s, acked, 0)
			away.Store(true)
			answered := make(chan error, 4)
			p := vfs.AlignedBuffer(4096)
			ask := map[string]func() error{
				"write": func() error { return s.WriteAt(pattern(2, 4096), 8192) },
				"read":  func() error { return s.ReadAt(p, 0) },
			}
			go func() { answered <- ask[name]() }()
			<-s.Lost()
			if err := s.LostCause(); !errors.Is(err, engine.ErrDeviceLost) {
				t.Errorf("cause %v", err)
			}
			go func() { answered <- s.ReadAt(vfs.AlignedBuffer(4096), 4096) }()
			go func() { answered <- s.Flush() }()
			go func() { answered <- s.Zero(0, 4096) }()
			l.fs = mem
			l = l.killed(s)
			next := l.warm(Warm{After: s.epoch, Lossy: s.LossyMembers()})
			mustRead(t, next, acked, 0)
			agreeing(t, l.detach(next), 3)
			select {
			case err := <-answered:
				t.Errorf("a request was answered: %v", err)
			default:
			}
		})
	}
}

// TestFullStoresAreNoLoss: where every store is full the guest is told so, also by a session that would rather say nothing.
func TestFullStoresAreNoLoss(t *testing.T) {
	mem := vfs.NewMem()
	l := newLab(t, mem, "/", 3, 32*volume.MiB)
	s, err := Open(t.Context(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "engine", Log: l.log, Suspend: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	mustWrite(t, s, pattern(1, 4096), 0)
	mem.SetCapacity(1)
	if err := s.WriteAt(pattern(2, 1<<20), 8<<20); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if err := s.LostCause(); err != nil {
		t.Errorf("the session is lost: %v", err)
	}
}

// BenchmarkWarmOpen is the part of the guest's pause that opening takes, with many regions that the engine before had dirty, on disks
// whose tables of sums are full.
func BenchmarkWarmOpen(b *testing.B) {
	for _, size := range []volume.Bytes{64 * volume.GiB, 1024 * volume.GiB} {
		b.Run(size.String(), func(b *testing.B) {
			root, err := os.MkdirTemp("/var/tmp", "belay-bench-")
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = os.RemoveAll(root) })
			l := newLab(b, vfs.OS(), root, 3, size)
			s := l.open(ForDevice)
			fillSums(b, s)
			for i := range int64(2000) {
				if err := s.WriteAt(pattern(uint64(i), 4096), i*8*store.RegionSize); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				b.StopTimer()
				s.Close() // without a flush, as by a death
				after := Warm{After: s.epoch}
				b.StartTimer()
				s = l.warm(after)
			}
			b.ReportMetric(float64(s.regions.unsettled.Load()), "unsettled")
			s.Close()
		})
	}
}

// fillSums has the sums of a volume that is full.
func fillSums(b *testing.B, s *Session) {
	sums := map[int64]digest.Sum{}
	for i := range regionCount(s.Config().Size) {
		sums[i] = digest.Sum{1, 2, 3, uint64(i)}
	}
	for _, r := range s.view.Load().members() {
		if err := r.WriteSums(sums); err != nil {
			b.Fatal(err)
		}
	}
}
