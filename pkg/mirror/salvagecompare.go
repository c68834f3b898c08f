package mirror

import (
	"errors"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// difference counts what two replicas do not have in common, by sums and checksums; data is not read for it.
type difference struct{ regions, blocks int }

// compare counts in what b differs from a. A region that is dirty on either is looked at in any case: its sum means nothing.
func (l *look) compare(a, b *holding) (d difference, err error) {
	suspects, err := l.suspects(a, b)
	if err != nil {
		return d, err
	}
	var x, y image
	x.replica, y.replica = a.replica, b.replica
	for _, region := range suspects {
		if err := l.ctx.Err(); err != nil {
			return d, err
		}
		if err := errors.Join(x.again(region), y.again(region)); err != nil {
			return d, err
		}
		n := 0
		for i := range int64(store.RegionBlocks) {
			n += bitOf(x.entries[i].Hash != y.entries[i].Hash || x.sound.has(i) != y.sound.has(i))
		}
		d.blocks += n
		d.regions += bitOf(n > 0)
	}
	return d, nil
}

// again reads the entries of another region.
func (m *image) again(region int64) error {
	m.sound = blockset{}
	return m.readEntries(region)
}

// givenUp is the newer content that others hold, and who.
type givenUp struct {
	blocks, regions int
	holders         []string
}

// givenUp counts the blocks of which any other replica that can be read holds a newer content.
func (l *look) givenUp(h *holding) (out givenUp, err error) {
	set := map[int64]struct{}{}
	mine := image{replica: h.replica}
	var others []*image
	for _, o := range l.readable() {
		if o == h {
			continue
		}
		suspects, err := l.suspects(h, o)
		if err != nil {
			return out, err
		}
		for _, i := range suspects {
			set[i] = struct{}{}
		}
		others = append(others, &image{replica: o.replica})
	}
	holds := make([]bool, len(others))
	for _, region := range sortedKeys(set) {
		if err := l.ctx.Err(); err != nil {
			return out, err
		}
		if err := mine.again(region); err != nil {
			return out, err
		}
		n, err := mine.outdated(region, others, holds)
		if err != nil {
			return out, err
		}
		out.blocks += n
		out.regions += bitOf(n > 0)
	}
	for i, o := range others {
		if holds[i] {
			out.holders = append(out.holders, o.replica.dir.Path())
		}
	}
	return out, nil
}

// outdated counts the blocks of the region that any of the others holds in a newer version; holds notes which.
func (m *image) outdated(region int64, others []*image, holds []bool) (n int, err error) {
	var set blockset
	for k, o := range others {
		if err := o.again(region); err != nil {
			return 0, err
		}
		for i := range int64(store.RegionBlocks) {
			x, y := m.entries[i], o.entries[i]
			if x.Hash != y.Hash && o.sound.has(i) && (!m.sound.has(i) || newer(y.Version, x.Version)) {
				holds[k] = true
				n += bitOf(!set.has(i))
				set.add(i)
			}
		}
	}
	return n, nil
}

// suspects lists the regions in which two replicas may differ.
func (l *look) suspects(a, b *holding) ([]int64, error) {
	set := map[int64]struct{}{}
	for _, h := range []*holding{a, b} {
		for _, i := range h.dirty {
			set[i] = struct{}{}
		}
	}
	mine, theirs := make([]digest.Sum, sumsChunk), make([]digest.Sum, sumsChunk)
	for first := int64(0); first < regionCount(l.size()); first += sumsChunk {
		if err := errors.Join(l.ctx.Err(), a.replica.ReadSums(mine, first), b.replica.ReadSums(theirs, first)); err != nil {
			return nil, err
		}
		for _, i := range differing(mine, theirs, first) {
			set[i] = struct{}{}
		}
	}
	return sortedKeys(set), nil
}

// size is the largest that any replica knows of: a volume never shrinks.
func (l *look) size() (n volume.Bytes) {
	for _, h := range l.holdings {
		if h.why == nil {
			n = max(n, h.record.Config.Size)
		}
	}
	return n
}

// damageCount is what reading a whole replica found.
type damageCount struct{ wrong, unreadable int }

// readAll reads every block that any replica holds, and compares it with its checksum.
func (l *look) readAll(progress func(engine.Progress)) error {
	l.wrong = map[*holding]damageCount{}
	meter := newMeter("read", progress)
	todo := map[*holding][]int64{}
	for _, h := range l.readable() {
		held, err := heldBy(h.replica)
		if err != nil {
			return err
		}
		todo[h] = held
		meter.total += volume.Bytes(len(held)) * (store.RegionSize + store.PagesPerRegion*store.PageSize)
	}
	for _, h := range l.readable() {
		if err := l.readOne(h, todo[h], meter); err != nil {
			return err
		}
	}
	return nil
}

func (l *look) readOne(h *holding, regions []int64, meter *meter) error {
	var want blockset
	want.fill()
	n := damageCount{}
	for _, region := range regions {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		m, err := readImage(l.hash, h.replica, region, &want)
		if err != nil {
			n.unreadable += store.RegionBlocks
			continue
		}
		for i := range int64(store.RegionBlocks) {
			n.unreadable += bitOf(!m.read.has(i))
			n.wrong += bitOf(m.read.has(i) && !m.copyOf(i).Match())
		}
		l.read += m.bytes
		meter.add(m.bytes)
	}
	l.wrong[h] = n
	return nil
}

// heldBy lists the regions in which the replica holds anything.
func heldBy(r *replica) (out []int64, err error) {
	for block := int64(0); ; {
		next, ok, err := r.NextData(block)
		if err != nil || !ok {
			return out, err
		}
		out = append(out, next/store.RegionBlocks)
		block = (next/store.RegionBlocks + 1) * store.RegionBlocks
	}
}
