package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// yard is a machine in memory: an engine on stores that can be taken away, whose volumes are written by sessions in this process.
type yard struct {
	t      *testing.T
	host   *host.Client // of no device
	mem    *vfs.Mem
	hook   vfs.Hook
	stores int
	engine *Engine
}

func newYard(t *testing.T, stores int) *yard { return newYardOf(t, idleHost(t), stores) }

func newYardOf(t *testing.T, h *host.Client, stores int) *yard {
	y := &yard{t: t, host: h, mem: vfs.NewMem(), stores: stores}
	y.must(y.mem.MkdirAll("/state"))
	y.must(y.mem.SyncDir("/"))
	y.start()
	return y
}

// idleHost is a host without devices.
func idleHost(t *testing.T) *host.Client {
	t.Helper()
	state := t.TempDir()
	h, err := host.New(host.Config{State: state, Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return host.NewClient(state)
}

func (y *yard) must(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

func (y *yard) tryStart() error {
	c := Config{FS: vfs.Faulty(y.mem, y.hook), State: "/state", Node: "n1", Overcommit: 1000, Host: y.host, Log: slog.New(slog.NewTextHandler(y.t.Output(), nil))}
	for i := range y.stores {
		c.Stores = append(c.Stores, y.path(i))
	}
	e, err := New(c)
	y.must(err)
	y.engine = e
	return e.stores.open(e.holder("serve", ""))
}

func (y *yard) start() {
	y.t.Helper()
	y.must(y.tryStart())
}

func (y *yard) path(i int) string { return fmt.Sprintf("/disk%d/store", i) }

func (y *yard) id(i int) engine.ReplicaID {
	return engine.ReplicaID(y.engine.stores.known[y.path(i)].String())
}

// restart ends the process as SIGKILL does.
func (y *yard) restart() {
	y.t.Helper()
	y.mem = y.mem.Restart()
	y.start()
}

// powerCut loses everything that was not synced, and starts again.
func (y *yard) powerCut() {
	y.t.Helper()
	y.mem = y.mem.CrashClone(nil)
	y.start()
}

// away and back move disks.
func (y *yard) away(stores ...int) {
	y.t.Helper()
	for _, i := range stores {
		y.must(errors.Join(y.mem.Rename(y.path(i), y.path(i)+".away"), y.mem.SyncDir(fmt.Sprintf("/disk%d", i))))
	}
}

func (y *yard) back(stores ...int) {
	y.t.Helper()
	for _, i := range stores {
		y.must(errors.Join(y.mem.Rename(y.path(i)+".away", y.path(i)), y.mem.SyncDir(fmt.Sprintf("/disk%d", i))))
	}
}

const yardSize = 32 * volume.MiB

func (y *yard) create() {
	y.t.Helper()
	_, err := y.engine.Create(y.t.Context(), engine.Spec{ID: testID, Name: "vol", Size: yardSize, Parameters: map[string]string{"verify": "off"}})
	y.must(err)
}

func (y *yard) publish() volume.Attachment {
	y.t.Helper()
	a, err := y.engine.Publish(y.t.Context(), testID, "n1", engine.PublishOptions{})
	y.must(err)
	return a
}

func (y *yard) attach(a volume.Attachment) *Session {
	y.t.Helper()
	s, err := y.engine.open(y.t.Context(), testID, ForDevice, a.Epoch)
	y.must(err)
	y.t.Cleanup(s.Close)
	return s
}

// write attaches, writes and flushes, and ends as killed.
func (y *yard) write(a volume.Attachment, seed uint64, n int, off int64) {
	y.t.Helper()
	s := y.attach(a)
	mustWrite(y.t, s, pattern(seed, n), off)
	y.must(s.Flush())
	s.Close()
}

// leave detaches in order.
func (y *yard) leave(s *Session, a volume.Attachment, receipt string) engine.Barrier {
	y.t.Helper()
	y.must(s.Stop())
	b, err := s.Evidence(y.t.Context(), nil)
	y.must(err)
	y.must(s.Seal(b, []byte(receipt)))
	s.Close()
	y.must(y.engine.Unpublish(y.t.Context(), a))
	return b
}

func (y *yard) plan(read bool) engine.SalvagePlan {
	y.t.Helper()
	p, err := y.engine.SalvagePlan(y.t.Context(), testID, read, nil)
	y.must(err)
	return p
}

// salvage decides for a store and puts the receipt in force.
func (y *yard) salvage(i int, receipt string) engine.Barrier {
	y.t.Helper()
	b, err := y.trySalvage(i, receipt)
	y.must(err)
	return b
}

func (y *yard) trySalvage(i int, receipt string) (engine.Barrier, error) {
	b, err := y.engine.Salvage(y.t.Context(), testID, engine.SalvageOrder{From: y.id(i), Reason: "test"}, nil)
	if err != nil {
		return b, err
	}
	return b, y.engine.Seal(y.t.Context(), b, []byte(receipt))
}

func (y *yard) receipts(want ...string) {
	y.t.Helper()
	got, err := y.engine.Receipts(y.t.Context(), testID)
	y.must(err)
	var text []string
	for _, r := range got {
		text = append(text, string(r))
	}
	if !slices.Equal(text, want) {
		y.t.Fatalf("receipts %q, want %q", text, want)
	}
}

func (y *yard) choice(p engine.SalvagePlan, i int) engine.SalvageChoice {
	y.t.Helper()
	for _, c := range p.Choices {
		if c.From == y.id(i) {
			return c
		}
	}
	y.t.Fatalf("store %d is no choice: %+v", i, p)
	return engine.SalvageChoice{}
}

func (y *yard) copy(p engine.SalvagePlan, i int) engine.SalvageCopy {
	y.t.Helper()
	for _, c := range p.Copies {
		if c.ID == y.id(i) {
			return c
		}
	}
	y.t.Fatalf("nothing of store %d: %+v", i, p)
	return engine.SalvageCopy{}
}

func (y *yard) outlook(p engine.SalvagePlan, want engine.Outlook) {
	y.t.Helper()
	if p.Outlook != want || p.Because == "" {
		y.t.Fatalf("outlook %q (%s), want %q", p.Outlook, p.Because, want)
	}
}

// twoGone is a volume whose newest writes store 0 alone has not got: it left the in-sync set before them. Then the two others vanish.
func (y *yard) twoGone() volume.Attachment {
	y.t.Helper()
	y.create()
	a := y.publish()
	y.write(a, 1, 1<<20, 0)
	y.away(0)
	y.write(a, 2, 64<<10, 512<<10)
	y.back(0)
	y.away(1, 2)
	return a
}

// TestPlanOfAHealthyVolume: there is nothing to decide, a salvage is refused, and looking writes nothing.
func TestPlanOfAHealthyVolume(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	s := y.attach(a)
	mustWrite(t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 1")
	looking := true
	y.hook = func(op *vfs.Op) error {
		if looking && op.Kind.Alters() && !(op.Kind == vfs.OpOpen && op.Mode&vfs.ReadOnly != 0) {
			t.Errorf("looking called %s %s", op.Kind, op.Name)
		}
		return nil
	}
	looking = false
	y.restart()
	looking = true
	p := y.plan(true)
	looking = false
	y.outlook(p, engine.OutlookComesUp)
	if len(p.Choices) != 0 || !p.Certain || p.Read == 0 || len(p.Copies) != 3 || len(p.Head) == 0 || p.Since.IsZero() {
		t.Errorf("plan %+v", p)
	}
	for _, c := range p.Copies {
		if !c.Admitted || !c.Member || !c.Readable || !c.Clean || !c.Sealed || !c.AsReceipt || c.Dirty != 0 || c.DiffersBlocks != 0 || c.Wrong != 0 || c.State != engine.InSync {
			t.Errorf("copy %+v", c)
		}
	}
	if _, err := y.trySalvage(0, "forced"); !errors.Is(err, engine.ErrNotNeeded) {
		t.Errorf("salvage of a healthy volume: %v", err)
	}
	y.receipts("receipt 1")
}

// TestSalvageFromAStaleStore: what is said to be lost is what is lost, nothing more.
func TestSalvageFromAStaleStore(t *testing.T) {
	y := newYard(t, 3)
	a := y.twoGone()
	p := y.plan(false)
	y.outlook(p, engine.OutlookWaits)
	if len(p.WaitsFor) != 2 || p.Certain || len(p.Choices) != 1 {
		t.Fatalf("plan %+v", p)
	}
	y.back(1) // beside the one that has everything the rules suffice
	if _, err := y.trySalvage(0, "forced"); !errors.Is(err, engine.ErrNotNeeded) {
		t.Fatalf("salvage where the rules suffice: %v", err)
	}
	y.outlook(y.plan(false), engine.OutlookComesUp)
	y.away(1)
	if _, err := y.engine.Salvage(t.Context(), testID, engine.SalvageOrder{From: y.id(1), Reason: "test"}, nil); !errors.Is(err, engine.ErrUnavailable) && !errors.Is(err, engine.ErrInvalid) {
		t.Fatalf("salvage from a store that is away: %v", err)
	}
	b := y.salvage(0, "forced")
	if b.Clean || b.Salvaged == nil || b.Salvaged.From != y.id(0) || b.Salvaged.Lost == "" || b.Salvaged.Replicas != 3 || b.Attachment != a || b.Writer%salvageStride != 0 {
		t.Errorf("barrier %+v, %+v", b, b.Salvaged)
	}
	y.receipts("forced")
	v, err := y.engine.Get(t.Context(), testID)
	y.must(err)
	if v.State != engine.Degraded || !v.Sealed || !strings.Contains(v.Reason, "1 of 3") || *v.Attachment != a {
		t.Errorf("salvaged volume %+v", v)
	}
	y.outlook(y.plan(false), engine.OutlookComesUp)
	s := y.attach(a)
	if !s.unclean {
		t.Error("the attach after a salvage is not unclean")
	}
	mustRead(t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 2")
	y.receipts("forced", "receipt 2")
}

// TestOldMajorityNeverComesBack: neither beside the salvaged replica nor alone, before and after a restart, whatever it did
// unseen, is it a second truth.
func TestOldMajorityNeverComesBack(t *testing.T) {
	y := newYard(t, 3)
	a := y.twoGone()
	y.away(0)
	y.back(1, 2)
	for range 5 { // epochs that store 0 has never heard of
		y.write(a, 3, 4096, 0)
	}
	y.away(1, 2)
	y.back(0)
	y.salvage(0, "forced")
	y.write(a, 9, 4096, 8<<20)
	old := func() {
		t.Helper()
		y.back(1, 2)
		s := y.attach(a)
		mustRead(t, s, pattern(1, 1<<20), 0)
		mustRead(t, s, pattern(9, 4096), 8<<20)
		s.Close()
		p := y.plan(false)
		y.outlook(p, engine.OutlookComesUp)
		if c := y.copy(p, 1); c.Admitted || c.Member || c.DiffersBlocks == 0 {
			t.Errorf("a store with an older truth %+v", c)
		}
		y.away(0)
		if v, err := y.engine.Get(t.Context(), testID); !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("the old majority alone: %+v, %v", v, err)
		}
		if _, err := y.engine.open(t.Context(), testID, ForDevice, a.Epoch); !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("attach of the old majority: %v", err)
		}
		if p := y.plan(false); p.Outlook != engine.OutlookWaits || len(p.WaitsFor) != 1 || p.WaitsFor[0].ID != y.id(0) {
			t.Fatalf("plan of the old majority alone: %+v", p)
		}
		y.back(0)
		y.away(1, 2)
	}
	old()
	y.restart()
	old()
	y.powerCut()
	old()
}

// TestSalvageTakesInTheStoresThatAreThere: a stale one and an empty one become voters, and are rebuilt; then the chosen one may go.
func TestSalvageTakesInTheStoresThatAreThere(t *testing.T) {
	y := newYard(t, 4)
	y.must(y.mem.MkdirAll("/disk3")) // the fourth is empty: volumes have three replicas
	y.create()
	var have []int
	v, err := y.engine.Get(t.Context(), testID)
	y.must(err)
	for i := range 4 {
		if slices.ContainsFunc(v.Replicas, func(r engine.Replica) bool { return r.ID == y.id(i) }) {
			have = append(have, i)
		}
	}
	empty := 6 - have[0] - have[1] - have[2]
	a := y.publish()
	s := y.attach(a)
	mustWrite(t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 1")
	a = y.publish()
	y.away(have[0])
	y.write(a, 2, 1<<20, 4<<20)
	y.back(have[0])
	y.away(have[1], have[2])
	y.salvage(have[0], "forced")
	y.receipts("receipt 1", "forced")
	s = y.attach(a)
	s.bringBack(s.background.ctx)
	if got := s.Config(); len(got.Voters) != 2 || got.Members != quorum.All(2) {
		t.Fatalf("configuration %+v", got)
	}
	mustRead(t, s, pattern(1, 1<<20), 0)
	mustRead(t, s, make([]byte, 1<<20), 4<<20)
	y.leave(s, a, "receipt 2")
	p := y.plan(true)
	for _, i := range []int{have[0], empty} {
		if c := y.copy(p, i); !c.Member || c.DiffersBlocks != 0 || !c.AsReceipt || c.Wrong != 0 {
			t.Errorf("store %d after the rebuild: %+v", i, c)
		}
	}
	y.receipts("receipt 1", "forced", "receipt 2")
}

// TestSalvageOfTheOnlyStore: its record is damaged, so that the rules can never bring it up; all its data is there.
func TestSalvageOfTheOnlyStore(t *testing.T) {
	y := newYard(t, 1)
	y.create()
	a := y.publish()
	y.write(a, 1, 1<<20, 0)
	meta := y.path(0) + "/volumes/vol/meta"
	_, rec, err := y.engine.stores.present()[0].Peek(testID)
	y.must(err)
	y.spoil(meta, 0x2000+int64(rec.Sequence&1)*0x1000+100)
	if _, err := y.engine.open(t.Context(), testID, ForDevice, a.Epoch); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("attach with a damaged record: %v", err)
	}
	p := y.plan(true)
	y.outlook(p, engine.OutlookStuck)
	if c := y.copy(p, 0); !c.Doubtful || !c.Readable {
		t.Errorf("copy %+v", c)
	}
	if c := y.choice(p, 0); len(c.Loses) == 0 || !strings.Contains(c.Loses[0], "damaged") {
		t.Errorf("choice %+v", c)
	}
	y.salvage(0, "forced")
	s := y.attach(a)
	mustRead(t, s, pattern(1, 1<<20), 0)
	y.leave(s, a, "receipt 2")
	y.receipts("forced", "receipt 2")
}

func (y *yard) spoil(name string, at int64) {
	y.t.Helper()
	f, err := y.mem.Open(name, vfs.Direct)
	y.must(err)
	defer f.Close()
	p := vfs.AlignedBuffer(vfs.Align)
	page := at / vfs.Align * vfs.Align
	y.must(f.ReadAt(p, page))
	p[at-page] ^= 0x55
	y.must(errors.Join(f.WriteAt(p, page), f.Datasync()))
}

// spoilBlock makes a store's copy of a block differ from its checksum.
func (y *yard) spoilBlock(store int, block int64) {
	y.t.Helper()
	y.spoil(y.path(store)+"/volumes/vol/data", blockAt(block)+int64(store))
}

// TestSalvageOfAQuarantinedVolume: blocks for which no copy can win become what the chosen store holds; the others are taken
// from whoever has them right; each is told, and the volume can be used and detached again.
func TestSalvageOfAQuarantinedVolume(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	s := y.attach(a)
	want := pattern(1, 1<<20)
	mustWrite(t, s, want, 0)
	y.must(s.Stop())
	for i := range 3 {
		y.spoilBlock(i, 7)
	}
	b, err := s.Evidence(t.Context(), nil)
	y.must(err)
	if len(b.Unresolved) != 1 {
		t.Fatalf("barrier %+v", b)
	}
	y.must(s.Update(quarantine(b.Unresolved)))
	b, err = s.Evidence(t.Context(), nil)
	y.must(err)
	y.must(s.Seal(b, []byte("let go"))) // by an operator's override
	s.Close()
	y.must(y.engine.Unpublish(t.Context(), a))
	y.spoilBlock(1, 20) // the others have it right
	p := y.plan(true)
	y.outlook(p, engine.OutlookStuck)
	if c := y.copy(p, 1); c.Wrong != 2 {
		t.Errorf("copy %+v", c)
	}
	b = y.salvage(1, "forced")
	if len(b.Unresolved) != 1 || b.Unresolved[0].Offset != 7*4096 || len(b.Repairs) != 1 || b.Repairs[0].Offset != 20*4096 {
		t.Errorf("barrier %+v", b)
	}
	y.receipts("let go", "forced")
	a = y.publish()
	s = y.attach(a)
	if !s.unclean {
		t.Error("the attach after a salvage is not unclean")
	}
	got := vfs.AlignedBuffer(1 << 20)
	y.must(s.ReadAt(got, 0))
	differ := 0
	for i := range got {
		if got[i] != want[i] {
			differ++
			if i/4096 != 7 {
				t.Fatalf("offset %d differs", i)
			}
		}
	}
	if differ != 1 {
		t.Errorf("%d bytes of the block differ, want the one that was spoiled in store 1", differ)
	}
	s.bringBack(s.background.ctx)
	b = y.leave(s, a, "receipt 3")
	agreeing(t, b, 3)
	if len(b.Unresolved) != 0 {
		t.Errorf("unresolved after the salvage: %+v", b.Unresolved)
	}
}

// TestSalvageOfUnreadableBlocks: what cannot be read anywhere becomes zeros, and is told.
func TestSalvageOfUnreadableBlocks(t *testing.T) {
	y := newYard(t, 3)
	a := y.twoGone()
	var mended atomic.Bool
	y.hook = func(op *vfs.Op) error {
		at := blockAt(3)
		switch over := strings.HasSuffix(op.Name, "/data") && op.Offset <= at && at < op.Offset+int64(len(op.Data)); {
		case over && op.Kind == vfs.OpRead && !mended.Load():
			return errors.New("medium error")
		case over && op.Kind == vfs.OpWrite:
			mended.Store(true) // a disk gives a sector that is written a new place
		}
		return nil
	}
	y.restart()
	if c := y.copy(y.plan(true), 0); c.Unreadable != 1 {
		t.Errorf("copy %+v", c)
	}
	b := y.salvage(0, "forced")
	if len(b.Unresolved) != 1 || b.Unresolved[0].Offset != 3*4096 || !strings.Contains(b.Unresolved[0].Cause, "zeros") {
		t.Errorf("barrier %+v", b)
	}
	s := y.attach(a)
	want := bytes.Clone(pattern(1, 1<<20))
	clear(want[3*4096 : 4*4096])
	mustRead(t, s, want, 0)
}

// TestSalvageIsRefused: where the volume has a writer, where the gate has taken one's place, without a reason.
func TestSalvageIsRefused(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	y.write(a, 1, 4096, 0)
	if _, err := y.engine.Fence(t.Context(), a, engine.FenceOptions{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	if _, err := y.trySalvage(0, "forced"); !errors.Is(err, engine.ErrAttached) {
		t.Errorf("salvage behind the gate's back: %v", err)
	}
	y.outlook(y.plan(false), engine.OutlookInUse)
	y.restart()
	y.away(1, 2)
	if _, err := y.engine.Salvage(t.Context(), testID, engine.SalvageOrder{From: y.id(0), Reason: " "}, nil); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("salvage without a reason: %v", err)
	}
	if _, err := y.engine.Salvage(t.Context(), testID, engine.SalvageOrder{From: "nobody", Reason: "test"}, nil); !errors.Is(err, engine.ErrInvalid) {
		t.Errorf("salvage from nobody: %v", err)
	}
	holder, err := y.engine.stores.present()[0].Open(testID, "another process")
	y.must(err)
	if _, err := y.trySalvage(0, "forced"); !errors.Is(err, engine.ErrBusy) {
		t.Errorf("salvage of a replica that another process has: %v", err)
	}
	y.must(holder.Close())
	y.salvage(0, "forced")
	if _, err := y.engine.SalvagePlan(t.Context(), "unknown", false, nil); !errors.Is(err, engine.ErrNotFound) && !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("plan of an unknown volume: %v", err)
	}
}

// TestChainThatLeadsBackToItself: receipts of equal content would; they are refused, not followed for ever.
func TestChainThatLeadsBackToItself(t *testing.T) {
	a, b := [32]byte{1}, [32]byte{2}
	all := map[[32]byte]linked{a: {previous: b}, b: {previous: a}}
	if got, err := chain(all, a, testID); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("%d receipts, %v", len(got), err)
	}
}

// TestSalvageWhereTheOthersLostTheirs: the stores of two replicas are there, without them. To the rules the volume does not exist.
func TestSalvageWhereTheOthersLostTheirs(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	y.write(a, 1, 1<<20, 0)
	for i := 1; i < 3; i++ {
		y.must(errors.Join(y.mem.RemoveAll(y.path(i)+"/volumes/vol"), y.mem.SyncDir(y.path(i)+"/volumes")))
	}
	if _, err := y.engine.Get(t.Context(), testID); !errors.Is(err, engine.ErrNotFound) {
		t.Fatalf("get: %v", err)
	}
	p := y.plan(false)
	y.outlook(p, engine.OutlookStuck)
	if len(p.Choices) != 1 || !strings.Contains(p.Because, "has no replica of it any more") {
		t.Errorf("plan %+v", p)
	}
	y.salvage(0, "forced")
	s := y.attach(a)
	mustRead(t, s, pattern(1, 1<<20), 0)
	s.bringBack(s.background.ctx)
	agreeing(t, y.leave(s, a, "receipt 2"), 3)
}

// TestSalvageWhereNobodyHasWhatWasSealed: the sums of all replicas are wrong in the same way. Everything is read, and the sums are made anew.
func TestSalvageWhereNobodyHasWhatWasSealed(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	s := y.attach(a)
	mustWrite(t, s, pattern(1, 1<<20), 0)
	b := y.leave(s, a, "receipt 1")
	for i := range 3 {
		y.spoil(y.path(i)+"/volumes/vol/regions", 3)
	}
	if _, err := y.engine.open(t.Context(), testID, ForDevice, 0); !errors.Is(err, engine.ErrQuarantined) {
		t.Fatalf("attach: %v", err)
	}
	p := y.plan(false)
	y.outlook(p, engine.OutlookStuck)
	if c := y.copy(p, 1); c.AsReceipt {
		t.Errorf("copy %+v", c)
	}
	after := y.salvage(1, "forced")
	if len(after.Unresolved) != 0 || !after.Expected.Equal(b.Expected) {
		t.Errorf("barrier %+v, sealed was %+v", after, b.Expected)
	}
	s = y.attach(y.publish())
	mustRead(t, s, pattern(1, 1<<20), 0)
}

// TestSalvageGivesUpADevice: of a volume that stands still because its majority is gone, and only where a person allows it.
func TestSalvageGivesUpADevice(t *testing.T) {
	r := newRig(t)
	a, d := r.create("still")
	f, err := os.OpenFile(d.Path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(pattern(1, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	replicas := mustGet(t, r.engine, "still").Replicas
	r.move(t, replicas[1].ID, "", ".away")
	r.move(t, replicas[2].ID, "", ".away")
	p, err := r.engine.SalvagePlan(t.Context(), "still", false, nil)
	if err != nil || p.Outlook != engine.OutlookInUse || len(p.Choices) != 1 {
		t.Fatalf("plan %+v, %v", p, err)
	}
	o := engine.SalvageOrder{From: replicas[0].ID, Reason: "test"}
	if _, err := r.engine.Salvage(t.Context(), "still", o, nil); !errors.Is(err, engine.ErrAttached) {
		t.Fatalf("salvage of an attached volume: %v", err)
	}
	o.Kill = true
	b, err := r.engine.Salvage(t.Context(), "still", o, nil)
	if err == nil {
		err = r.engine.Seal(t.Context(), b, []byte("forced"))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(pattern(1, 4096), 0); err == nil {
		t.Error("the device still answers")
	}
	f.Close()
	if err := r.engine.Detach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if d, err = r.engine.Attach(t.Context(), a); err != nil || !d.Unclean {
		t.Fatalf("device %+v, %v", d, err)
	}
	got := vfs.AlignedBuffer(64 << 10)
	if f, err = os.OpenFile(d.Path, os.O_RDWR|syscall.O_DIRECT, 0); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, pattern(1, 64<<10)) {
		t.Errorf("content differs, %v", err)
	}
}

func mustGet(t *testing.T, e *Engine, id volume.ID) engine.Volume {
	t.Helper()
	v, err := e.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestWhatIsSaidToBeLostIsLost: to the block. The newer content is on a store that can be read, and may not bring the volume up.
func TestWhatIsSaidToBeLostIsLost(t *testing.T) {
	y := newYard(t, 3)
	y.create()
	a := y.publish()
	old := pattern(1, 1<<20)
	y.write(a, 1, 1<<20, 0)
	y.away(0)
	y.write(a, 2, 64<<10, 512<<10) // 16 blocks
	s := y.attach(a)
	y.must(s.Zero(0, 3*4096)) // and 3
	y.must(s.Flush())
	s.Close()
	y.back(0)
	y.away(2)
	_, rec, err := y.engine.stores.present()[1].Peek(testID)
	y.must(err)
	y.spoil(y.path(1)+"/volumes/vol/meta", 0x2000+int64(rec.Sequence&1)*0x1000+100)
	p := y.plan(true)
	y.outlook(p, engine.OutlookWaits)
	if c := y.choice(p, 0); c.LostBlocks != 19 || c.LostRegions != 1 || !strings.Contains(strings.Join(c.Loses, " "), y.path(1)) {
		t.Errorf("choice %+v", c)
	}
	if c := y.choice(p, 1); c.LostBlocks != 0 {
		t.Errorf("choice %+v", c)
	}
	if c := y.copy(p, 0); c.DiffersBlocks != 19 && y.copy(p, 1).DiffersBlocks != 19 {
		t.Errorf("copies %+v", p.Copies)
	}
	b := y.salvage(0, "forced")
	if b.Salvaged.LostBlocks != 19 {
		t.Errorf("trace %+v", b.Salvaged)
	}
	s = y.attach(a)
	mustRead(t, s, old, 0)
	s.bringBack(s.background.ctx) // the newer one is given up for good
	agreeing(t, y.leave(s, a, "receipt 2"), 2)
	y.away(0)
	y.back(2)
	p = y.plan(false)
	y.outlook(p, engine.OutlookWaits) // two voters, of which one is away
}
