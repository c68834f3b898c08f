package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"syscall"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// ReadAt implements device.Backend: every block is compared with its checksum; one that differs is mended from another member before
// it is returned. EIO where no copy can win.
func (s *Session) ReadAt(p []byte, off int64) error { return s.answer(s.read(p, off)) }

func (s *Session) read(p []byte, off int64) error {
	s.touch()
	first, n := blocksOf(off, int64(len(p)))
	if err := s.settleRange(first, n); err != nil {
		return err
	}
	held := s.ranges.lock(first, n, false)
	bad, err := s.readRange(p, off, first, n)
	s.ranges.unlock(held)
	if err != nil || len(bad) == 0 {
		return err
	}
	held = s.ranges.lock(first, n, true)
	defer s.ranges.unlock(held)
	return s.readMended(bad, func() ([]int64, error) { return s.readRange(p, off, first, n) })
}

// readLocked is ReadAt of whole blocks for a caller that holds the range exclusively.
func (s *Session) readLocked(p []byte, first int64) error {
	bad, err := s.readBlocks(p, first)
	if err != nil || len(bad) == 0 {
		return err
	}
	return s.readMended(bad, func() ([]int64, error) { return s.readBlocks(p, first) })
}

// readMended mends what is bad and reads again. What is bad then is another member's, which has failed since: each turn leaves one out, so that it is tried as
// often as there are voters. The caller holds the range exclusively.
func (s *Session) readMended(bad []int64, read func() ([]int64, error)) (err error) {
	for range s.Config().Voters {
		if err := s.mendBlocks(bad); err != nil {
			return err
		}
		if bad, err = read(); err != nil || len(bad) == 0 {
			return err
		}
	}
	return fmt.Errorf("volume %s: block %d does not match its checksum after its repair: %w", s.id, bad[0], syscall.EIO)
}

func (s *Session) readRange(p []byte, off, first, n int64) ([]int64, error) {
	if off%store.BlockSize == 0 && len(p)%store.BlockSize == 0 {
		return s.readBlocks(p, first)
	}
	whole := vfs.GetBuffer(int(n * store.BlockSize))
	defer vfs.PutBuffer(whole)
	bad, err := s.readBlocks(whole, first)
	copy(p, whole[off-first*store.BlockSize:])
	return bad, err
}

// readBlocks reads from one member and lists the blocks that do not match their checksums. A member that cannot be read is
// treated like one whose blocks are all wrong.
func (s *Session) readBlocks(p []byte, first int64) (bad []int64, err error) {
	if err := s.refusal(false); err != nil {
		return nil, err
	}
	n := int64(len(p)) / store.BlockSize
	members := s.view.Load().members()
	r := members[s.turn.Add(1)%uint64(len(members))]
	held, err := s.readWithPages(r, p, first, n)
	defer s.unpin(held.pages)
	if err != nil {
		return nil, fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	if held.failed != nil {
		s.log.Warn("read failed, trying another replica", "volume", s.id, "cause", held.failed)
		return blockRange(first, n), nil
	}
	return s.mismatches(p, first, held.pages), nil
}

// pagesAndData is the outcome of reading blocks: their pages, pinned, and why the data could not be read.
type pagesAndData struct {
	pages  []*page
	failed error
}

// readWithPages reads blocks from r, and meanwhile their entries where they are not in memory.
func (s *Session) readWithPages(r *replica, p []byte, first, n int64) (got pagesAndData, err error) {
	if got.pages = s.pages.cached(pagesOf(first, n)); got.pages != nil {
		got.failed = r.ReadBlocks(p, first)
		return got, nil
	}
	failed := together([]*replica{r}, func(t *store.Transfers, r *replica) { t.ReadBlocks(r.Replica, p, first) }, func() {
		got.pages, err = s.pin(first, n)
	})
	if len(failed) > 0 {
		got.failed = failed.err()
	}
	return got, err
}

func (s *Session) mismatches(p []byte, first int64, held []*page) (bad []int64) {
	for i := int64(0); i < int64(len(p))/store.BlockSize; i++ {
		block := first + i
		e, sound := held[block/store.EntriesPerPage-first/store.EntriesPerPage].entry(block)
		if !sound || s.hash.Block(block, p[i*store.BlockSize:(i+1)*store.BlockSize]) != e.Hash {
			bad = append(bad, block)
		}
	}
	return bad
}

func blockRange(first, n int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = first + int64(i)
	}
	return out
}

// loadPage reads a page of entries from the members: from the first one, and where an entry there is damaged, the newest
// sound one of the others. Where the page's region is dirty the newest of all members counts, and differ says that they are not the same
// everywhere: nobody has read back yet what was written there, and a disk that has lost it shows entries that are older and as sound.
func (s *Session) loadPage(index int64, raw []byte) (differ bool, err error) {
	if s.regions.get(index/store.PagesPerRegion) != nil {
		return s.mergePage(index, raw)
	}
	return false, s.readPage(index, raw)
}

// mergePage makes raw the newest sound entries that any member has.
func (s *Session) mergePage(index int64, raw []byte) (differ bool, err error) {
	members := s.view.Load().members()
	all := vfs.GetBuffer(len(members) * store.PageSize)
	defer vfs.PutBuffer(all)
	at := func(i int) []byte { return all[i*store.PageSize : (i+1)*store.PageSize] }
	next := 0
	failed := together(members, func(t *store.Transfers, r *replica) {
		t.ReadEntries(r.Replica, at(next), index)
		next++
	}, nil)
	if len(failed) == len(members) {
		return false, failed.err()
	}
	loaded := false
	for i, r := range members {
		switch {
		case failed.set().Has(r.index):
		case !loaded:
			loaded, differ = true, !allSound(at(i), index)
			copy(raw, at(i))
		default:
			differ = differ || !bytes.Equal(raw, at(i))
			mergeEntries(raw, at(i), index)
		}
	}
	return differ, nil
}

func (s *Session) readPage(index int64, raw []byte) error {
	var errs []error
	loaded := false
	other := vfs.GetBuffer(store.PageSize)
	defer vfs.PutBuffer(other)
	for _, r := range s.view.Load().members() {
		into := raw
		if loaded {
			into = other
		}
		if err := r.ReadEntries(into, index); err != nil {
			errs = append(errs, err)
			continue
		}
		if loaded {
			mergeEntries(raw, other, index)
		}
		loaded = true
		if allSound(raw, index) {
			return nil
		}
	}
	if !loaded {
		return errors.Join(errs...)
	}
	return nil // an entry that is damaged everywhere stays so: its block is judged without it
}

func allSound(raw []byte, index int64) bool {
	for i := range int64(store.EntriesPerPage) {
		at := i * digest.EntrySize
		if _, ok := digest.Decode(raw[at:at+digest.EntrySize], index*store.EntriesPerPage+i); !ok {
			return false
		}
	}
	return true
}

// mergeEntries puts the sound entries of other in the place of damaged or older ones.
func mergeEntries(raw, other []byte, index int64) {
	for i := range int64(store.EntriesPerPage) {
		block, at := index*store.EntriesPerPage+i, i*digest.EntrySize
		have, ok := digest.Decode(raw[at:at+digest.EntrySize], block)
		offered, sound := digest.Decode(other[at:at+digest.EntrySize], block)
		if sound && (!ok || newer(offered.Version, have.Version)) {
			copy(raw[at:at+digest.EntrySize], other[at:at+digest.EntrySize])
		}
	}
}
