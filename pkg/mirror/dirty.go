package mirror

import (
	"slices"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
)

// markAhead is how many regions beyond one that is written in sequence are marked with it, so that a stream waits for
// a sync once in 32 MiB. A region marked in vain costs a detach nothing.
const markAhead = 8

// ensureDirty makes the regions of the range dirty on every member and target, durably, before anything in them is
// written (DESIGN.md §3.3). The caller holds gate.
func (s *Session) ensureDirty(v *view, first, n int64) failures {
	from, to := first/store.RegionBlocks, (first+n-1)/store.RegionBlocks
	missing := s.regions.missing(from, to)
	if len(missing) == 0 {
		return nil
	}
	if from > 0 && s.regions.get(from-1) != nil {
		last := (s.Size() - 1) / store.RegionSize
		missing = append(missing, s.regions.missing(to+1, min(to+markAhead, last))...)
	}
	s.regions.wait(missing)
	s.regions.marking.Lock()
	defer s.regions.marking.Unlock()
	s.regions.wait(s.regions.missing(from, to)) // whoever took them along may have failed to mark them
	batch := s.regions.takeWaiting()
	if len(batch) == 0 {
		return nil
	}
	return s.markDirty(v, batch)
}

// markDirty marks the batch on the stores and then in memory. Where every member is full nothing is marked, and nothing has failed.
func (s *Session) markDirty(v *view, batch []int64) failures {
	failed := each(v.writers(), func(r *replica) error {
		if mutant.WriteBeforeMark {
			return nil
		}
		return r.MarkDirty(batch)
	}, nil)
	if failed.set()&v.config.Members == v.config.Members && failed.harmless() {
		return failed
	}
	for _, f := range failed {
		f.replica.Fail(f.err) // it must not take a write that its map does not announce
	}
	sums, err := s.baseSums(v, batch)
	if err != nil {
		for _, r := range v.members() {
			failed = append(failed, failure{r, err})
		}
		return failed
	}
	for i, region := range batch {
		if s.unlike(v, region, sums[i]) {
			s.regions.doubt([]int64{region})
			continue
		}
		s.regions.add(region, sums[i])
	}
	return failed
}

// unlike says that a region which countSums has not come to has another sum on another member. Once it is written in, nobody can see that.
func (s *Session) unlike(v *view, region int64, sum digest.Sum) bool {
	if region < s.regions.next() {
		return false
	}
	return slices.ContainsFunc(v.members(), func(r *replica) bool {
		other := make([]digest.Sum, 1)
		return r.ReadSums(other, region) == nil && other[0] != sum
	})
}

// baseSums reads the sums of clean regions from the first member that can be read.
func (s *Session) baseSums(v *view, batch []int64) (sums []digest.Sum, err error) {
	sums = make([]digest.Sum, len(batch))
	for _, r := range v.members() {
		if err = readSums(r, batch, sums); err == nil {
			return sums, nil
		}
	}
	return nil, err
}

func readSums(r *replica, regions []int64, sums []digest.Sum) error {
	for i, region := range regions {
		if err := r.ReadSums(sums[i:i+1], region); err != nil {
			return err
		}
	}
	return nil
}

// wait registers regions with whoever marks next.
func (g *regions) wait(missing []int64) {
	g.pending.Lock()
	defer g.pending.Unlock()
	for _, i := range missing {
		g.waiting[i] = struct{}{}
	}
}

// takeWaiting returns the registered regions that are still clean, in order. The caller holds marking.
func (g *regions) takeWaiting() []int64 {
	g.pending.Lock()
	all := sortedKeys(g.waiting)
	clear(g.waiting)
	g.pending.Unlock()
	out := all[:0]
	for _, i := range all {
		if g.get(i) == nil {
			out = append(out, i)
		}
	}
	return out
}
