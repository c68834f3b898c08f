package mirror

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// verifyAtOnce is how many regions are read back at the same time, so that the disks are kept busy while checksums are
// computed. Each takes 1 MiB of memory for each member.
const verifyAtOnce = 4

// verifyDirty reads back every dirty region. Blocks that nobody can decide are in the ledger when it returns.
func (s *Session) verifyDirty(ctx context.Context, progress func(engine.Progress)) error {
	meter := newMeter("verify", progress)
	dirty := s.regions.list()
	for _, r := range dirty {
		meter.total += s.unverified(r)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(verifyAtOnce)
	for _, r := range dirty {
		if ctx.Err() != nil {
			break
		}
		work.Go(func() error {
			if err := decided(s.verifyRegion(r, meter)); err != nil {
				return err
			}
			return ctx.Err()
		})
	}
	return work.Wait()
}

// unverified is how much a verification of the region reads from all members.
func (s *Session) unverified(index int64) volume.Bytes {
	r := s.regions.get(index)
	r.mu.Lock()
	defer r.mu.Unlock()
	var n volume.Bytes
	for first, count := nextRun(&r.written, 0); count > 0; first, count = nextRun(&r.written, first+count) {
		n += volume.Bytes(count * store.BlockSize)
	}
	return n * volume.Bytes(len(s.view.Load().members()))
}

// verifyRegion reads back what was written in a dirty region and mends what differs from what the engine expects. Nobody
// writes in the region meanwhile. What was mended is durable when it returns. errNoCopy where a block stays unresolved.
func (s *Session) verifyRegion(index int64, meter *meter) error {
	reg := s.regions.get(index)
	if reg == nil || reg.written.empty() {
		return nil
	}
	expected, err := s.expectedRegion(index)
	if err != nil {
		return err
	}
	left := reg.unsettledIn(allBlocks)
	want := reg.written.without(&left)
	bad, rewritten, err := s.readBack(index, expected, &want, meter)
	if err != nil {
		return err
	}
	if !left.empty() {
		return worse(errNoCopy, s.mendDurably(bad))
	}
	if len(bad) > 0 || rewritten {
		if err := s.mendDurably(bad); err != nil {
			return err
		}
		if expected, err = s.expectedRegion(index); err != nil {
			return err
		}
	}
	reg.mu.Lock()
	reg.sum, reg.written = expected.sum(s.hash), blockset{}
	reg.mu.Unlock()
	return nil
}

// mendDurably mends every block it can. What was mended is durable when it returns.
func (s *Session) mendDurably(blocks []int64) error {
	err := s.mendEach(blocks)
	if mutant.RepairNotFlushed {
		return err
	}
	return worse(err, s.flushShared())
}

// mendEach mends every block it can.
func (s *Session) mendEach(blocks []int64) (err error) {
	for _, b := range blocks {
		err = worse(err, s.mend(b))
	}
	return err
}

// expectation is what the engine expects of a region's blocks.
type expectation struct {
	entries [store.RegionBlocks]digest.Entry
	sound   blockset
}

func (x *expectation) sum(h *digest.Hasher) (s digest.Sum) {
	for i := range x.entries {
		h.Add(&s, x.entries[i].Hash)
	}
	return s
}

func (s *Session) expectedRegion(index int64) (*expectation, error) {
	held, err := s.pin(index*store.RegionBlocks, store.RegionBlocks)
	defer s.unpin(held)
	if err != nil {
		return nil, fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	x := &expectation{}
	for i := range int64(store.RegionBlocks) {
		e, ok := held[i/store.EntriesPerPage].entry(index*store.RegionBlocks + i)
		if x.entries[i] = e; ok {
			x.sound.add(i)
		}
	}
	return x, nil
}

// readBack compares what every member holds of the wanted blocks with what is expected, and every member's entries of
// the whole region. Wrong entries are rewritten, which a flush makes durable; wrong blocks are returned.
func (s *Session) readBack(index int64, expected *expectation, want *blockset, meter *meter) (bad []int64, rewritten bool, err error) {
	if mutant.NoReadBack {
		return nil, false, nil
	}
	images, failed := readImages(s.hash, s.view.Load().members(), index, want)
	wrong := map[int64]struct{}{}
	for _, m := range images {
		meter.add(m.bytes - store.PagesPerRegion*store.PageSize)
		s.ledger.read(m.replica.id(), m.bytes)
		for _, b := range m.wrong(index, expected, want) {
			wrong[b] = struct{}{}
		}
		if m.entries == expected.entries && m.sound == expected.sound {
			continue
		}
		s.log.Warn("checksums differ from what was written, rewriting them", "volume", s.id, "region", index, "replica", m.replica.id())
		if err := s.rewriteEntries(m.replica, index, expected); err != nil {
			failed = append(failed, failure{m.replica, err})
		}
		rewritten = true
	}
	if len(failed) > 0 {
		if err := s.exclude(failed); err != nil {
			return nil, false, err
		}
	}
	return sortedKeys(wrong), rewritten, nil
}

// rewriteEntries gives a replica the entries of a region, and reads them back: the disk has lost them once.
func (s *Session) rewriteEntries(r *replica, index int64, expected *expectation) error {
	if err := writeRegionEntries(r, index, &expected.entries); err != nil {
		return err
	}
	return s.readsAs(r, index, expected, &blockset{})
}

// readsAs is an error where the wanted blocks of a replica, or its entries of the region, are not what is expected.
func (s *Session) readsAs(r *replica, index int64, expected *expectation, want *blockset) error {
	m, err := readImage(s.hash, r, index, want)
	switch {
	case err != nil:
		return err
	case m.entries != expected.entries, len(m.wrong(index, expected, want)) > 0:
		return fmt.Errorf("store %s: region %d reads differently right after it was written", r.dir.Path(), index)
	}
	return nil
}

// wrong lists the wanted blocks whose content is not what is expected.
func (m *image) wrong(index int64, expected *expectation, want *blockset) (out []int64) {
	for i := range int64(store.RegionBlocks) {
		if want.has(i) && (!m.read.has(i) || !expected.sound.has(i) || m.data[i] != expected.entries[i].Hash) {
			out = append(out, index*store.RegionBlocks+i)
		}
	}
	return out
}

// makeClean makes verified regions clean: their sums durable first, then the maps. What was marked in vain keeps the sums that the tables have: in memory
// is that of one of them, which may have rotted. Where no store has room for sums (ENOSPC) nothing is clean, and nothing has failed.
func (s *Session) makeClean(regions []int64) error {
	sums := make(map[int64]digest.Sum, len(regions))
	done := make([]int64, 0, len(regions))
	for _, i := range regions {
		r := s.regions.get(i)
		if r == nil {
			continue // somebody has made it clean since the caller listed it
		}
		r.mu.Lock()
		if r.written.empty() {
			done = append(done, i)
			if !r.found {
				sums[i] = r.sum
			}
		}
		r.mu.Unlock()
	}
	if len(done) == 0 {
		return nil
	}
	members := s.view.Load().members()
	failed := each(members, func(r *replica) error { return r.WriteSums(sums) }, nil)
	if len(failed) > 0 && len(failed) == len(members) && failed.harmless() {
		return s.allFailed(failed) // all are full: the regions stay dirty, and of those sums mean nothing
	}
	failed = append(failed, each(failed.spared(members), func(r *replica) error { return r.ClearDirty(done) }, nil)...)
	if len(failed) > 0 {
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
	for _, i := range done {
		s.regions.cleaned(i)
	}
	return nil
}
