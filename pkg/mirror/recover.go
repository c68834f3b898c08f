package mirror

import (
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// sumsChunk is how many regions' sums are read at a time (1 MiB).
const sumsChunk = 32768

// recover finds every region in which the members may differ, marks it on all of them, and makes them identical there, durably:
// before anything is served, or, where a guest waits, when a block is first asked for and in the background. A member that fails
// is left out. What was settled stays dirty, to be read back before the next seal.
func (s *Session) recover(newest quorum.Config, c OpenConfig) error {
	dirty, differ, err := s.findUnsettled()
	if err != nil {
		return err
	}
	now := dirty
	if c.Warm != nil {
		now = differ // that no writer's death explains: rare, and not left to chance
	}
	if err := s.settleNow(now, c.Progress); err != nil {
		return err
	}
	if newest.Flags.Has(quorum.Sealed) && s.regions.total().Bytes() != newest.Digest {
		return fmt.Errorf("%w: volume %s: no replica has the digest that was sealed", engine.ErrQuarantined, s.id)
	}
	return nil
}

// findUnsettled lists the regions that are dirty on any member or whose sums differ; the latter are in differ, too. All are marked on
// every member: where this session is cut short, whichever members come back know what is unfinished.
func (s *Session) findUnsettled() (all, differ []int64, err error) {
	for {
		v := s.view.Load()
		all = unionDirty(v.members())
		differ, clean, failed := s.compareSums(v, all)
		all = append(all, differ...)
		slices.Sort(all)
		if len(failed) == 0 && len(all) > 0 {
			failed = each(v.members(), func(r *replica) error { return r.MarkDirty(all) }, nil)
		}
		if len(failed) == 0 {
			s.regions.begin(clean, all)
			return all, differ, nil
		}
		if err := s.exclude(failed); err != nil {
			return nil, nil, err
		}
	}
}

func unionDirty(replicas []*replica) []int64 {
	set := map[int64]struct{}{}
	for _, r := range replicas {
		for _, i := range r.Dirty() {
			set[i] = struct{}{}
		}
	}
	return sortedKeys(set)
}

// compareSums lists the regions whose sums are not the same on all members, and adds up those that are. Dirty ones, which are
// given in order, do not count: their sums mean nothing.
func (s *Session) compareSums(v *view, dirty []int64) (differ []int64, clean digest.Sum, failed failures) {
	members := v.members()
	tables := make(map[*replica][]digest.Sum, len(members))
	count := regionCount(v.config.Size)
	for _, r := range members {
		tables[r] = make([]digest.Sum, min(sumsChunk, count))
	}
	for first := int64(0); first < count; first += sumsChunk {
		n := min(sumsChunk, count-first)
		if failed = each(members, func(r *replica) error { return r.ReadSums(tables[r][:n], first) }, nil); len(failed) > 0 {
			return nil, clean, failed
		}
		for i := range n {
			if len(dirty) > 0 && dirty[0] == first+i {
				dirty = dirty[1:]
				continue
			}
			sum := tables[members[0]][i]
			if slices.ContainsFunc(members[1:], func(r *replica) bool { return tables[r][i] != sum }) {
				differ = append(differ, first+i)
				continue
			}
			clean = clean.Plus(sum)
		}
	}
	if len(differ) > 0 {
		s.log.Warn("regions differ between replicas", "volume", s.id, "regions", len(differ))
	}
	return differ, clean, nil
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
