package mirror

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// verifyBatch is how many quiet regions one step verifies: their sums and maps then share two syncs.
const verifyBatch = 16

// verifyQuiet verifies dirty regions in which nobody has written for a while and makes them clean, so that a detach
// finds little to do and a crash little to recover.
func (s *Session) verifyQuiet(ctx context.Context, quiet time.Duration) {
	for batch := range slices.Chunk(s.quietRegions(quiet), verifyBatch) {
		if ctx.Err() != nil {
			return
		}
		if err := s.verifyBatch(batch); err != nil {
			s.log.Warn("background verification", "volume", s.id, "cause", err)
			return
		}
	}
}

func (s *Session) quietRegions(quiet time.Duration) (out []int64) {
	before := time.Now().Add(-quiet).UnixNano()
	for _, i := range s.regions.list() {
		if r := s.regions.get(i); r != nil && r.touched.Load() < before {
			out = append(out, i)
		}
	}
	return out
}

// verifyBatch keeps writers out of the regions while it reads them back.
func (s *Session) verifyBatch(batch []int64) error {
	s.evidence.Lock()
	defer s.evidence.Unlock()
	for _, i := range batch {
		held := s.ranges.lock(i*store.RegionBlocks, store.RegionBlocks, true)
		defer s.ranges.unlock(held)
	}
	for _, i := range batch {
		if err := decided(s.settleHeld(i*store.RegionBlocks, store.RegionBlocks)); err != nil {
			return err
		}
	}
	if mutant.CleanBeforeReadBack {
		for _, i := range batch {
			if r := s.regions.get(i); r != nil {
				r.written = blockset{}
			}
		}
		return s.makeClean(batch)
	}
	if err := s.flushShared(); err != nil {
		return err
	}
	for _, i := range batch {
		if err := decided(s.verifyRegion(i, nil)); err != nil {
			return err
		}
	}
	return s.makeClean(batch)
}

// scrubForever reads the whole volume again and again, each pass spread over the interval.
func (s *Session) scrubForever(ctx context.Context, interval time.Duration) {
	for ctx.Err() == nil {
		started := time.Now()
		if err := s.scrub(ctx, interval); err != nil && ctx.Err() == nil {
			s.log.Warn("verification of the whole volume", "volume", s.id, "cause", err)
		}
		sleep(ctx, interval-time.Since(started))
	}
}

// scrub reads every region that holds anything from every member, compares it with its checksums and mends it.
func (s *Session) scrub(ctx context.Context, spread time.Duration) error {
	todo, err := s.heldRegions()
	if err != nil {
		return err
	}
	pause := spread / time.Duration(max(2*len(todo), 1))
	for _, region := range todo {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := s.scrubRegion(region)
		if err != nil {
			return err
		}
		s.events.scrubbed(s, n)
		sleep(ctx, pause)
	}
	return nil
}

// heldRegions lists the regions in which any member holds anything.
func (s *Session) heldRegions() ([]int64, error) {
	set := map[int64]struct{}{}
	for _, r := range s.view.Load().members() {
		for block := int64(0); ; {
			next, ok, err := r.NextData(block)
			if err != nil {
				return nil, err
			}
			if !ok {
				break
			}
			set[next/store.RegionBlocks] = struct{}{}
			block = (next/store.RegionBlocks + 1) * store.RegionBlocks
		}
	}
	return sortedKeys(set), nil
}

// scrubRegion verifies one region on all members. Writers wait for the part that is being read.
func (s *Session) scrubRegion(index int64) (volume.Bytes, error) {
	s.evidence.RLock()
	defer s.evidence.RUnlock()
	var read volume.Bytes
	for first := int64(0); first < store.RegionBlocks; first += chunkBlocks {
		n, err := s.scrubChunk(index, first)
		read += n
		if err != nil {
			return read, err
		}
	}
	return read, nil
}

func (s *Session) scrubChunk(index, first int64) (volume.Bytes, error) {
	held := s.ranges.lock(index*store.RegionBlocks+first, chunkBlocks, true)
	defer s.ranges.unlock(held)
	if err := decided(s.settleHeld(index*store.RegionBlocks+first, chunkBlocks)); err != nil {
		return 0, err
	}
	expected, err := s.expectedRegion(index)
	if err != nil {
		return 0, err
	}
	want := blockSpan(first, chunkBlocks)
	left := s.regions.unsettledIn(index, want)
	want = want.without(&left)
	images, failed := readImages(s.hash, s.view.Load().members(), index, &want)
	if len(failed) > 0 {
		return 0, s.exclude(failed.marked(index))
	}
	var read volume.Bytes
	wrong := map[int64]struct{}{}
	for _, m := range images {
		read += m.bytes
		for _, b := range m.wrong(index, expected, &want) {
			wrong[b] = struct{}{}
		}
	}
	if len(wrong) == 0 {
		return read, nil
	}
	if err := decided(s.mendEach(sortedKeys(wrong))); err != nil {
		return read, err
	}
	return read, s.flushShared()
}

// marked are the failures, with the region marked on the replicas: a rebuild looks there.
func (f failures) marked(region int64) (out failures) {
	for _, x := range f {
		out = append(out, failure{x.replica, errors.Join(x.err, x.replica.MarkDirty([]int64{region}))})
	}
	return out
}

// ScrubNow verifies the whole volume once, without pause, and says what it found.
func (s *Session) ScrubNow(ctx context.Context, progress func(engine.Progress)) (engine.Verification, error) {
	repairsBefore, _, _ := s.ledger.entries()
	todo, err := s.heldRegions()
	if err != nil {
		return engine.Verification{}, err
	}
	meter := newMeter("verify", progress)
	meter.total = volume.Bytes(len(todo)*len(s.view.Load().members())) * (store.RegionSize + store.PagesPerRegion*store.PageSize)
	out := engine.Verification{Volume: s.id, Size: volume.Bytes(s.Size())}
	var read atomic.Int64
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(verifyAtOnce)
	for _, region := range todo {
		if ctx.Err() != nil {
			break
		}
		work.Go(func() error {
			n, err := s.scrubRegion(region)
			read.Add(int64(n))
			meter.add(n)
			return errors.Join(err, ctx.Err())
		})
	}
	err = work.Wait()
	out.Read = volume.Bytes(read.Load())
	if err != nil {
		return out, err
	}
	return s.concludeScrub(out, len(repairsBefore))
}

// concludeScrub says what every replica holds. Where the volume is being written there is no one moment at which digests would
// compare, and none are given.
func (s *Session) concludeScrub(out engine.Verification, before int) (engine.Verification, error) {
	s.evidence.Lock()
	defer s.evidence.Unlock()
	repairs, unresolved, _ := s.ledger.entries()
	out.Repairs, out.Unresolved = repairs[before:], unresolved
	if err := s.countSums(context.Background()); err != nil {
		return out, err
	}
	b, err := s.testify()
	out.Expected, out.Evidence = b.Expected, b.Evidence
	if len(s.regions.list()) > 0 {
		out.Expected = engine.Digest{}
		for i := range out.Evidence {
			out.Evidence[i].Digest, out.Evidence[i].DigestBy = engine.Digest{}, engine.AttestNone
		}
	}
	return out, err
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
