package explorer

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// copyOf is what a replica in a store was told, call by call, and what the call that is being made may change it to.
type copyOf struct {
	phase   phase
	now     keeps
	next    *keeps // nil: no call is being made
	data    truth  // of the blocks
	buried  bool
	burying bool
}

// keeps is what a replica keeps beside blocks.
type keeps struct {
	promised volume.Epoch
	step     uint32
	epoch    volume.Epoch
	size     volume.Bytes
	flags    quorum.Flags
	lossy    bool
	open     bool
	dirty    map[int64]bool
	sums     map[int64]digest.Sum
	receipts map[volume.Epoch]string
}

func (k keeps) clone() keeps {
	k.dirty, k.sums, k.receipts = maps.Clone(k.dirty), maps.Clone(k.sums), maps.Clone(k.receipts)
	return k
}

const replicaRegions = 12

// oneReplica is everything that can be asked of a replica, from the making of its store to its removal.
func oneReplica() scenario {
	return scenario{name: "replica/1", weight: share, play: func(t *testing.T, seed uint64) []point {
		k := &copyOf{data: truth{blocks: map[int64]*content{}}}
		r := newRecorder(newDisks("s0"), seed)
		r.expect = func() expectation {
			now := *k
			now.now, now.data = k.now.clone(), *k.data.clone()
			if k.next != nil {
				next := k.next.clone()
				now.next = &next
			}
			return &now
		}
		p := r.start()
		if err := k.play(p.fs); err != nil {
			t.Error(err)
		}
		r.end()
		r.expect = nil
		return r.points
	}}
}

func replicaConfig(id quorum.UUID, epoch volume.Epoch, step uint32, size volume.Bytes, flags quorum.Flags) quorum.Config {
	return quorum.Config{
		Epoch: epoch, Step: step, Members: quorum.SetOf(0), Size: size, Flags: flags,
		Voters: []quorum.Voter{{Store: id, Incarnation: quorum.UUID{3}}}, Attributes: []byte(`{"name":"vol"}`),
	}
}

func (k *copyOf) play(fsys vfs.FS) error {
	d, err := store.OpenDir(fsys, "/s0/store", installation)
	if err != nil {
		return err
	}
	k.phase = coming
	k.now = keeps{
		promised: 1, epoch: 1, size: 16 * volume.MiB, flags: quorum.Sealed,
		dirty: map[int64]bool{}, sums: map[int64]digest.Sum{}, receipts: map[volume.Epoch]string{},
	}
	sb := store.Superblock{Volume: theVolume, UUID: quorum.UUID{2}, Key: digest.Key{4}, LogicalBlockSize: 512, Store: d.ID(), Incarnation: quorum.UUID{3}}
	if err := d.Create(sb, replicaConfig(d.ID(), 1, 0, 16*volume.MiB, quorum.Sealed)); err != nil {
		return err
	}
	k.phase = there
	r, err := d.Open(theVolume, "explorer")
	if err == nil {
		err = k.use(d, r)
	}
	if err != nil {
		return err
	}
	k.burying = true
	if err := d.Bury(theVolume, sb.UUID); err != nil {
		return err
	}
	k.buried = true
	k.phase = going
	if err := errors.Join(r.Close(), d.Remove(theVolume)); err != nil {
		return err
	}
	k.phase = deleted
	return nil
}

// call makes a call that is to change what is kept.
func (k *copyOf) call(change func(*keeps), do func() error) error {
	next := k.now.clone()
	change(&next)
	k.next = &next
	if err := do(); err != nil {
		return err
	}
	k.now, k.next = next, nil
	return nil
}

func (k *copyOf) use(d *store.Dir, r *store.Replica) error {
	accept := func(epoch volume.Epoch, step uint32, size volume.Bytes, flags quorum.Flags, open bool) error {
		return k.call(func(c *keeps) {
			c.epoch, c.step, c.size, c.flags, c.open, c.promised = epoch, step, size, flags, open, epoch
			if flags.Has(quorum.Sealed) {
				c.promised++
			}
		}, func() error {
			return r.Accept(replicaConfig(d.ID(), epoch, step, size, flags), store.Session{ID: quorum.UUID{byte(epoch)}, Open: open})
		})
	}
	mark := func(dirty bool, regions ...int64) error {
		return k.call(func(c *keeps) {
			for _, i := range regions {
				c.dirty[i] = dirty
			}
		}, func() error {
			if dirty {
				return r.MarkDirty(regions)
			}
			return r.ClearDirty(regions)
		})
	}
	sum := func(region int64, s digest.Sum) error {
		return k.call(func(c *keeps) { c.sums[region] = s }, func() error { return r.WriteSums(map[int64]digest.Sum{region: s}) })
	}
	receipt := func(e volume.Epoch, text string) error {
		return k.call(func(c *keeps) { c.receipts[e] = text }, func() error { return d.PutReceipt(theVolume, e, []byte(text)) })
	}
	write := func(block, n int64, value uint64) error {
		var p []byte
		for range n {
			v := sectors{value, value, value, value, value, value, value, value}
			p = append(p, v.bytes()...)
		}
		q := vfs.AlignedBuffer(len(p))
		copy(q, p)
		k.data.begin(block*8, (block+n)*8, value)
		err := r.WriteBlocks(q, block)
		k.data.answer(block*8, (block+n)*8, value)
		return err
	}
	punch := func(block int64) error {
		k.data.begin(block*8, (block+1)*8, 0)
		err := r.PunchBlocks(block, 1)
		k.data.answer(block*8, (block+1)*8, 0)
		return err
	}
	sync := func() error {
		err := r.Sync()
		k.data.flushed()
		return err
	}
	big := digest.Sum{1, 2, 3, 4}
	for _, step := range []func() error{
		func() error { return k.call(func(c *keeps) { c.promised = 2 }, func() error { return r.Promise(2) }) },
		func() error { return accept(2, 1, 16*volume.MiB, 0, true) },
		func() error { return mark(true, 0, 2) },
		func() error { return write(0, 2, 7) },
		func() error { return write(2*1024, 1, 8) },
		sync,
		func() error { return write(1, 3, 9) },
		func() error { return punch(0) },
		sync,
		func() error { return sum(0, big) },
		func() error { return mark(false, 0) },
		func() error { return k.call(func(c *keeps) { c.lossy = true }, func() error { return r.Mark(true) }) },
		func() error { return accept(2, 2, 48*volume.MiB, 0, true) },
		func() error { return mark(true, 11, 0) },
		func() error { return write(11*1024, 2, 10) },
		func() error { return k.call(func(c *keeps) { c.lossy = false }, func() error { return r.Mark(false) }) },
		func() error { return receipt(2, "a receipt") },
		func() error { return receipt(2, "another in its place, longer") },
		func() error { return accept(2, 3, 48*volume.MiB, quorum.Sealed, false) },
		func() error { return receipt(3, "the next") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (k *copyOf) check(_ *testing.T, s state, remake func() *disks) (verdict, error) {
	left := remake()
	v, first, err := k.look(left)
	if err != nil {
		return v, err
	}
	_, second, err := k.look(left.cut())
	if err == nil { // a receipt counts nothing before the seal that names it
		first.kept.receipts, second.kept.receipts = nil, nil
	}
	if err == nil && !reflect.DeepEqual(first, second) {
		err = fmt.Errorf("after another power cut %+v, before it %+v", second, first)
	}
	return v, err
}

// seen is what an opened replica shows.
type seen struct {
	there  bool
	kept   keeps
	blocks map[int64]sectors
}

// look opens store and replica and compares them with what they were told.
func (k *copyOf) look(left *disks) (verdict, *seen, error) {
	d, err := store.OpenDir(left, "/s0/store", installation)
	if err == nil {
		err = d.Sweep()
	}
	if err != nil {
		return opened, nil, err
	}
	if buried, err := d.Buried(theVolume, quorum.UUID{2}); err != nil || k.buried && !buried || buried && !k.burying {
		return opened, nil, fmt.Errorf("buried is %t, promised %t: %w", buried, k.buried, err)
	}
	r, err := d.Open(theVolume, "explorer")
	if errors.Is(err, store.ErrNotFound) && k.phase != there {
		return unknown, &seen{}, nil
	}
	if err != nil {
		return opened, nil, err
	}
	defer r.Close()
	if k.phase == absent || k.phase == deleted {
		return opened, nil, errors.New("a replica is there that was removed, or never made")
	}
	if damage := r.Damage(); len(damage) > 0 {
		return opened, nil, fmt.Errorf("damaged by a power cut: %q", damage)
	}
	shows := &seen{there: true}
	if shows.kept, err = keepsOf(d, r); err != nil {
		return opened, nil, err
	}
	if err := k.compare(shows.kept); err != nil {
		return opened, nil, err
	}
	if err := r.Sync(); err != nil { // blocks are believed after a sync
		return opened, nil, err
	}
	if shows.blocks, err = k.data.read(blocks{r}); err == nil {
		err = k.data.allows(shows.blocks, false)
	}
	return opened, shows, err
}

// blocks reads a replica as a volume is read.
type blocks struct{ r *store.Replica }

func (b blocks) ReadAt(p []byte, off int64) error { return b.r.ReadBlocks(p, off/store.BlockSize) }

func keepsOf(d *store.Dir, r *store.Replica) (keeps, error) {
	rec := r.Record()
	k := keeps{
		promised: rec.Promised, step: rec.Config.Step, epoch: rec.Config.Epoch, size: rec.Config.Size, flags: rec.Config.Flags,
		lossy: rec.Lossy, open: rec.Session.Open,
		dirty: map[int64]bool{}, sums: map[int64]digest.Sum{}, receipts: map[volume.Epoch]string{},
	}
	for _, i := range r.Dirty() {
		k.dirty[i] = true
	}
	sums := make([]digest.Sum, replicaRegions)
	if err := r.ReadSums(sums, 0); err != nil {
		return k, err
	}
	for i, s := range sums {
		if !s.IsZero() {
			k.sums[int64(i)] = s
		}
	}
	receipts, err := d.Receipts(theVolume)
	for _, x := range receipts {
		k.receipts[x.Writer] = string(x.Bytes)
	}
	return k, err
}

// compare wants each thing as it was told, or as the call that is being made changes it: of several regions each by itself.
func (k *copyOf) compare(got keeps) error {
	next := k.now
	if k.next != nil {
		next = *k.next
	}
	for i := range int64(replicaRegions) {
		if got.dirty[i] != k.now.dirty[i] && got.dirty[i] != next.dirty[i] {
			return fmt.Errorf("region %d: dirty is %t", i, got.dirty[i])
		}
		if got.sums[i] != k.now.sums[i] && got.sums[i] != next.sums[i] {
			return fmt.Errorf("region %d: sum is %v", i, got.sums[i])
		}
	}
	for _, e := range slices.Sorted(maps.Keys(got.receipts)) {
		if got.receipts[e] != k.now.receipts[e] && got.receipts[e] != next.receipts[e] {
			return fmt.Errorf("receipt %d is %q", e, got.receipts[e])
		}
	}
	for e, text := range k.now.receipts {
		if got.receipts[e] != text && got.receipts[e] != next.receipts[e] || got.receipts[e] == "" {
			return fmt.Errorf("receipt %d is %q, was %q", e, got.receipts[e], text)
		}
	}
	if !sameRecord(got, k.now) && !sameRecord(got, next) {
		return fmt.Errorf("record %+v; told %+v, being told %+v", got, k.now, next)
	}
	return nil
}

func sameRecord(a, b keeps) bool {
	a.dirty, a.sums, a.receipts = nil, nil, nil
	b.dirty, b.sums, b.receipts = nil, nil, nil
	return reflect.DeepEqual(a, b)
}
