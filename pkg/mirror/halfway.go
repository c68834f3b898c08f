package mirror

import (
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// A change that every store refused, being full, may have got half-way: blocks that had their room already are written. Each block is made, everywhere, what it was
// where a member still has that, and else what it was to be, and its checksum with it. A block that is neither was damaged before, and stays as it is; one that is
// unsettled stays that.

// takeBack does that for the blocks of a refused change, and returns the replicas that must be excluded. The caller holds the range, the pages and gate.
func (s *Session) takeBack(v *view, held []*page, first int64, now []digest.Hash) (failed failures) {
	for i, h := range now {
		block := first + int64(i)
		left := s.regions.unsettledIn(block/store.RegionBlocks, blockSpan(block%store.RegionBlocks, 1))
		if left.empty() {
			p := held[block/store.EntriesPerPage-first/store.EntriesPerPage]
			failed = append(failed, s.takeBlockBack(v, p, block, h)...)
		}
	}
	return failed
}

func (s *Session) takeBlockBack(v *view, p *page, block int64, now digest.Hash) failures {
	e, sound := p.entry(block)
	if sound && e.Hash == now {
		return nil
	}
	writers := v.writers()
	copies, data := s.copiesOf(writers, block)
	defer vfs.PutBuffer(data)
	right, is := -1, now
	for i, c := range copies {
		switch old := sound && c.Data == quorum.Hash(e.Hash); {
		case !c.Read || !v.config.Members.Has(c.Replica):
		case old && is == now:
			right, is = i, e.Hash
		case right < 0 && c.Data == quorum.Hash(now):
			right = i
		}
	}
	if right < 0 {
		return nil
	}
	if is == now {
		s.record([]*page{p}, block, []digest.Hash{now})
	}
	return s.conformTo(writers, copies, block, data[right*store.BlockSize:(right+1)*store.BlockSize], quorum.Hash(is), quorum.Hash(now))
}

// conformTo writes the right content to all that have another: all of them where the change stays, and else those that took it.
func (s *Session) conformTo(writers []*replica, copies []quorum.Copy, block int64, right []byte, is, now quorum.Hash) (failed failures) {
	for i, c := range copies {
		if c.Read && c.Data == is || is != now && (!c.Read || c.Data != now) {
			continue
		}
		if err := writers[i].WriteBlocks(right, block); err != nil {
			failed = append(failed, failure{writers[i], err})
		}
	}
	return failed
}
