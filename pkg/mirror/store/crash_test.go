package store

import (
	"bytes"
	"errors"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
)

var (
	crashSeeds = flag.Uint64("crash.seeds", 150, "random histories of TestPowerCuts")
	crashSeed  = flag.Uint64("crash.seed", 0, "the one history to run, where not 0")
)

// cuts runs do on m and calls check with disks as they may be after a power cut before each call that alters the disk, and
// with acknowledged, after the last.
func cuts(t *testing.T, m *vfs.Mem, do func(fsys vfs.FS), check func(after *vfs.Mem, acknowledged bool)) {
	t.Helper()
	var clones []*vfs.Mem
	cut := func() {
		clones = append(clones, m.CrashClone(nil))
		for seed := range uint64(12) {
			clones = append(clones, m.CrashClone(rand.New(rand.NewPCG(seed, uint64(len(clones))))))
		}
	}
	do(vfs.Faulty(m, func(op *vfs.Op) error {
		if op.Kind.Alters() {
			cut()
		}
		return nil
	}))
	for _, c := range clones {
		check(c, false)
	}
	clones = nil
	cut()
	for _, c := range clones {
		check(c, true)
	}
}

func TestPowerCutWhileAStoreIsMade(t *testing.T) {
	var id quorum.UUID
	cuts(t, vfs.NewMem(), func(fsys vfs.FS) { id = openStore(t, fsys).ID() }, func(after *vfs.Mem, acknowledged bool) {
		if got := openStore(t, after).ID(); acknowledged && got != id {
			t.Error("the store forgot who it is")
		}
	})
}

func TestPowerCutWhileAReplicaIsMade(t *testing.T) {
	m := vfs.NewMem()
	openStore(t, m)
	cuts(t, m, func(fsys vfs.FS) {
		d := openStore(t, fsys)
		must(t, d.Create(superOf(d), configAt(1, 1)))
	}, func(after *vfs.Mem, acknowledged bool) {
		d := openStore(t, after)
		must(t, d.Sweep())
		ids, err := d.Replicas()
		must(t, err)
		if len(ids) == 0 && !acknowledged {
			must(t, d.Create(superOf(d), configAt(1, 1)))
			return
		}
		if r := openReplica(t, d); len(r.Damage())+len(r.Dirty()) > 0 {
			t.Errorf("a new replica has damage %q, dirty %v", r.Damage(), r.Dirty())
		}
	})
}

func TestPowerCutWhileAReplicaIsRemoved(t *testing.T) {
	cuts(t, newMem(t), func(fsys vfs.FS) { must(t, openStore(t, fsys).Remove(testID)) }, func(after *vfs.Mem, acknowledged bool) {
		d := openStore(t, after)
		must(t, d.Sweep())
		r, err := d.Open(testID, "x")
		if err == nil && !acknowledged {
			must(t, r.Close())
			return
		}
		wantError(t, "open", err, ErrNotFound)
	})
}

// TestSweptReplicaDoesNotComeBackInPart: a process is killed when it has moved a replica away, the next one sweeps, and the power fails: of
// what that removed any part may be gone, and with it the move.
func TestSweptReplicaDoesNotComeBackInPart(t *testing.T) {
	m := newMem(t)
	moved := false
	d := openStore(t, vfs.Faulty(m, func(op *vfs.Op) error {
		if moved && op.Kind.Alters() {
			return errPowerCut
		}
		moved = op.Kind == vfs.OpRename
		return nil
	}))
	wantError(t, "remove", d.Remove(testID), errPowerCut)
	m = m.Restart()
	must(t, openStore(t, m).Sweep())
	i := m.Freeze()
	for gone := range i.Pending() {
		d := openStore(t, i.Crash(func(change int) vfs.Fate { return vfs.Fate{Survives: change == gone} }))
		if ids, err := d.Replicas(); err != nil || len(ids) > 0 {
			openReplica(t, d)
		}
	}
}

func TestPowerCutWhileAReceiptIsPut(t *testing.T) {
	m := newMem(t)
	must(t, openStore(t, m).PutReceipt(testID, 1, []byte("old")))
	cuts(t, m, func(fsys vfs.FS) { must(t, openStore(t, fsys).PutReceipt(testID, 1, []byte("newer"))) }, func(after *vfs.Mem, acknowledged bool) {
		got, err := openStore(t, after).Receipts(testID)
		must(t, err)
		if len(got) != 1 || string(got[0].Bytes) != "newer" && (acknowledged || string(got[0].Bytes) != "old") {
			t.Errorf("receipts %v, acknowledged %v", got, acknowledged)
		}
	})
}

// truth is what a replica must hold: what was acknowledged, and what a call that was cut may have changed it to.
type truth struct {
	record  Record
	pending *Record // what the call in progress would record
	dirty   map[int64]bool
	unsure  map[int64]bool // marks that the call in progress sets or takes
	sums    map[int64]digest.Sum
	newSums map[int64]digest.Sum
	data    map[int64]byte // by block, as of the last Sync
	written map[int64][]byte
}

func (w *truth) settle() {
	w.pending, w.unsure, w.newSums = nil, nil, nil
}

// check compares what an opened replica holds, and takes that for the truth from now on.
func (w *truth) check(t *testing.T, r *Replica) {
	t.Helper()
	rec := r.Record()
	if !sameButSequence(rec, w.record) && (w.pending == nil || !sameButSequence(rec, *w.pending)) {
		t.Errorf("record %+v, acknowledged %+v, pending %+v", rec, w.record, w.pending)
	}
	for i := range int64(64) {
		if r.IsDirty(i) != w.dirty[i] && !w.unsure[i] {
			t.Errorf("region %d: dirty is %v", i, r.IsDirty(i))
		}
		w.dirty[i] = r.IsDirty(i)
	}
	sums := make([]digest.Sum, 64)
	must(t, r.ReadSums(sums, 0))
	for i, s := range sums {
		if next, ok := w.newSums[int64(i)]; s != w.sums[int64(i)] && !(ok && s == next) {
			t.Errorf("region %d: sum %s", i, s)
		}
		w.sums[int64(i)] = s
	}
	w.checkData(t, r)
	w.record = rec
	w.settle()
}

// checkData allows each block what was synced last or anything written since, and after the replica was opened only what it then shows.
func (w *truth) checkData(t *testing.T, r *Replica) {
	p := vfs.AlignedBuffer(BlockSize)
	for b, synced := range w.data {
		must(t, r.ReadBlocks(p, b))
		for s := 0; s < BlockSize; s += sectorSize {
			if !bytes.Contains(append(w.written[b], synced), p[s:s+1]) {
				t.Errorf("block %d holds %d, synced %d, written since %v", b, p[s], synced, w.written[b])
			}
		}
		for i := range p { // a torn block is made whole, as recovery does
			p[i] = p[0]
		}
		must(t, r.WriteBlocks(p, b))
		w.data[b] = p[0]
	}
	must(t, r.Sync())
	clear(w.written)
}

func sameButSequence(a, b Record) bool {
	b.Sequence = a.Sequence
	return same(a, b)
}

// act makes one random call and keeps the truth: before the call what it may do, after it what it did.
func (w *truth) act(rng *rand.Rand, r *Replica) error {
	regions := []int64{rng.Int64N(64), rng.Int64N(64)}
	switch rng.IntN(8) {
	case 0:
		return w.recording(func(rec *Record) { rec.Promised += 2 }, func(rec Record) error { return r.Promise(rec.Promised) })
	case 1:
		return w.recording(func(rec *Record) {
			rec.Config = configAt(rec.Promised, rec.Config.Step+1)
			rec.Config.Attributes = bytes.Repeat([]byte{'a'}, rng.IntN(quorum.AttributesMax))
			rec.Session = Session{ID: quorum.UUID{byte(rng.Uint32())}, Open: rng.IntN(2) == 0}
		}, func(rec Record) error { return r.Accept(rec.Config, rec.Session) })
	case 2:
		return w.recording(func(rec *Record) { rec.Lossy = !rec.Lossy }, func(rec Record) error { return r.Mark(rec.Lossy) })
	case 3:
		return w.marking(regions, true, r.MarkDirty)
	case 4:
		return w.marking(regions, false, r.ClearDirty)
	case 5:
		w.newSums = map[int64]digest.Sum{regions[0]: {rng.Uint64()}, regions[1]: {3: rng.Uint64()}}
		err := r.WriteSums(w.newSums)
		if err == nil {
			maps.Copy(w.sums, w.newSums)
		}
		return err
	case 6:
		return w.writing(rng.Int64N(4)*RegionBlocks/2, byte(rng.Uint32()), r)
	}
	err := r.Sync()
	if err == nil {
		for b, all := range w.written {
			w.data[b] = all[len(all)-1]
		}
		clear(w.written)
	}
	return err
}

func (w *truth) recording(change func(*Record), call func(Record) error) error {
	next := w.record
	change(&next)
	w.pending = &next
	err := call(next)
	if err == nil {
		w.record = next
	}
	return err
}

func (w *truth) marking(regions []int64, dirty bool, call func([]int64) error) error {
	w.unsure = map[int64]bool{regions[0]: true, regions[1]: true}
	err := call(slices.Clone(regions))
	if err == nil {
		w.dirty[regions[0]], w.dirty[regions[1]] = dirty, dirty
	}
	return err
}

func (w *truth) writing(block int64, b byte, r *Replica) error {
	p := vfs.AlignedBuffer(BlockSize)
	for i := range p {
		p[i] = b
	}
	if _, ok := w.data[block]; !ok {
		w.data[block] = 0
	}
	w.written[block] = append(w.written[block], b)
	return r.WriteBlocks(p, block)
}

// A process is killed anywhere in Create; another opens what it finds; then the power is cut: what was opened is there.
func TestOpenMakesDurableWhatAKilledProcessMade(t *testing.T) {
	for n := int64(1); ; n++ {
		m := vfs.NewMem()
		openStore(t, m)
		d := openStore(t, vfs.Faulty(m, afterOpen(vfs.FailFrom(n, syscall.EIO))))
		err := d.Create(superOf(d), configAt(1, 1))
		m = m.Restart()
		if r, openErr := openStore(t, m).Open(testID, "x"); openErr == nil {
			must(t, r.Close())
			openReplicaOn(t, m.CrashClone(nil))
		} else {
			wantError(t, "open", openErr, ErrNotFound)
		}
		if err == nil {
			return
		}
	}
}

var errPowerCut = errors.New("the power is cut")

// TestPowerCuts runs random calls on one replica through many power cuts and kills, each at a random call on the disk.
// What was acknowledged is there, what was in progress is there or not, nothing else ever is; and what a process finds
// after another was killed is durable, although that one had not synced it.
func TestPowerCuts(t *testing.T) {
	if *crashSeed != 0 {
		powerCuts(t, *crashSeed)
		return
	}
	for seed := range *crashSeeds {
		powerCuts(t, seed+1)
		if t.Failed() {
			t.Fatalf("repeat with -crash.seed=%d", seed+1)
		}
	}
}

func powerCuts(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 77))
	m := newMem(t)
	w := &truth{dirty: map[int64]bool{}, sums: map[int64]digest.Sum{}, data: map[int64]byte{}, written: map[int64][]byte{}}
	_, w.record, _ = openStore(t, m).Peek(testID)
	for range 12 {
		m = untilCut(t, rng, m, w)
	}
}

// untilCut opens the replica, checks it, makes calls until one of them is cut, and returns the disk after that.
func untilCut(t *testing.T, rng *rand.Rand, m *vfs.Mem, w *truth) *vfs.Mem {
	budget := rng.IntN(25)
	armed, kill := false, rng.IntN(3) == 0
	var after *vfs.Mem
	r, err := openStore(t, vfs.Faulty(m, func(op *vfs.Op) error {
		if !armed || !op.Kind.Alters() {
			return nil
		}
		if budget--; budget >= 0 {
			return nil
		}
		if after == nil && !kill {
			after = m.CrashClone(rng)
		}
		return errPowerCut
	})).Open(testID, "x")
	must(t, err)
	w.check(t, r)
	armed = true
	for {
		err := w.act(rng, r)
		if err != nil {
			if !errors.Is(err, errPowerCut) && !errors.Is(err, syscall.EIO) {
				t.Fatalf("a call failed: %v", err)
			}
			break
		}
		w.settle()
	}
	if kill {
		return killed(t, rng, m.Restart(), w)
	}
	return after
}

// killed opens what a killed process left, and cuts the power at once: nothing that was seen may go.
func killed(t *testing.T, rng *rand.Rand, m *vfs.Mem, w *truth) *vfs.Mem {
	r := openReplicaOn(t, m)
	w.check(t, r)
	return m.CrashClone(rng)
}
