package mirror

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// sumsChunk is how many regions' sums are read at a time (256 KiB).
const sumsChunk = 8192

// recover finds every region in which the members may differ and makes them identical there, durably, before anything is served. Where a
// guest waits that is done for a block when it is first asked for, and for the rest in the background. A member that fails is
// left out. What was settled stays dirty, to be read back before the next seal.
func (s *Session) recover(ctx context.Context, newest quorum.Config, c OpenConfig) error {
	if err := s.findUnsettled(); err != nil || c.Warm != nil {
		return err
	}
	otherwise := func() bool { return newest.Flags.Has(quorum.Sealed) && s.regions.total().Bytes() != newest.Digest }
	if err := s.countAndSettle(ctx, c.Progress); err != nil {
		return err
	}
	if otherwise() && s.Config().Members.Len() == 1 { // it may be the sums
		if err := s.recountSums(ctx); err != nil {
			return err
		}
		if err := s.countAndSettle(ctx, c.Progress); err != nil {
			return err
		}
	}
	if otherwise() {
		return fmt.Errorf("%w: volume %s: no replica has the digest that was sealed", engine.ErrQuarantined, s.id)
	}
	return nil
}

func (s *Session) countAndSettle(ctx context.Context, progress func(engine.Progress)) error {
	if err := s.countSums(ctx); err != nil {
		return err
	}
	return s.settleNow(s.regions.list(), progress)
}

// findUnsettled makes the regions unsettled that are dirty on any member, and marks them on every one: where this session is cut
// short, whichever members come back know what is unfinished.
func (s *Session) findUnsettled() error {
	for {
		members := s.view.Load().members()
		dirty := unionDirty(members)
		failed := markAll(members, dirty)
		if len(failed) == 0 {
			s.regions.begin(dirty)
			return nil
		}
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
}

// unionDirty lists, in order, the regions that are dirty on any of the replicas.
func unionDirty(replicas []*replica) (all []int64) {
	for _, r := range replicas {
		switch mine := r.Dirty(); {
		case len(all) == 0:
			all = mine
		case !slices.Equal(all, mine): // which is rare
			all = append(all, mine...)
			slices.Sort(all)
			all = slices.Compact(all)
		}
	}
	return all
}

func markAll(replicas []*replica, regions []int64) failures {
	if len(regions) == 0 {
		return nil
	}
	return each(replicas, func(r *replica) error { return r.MarkDirty(regions) }, nil)
}

// countSums adds up the sums of all clean regions. Those that are not the same on all members become unsettled: no writer's death
// explains them. The caller holds evidence for writing, so that no region becomes clean meanwhile.
func (s *Session) countSums(ctx context.Context) error {
	for s.regions.next() != allCounted {
		if err := s.countChunk(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) countChunk() error {
	for {
		sums, failed := s.readSums(s.regions.next())
		if len(failed) == 0 {
			s.regions.count(sums, len(sums) == sumsChunk)
			return nil
		}
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
}

// readSums reads the sums of the regions from first on. Where those of a clean region differ between members it is dirty and unsettled
// when this returns.
func (s *Session) readSums(first int64) ([]digest.Sum, failures) {
	v := s.view.Load()
	members := v.members()
	tables := make([][]digest.Sum, len(v.replicas))
	failed := each(members, func(r *replica) error {
		tables[r.index] = make([]digest.Sum, min(sumsChunk, max(0, regionCount(v.config.Size)-first)))
		return r.ReadSums(tables[r.index], first)
	}, nil)
	if len(failed) > 0 {
		return nil, failed
	}
	mine := tables[members[0].index]
	unlike := map[int64]struct{}{}
	for _, r := range members[1:] {
		for _, i := range differing(mine, tables[r.index], first) {
			unlike[i] = struct{}{}
		}
	}
	return mine, s.doubt(v, sortedKeys(unlike))
}

// doubt makes regions unsettled whose sums are not the same everywhere. Of those that are dirty already they mean nothing.
func (s *Session) doubt(v *view, list []int64) failures {
	s.regions.marking.Lock() // nobody else makes them dirty meanwhile
	defer s.regions.marking.Unlock()
	list = slices.DeleteFunc(list, func(i int64) bool { return s.regions.get(i) != nil })
	if len(list) == 0 {
		return nil
	}
	s.log.Warn("regions differ between replicas", "volume", s.id, "regions", len(list))
	failed := markAll(v.writers(), list)
	if len(failed) == 0 {
		s.regions.doubt(list)
	}
	return failed
}

// settleNow settles the regions and makes that durable. Blocks that nobody can decide are in the ledger when it returns.
func (s *Session) settleNow(regions []int64, progress func(engine.Progress)) error {
	if len(regions) == 0 {
		return nil
	}
	meter := newMeter("recover", progress)
	meter.total = volume.Bytes(len(regions)) * store.RegionSize
	var work errgroup.Group
	work.SetLimit(verifyAtOnce)
	for _, region := range regions {
		work.Go(func() error {
			defer meter.add(store.RegionSize)
			return decided(s.settleRange(region*store.RegionBlocks, store.RegionBlocks))
		})
	}
	if err := work.Wait(); err != nil {
		return err
	}
	return s.flushShared()
}

// leaveOut drops members before the first configuration is in force: nothing was acknowledged under it, so that nobody has to agree. The
// caller holds gate for writing.
func (s *Session) leaveOut(failed failures) error {
	next := s.view.Load().config
	next.Members = next.Members.Without(failed.set())
	if next.Members == 0 {
		return s.noneLeft(failed)
	}
	s.log.Warn("replica left out of the recovery", "volume", s.id, "cause", failed.err())
	s.setView(next, 0)
	return nil
}

func (s *Session) noneLeft(failed failures) error {
	return fmt.Errorf("%w: volume %s: every member failed during recovery: %w", engine.ErrUnavailable, s.id, failed.err())
}

func differing(a, b []digest.Sum, first int64) (out []int64) {
	for i := range a {
		if a[i] != b[i] {
			out = append(out, first+int64(i))
		}
	}
	return out
}

func regionCount(size volume.Bytes) int64 {
	return int64(size.RoundUp(store.RegionSize) / store.RegionSize)
}
