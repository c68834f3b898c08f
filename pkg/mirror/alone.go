package mirror

import (
	"context"

	"github.com/belay-storage/belay/pkg/mirror/digest"
)

// recountSums forgets the sums of all clean regions, and has those that are not what they were decided by their blocks: they are unsettled when it returns. Of several
// members the tables tell which, as they are counted. One alone has its entries for that. The caller holds evidence, and counts and settles next.
func (s *Session) recountSums(ctx context.Context) error {
	s.regions.recount()
	for s.Config().Members.Len() == 1 {
		wrong, err := s.wrongSums(ctx)
		if err != nil {
			return err
		}
		failed := s.doubt(s.view.Load(), wrong)
		if len(failed) == 0 {
			return nil
		}
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
	return nil
}

// wrongSums lists the clean regions whose sums on the first member are not those of their entries.
func (s *Session) wrongSums(ctx context.Context) (wrong []int64, err error) {
	held, err := s.heldRegions()
	if err != nil {
		return nil, err
	}
	holds := make(map[int64]bool, len(held))
	for _, i := range held {
		holds[i] = true
	}
	r, all := s.view.Load().members()[0], regionCount(s.Config().Size)
	for first := int64(0); first < all; first += sumsChunk {
		sums := make([]digest.Sum, min(sumsChunk, all-first))
		if err := r.ReadSums(sums, first); err != nil {
			return nil, err
		}
		for k, sum := range sums {
			i := first + int64(k)
			if s.regions.get(i) != nil || !holds[i] && sum.IsZero() {
				continue
			}
			expected, err := s.expectedRegion(i)
			if err != nil {
				return nil, err
			}
			if expected.sum(s.hash) != sum {
				wrong = append(wrong, i)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
		}
	}
	return wrong, nil
}
