package mirror

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// WriteAt implements device.Backend: when it returns without error every member has the data, not yet on stable media.
func (s *Session) WriteAt(p []byte, off int64) error { return s.answer(s.write(p, off)) }

func (s *Session) write(p []byte, off int64) error {
	s.touch()
	first, n := blocksOf(off, int64(len(p)))
	held := s.ranges.lock(first, n, true)
	defer s.ranges.unlock(held)
	if off%store.BlockSize == 0 && len(p)%store.BlockSize == 0 {
		return s.change(first, n, s.writing(p, first))
	}
	return s.writePartial(p, off, first, n)
}

// writePartial writes less than whole blocks: the rest of them is read first. The caller holds the range.
func (s *Session) writePartial(p []byte, off, first, n int64) error {
	whole := vfs.GetBuffer(int(n * store.BlockSize))
	defer vfs.PutBuffer(whole)
	if err := s.settleHeld(first, n); err != nil {
		return err
	}
	if err := s.readLocked(whole, first); err != nil {
		return err
	}
	copy(whole[off-first*store.BlockSize:], p)
	return s.change(first, n, s.writing(whole, first))
}

// Discard implements device.Backend. The space goes back to the stores.
func (s *Session) Discard(off, n int64) error { return s.Zero(off, n) }

// Zero implements device.Backend: whole blocks are given back to the stores, and read as zeros.
func (s *Session) Zero(off, n int64) error { return s.answer(s.zero(off, n)) }

func (s *Session) zero(off, n int64) error {
	s.touch()
	for n > 0 {
		step := min(n, store.RegionSize-off%store.RegionSize)
		if err := s.zeroInRegion(off, step); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

func (s *Session) zeroInRegion(off, n int64) error {
	first, count := blocksOf(off, n)
	held := s.ranges.lock(first, count, true)
	defer s.ranges.unlock(held)
	if off%store.BlockSize != 0 || n%store.BlockSize != 0 {
		return s.writePartial(make([]byte, n), off, first, count)
	}
	if untouched, err := s.untouched(first, count); err != nil || untouched {
		return err
	}
	return s.change(first, count, s.zeroing(first, count))
}

// untouched says that no member holds anything in the region of the blocks, so that zeroing them changes nothing.
// A freshly made filesystem discards its whole device: that must not write entries for every block of it.
func (s *Session) untouched(first, _ int64) (bool, error) {
	region := first / store.RegionBlocks
	if s.regions.get(region) != nil {
		return false, nil
	}
	for _, r := range s.view.Load().members() {
		next, ok, err := r.NextData(region * store.RegionBlocks)
		if err != nil || ok && next/store.RegionBlocks == region {
			return false, nil //nolint:nilerr // not knowing is as good as "touched": the write path reports the failure
		}
	}
	return true, nil
}

// mutation is a change of a range of blocks: how to make it on replicas, and what each block's checksum is afterwards.
type mutation struct {
	apply func(replicas []*replica, meanwhile func()) failures
	hash  func(i int64) digest.Hash // of the i-th block of the range
}

func (s *Session) writing(p []byte, first int64) mutation {
	return mutation{
		apply: func(replicas []*replica, meanwhile func()) failures {
			return together(replicas, func(t *store.Transfers, r *replica) { t.WriteBlocks(r.Replica, p, first) }, meanwhile)
		},
		hash: func(i int64) digest.Hash {
			return s.hash.Block(first+i, p[i*store.BlockSize:(i+1)*store.BlockSize])
		},
	}
}

func (s *Session) zeroing(first, n int64) mutation {
	return mutation{
		apply: func(replicas []*replica, meanwhile func()) failures {
			return each(replicas, func(r *replica) error { return r.PunchBlocks(first, n) }, meanwhile)
		},
		hash: func(int64) digest.Hash { return digest.Hash{} },
	}
}

// change applies m to every member and target and acknowledges by returning nil. The blocks are settled then, whatever they were.
// The caller holds the range exclusively.
func (s *Session) change(first, n int64, m mutation) error {
	failed, err := s.changeOnce(first, n, m)
	if len(failed) > 0 {
		err = errors.Join(err, s.exclude(failed))
	}
	if err == nil {
		err = s.bound()
	}
	return err
}

// changeOnce returns the replicas that must be excluded before the change may be acknowledged, or refused.
func (s *Session) changeOnce(first, n int64, m mutation) (failures, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.refusal(true); err != nil {
		return nil, err
	}
	v := s.view.Load()
	failed := s.ensureDirty(v, first, n)
	if len(failed) > 0 && failed.set()&v.config.Members == v.config.Members {
		return nil, s.allFailed(failed)
	}
	held, err := s.pin(first, n) // before anything is written: where they cannot be read nothing could be recorded of it
	defer s.unpin(held)
	if err != nil {
		return nil, fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	entries := make([]digest.Hash, n)
	failed = append(failed, m.apply(v.writers(), func() {
		for i := range entries {
			entries[i] = m.hash(int64(i))
		}
	})...)
	switch quorum.Acknowledgement(v.config.Members, failed.set(), failed.harmless()) {
	case quorum.Refuse:
		return s.takeBack(v, held, first, entries), s.allFailed(failed)
	case quorum.Lost:
		return nil, s.allFailed(failed)
	}
	s.record(held, first, entries)
	return failed, nil
}

// allFailed is what follows where no member did it. A full disk leaves everything as it was; any other failure of the last
// member ends the session. One that does not serve yet is not opened, and may be again.
func (s *Session) allFailed(failed failures) error {
	switch {
	case failed.harmless():
		return fmt.Errorf("volume %s: every store is full: %w", s.id, syscall.ENOSPC)
	case s.opening.Load():
		return s.noneLeft(failed)
	}
	s.breakWith(fmt.Errorf("%w: %w", errLost, failed.err()))
	return errors.Join(syscall.EIO, failed.err())
}

// record makes the checksums of a change part of what the engine expects. The caller holds the range and the pages.
func (s *Session) record(held []*page, first int64, hashes []digest.Hash) {
	v := s.nextVersion()
	now := s.touched.Load()
	var reg *region
	for i, h := range hashes {
		block := first + int64(i)
		if reg == nil || block%store.RegionBlocks == 0 {
			reg = s.regions.get(block / store.RegionBlocks)
			reg.touched.Store(now)
		}
		p := held[block/store.EntriesPerPage-first/store.EntriesPerPage]
		old, _ := s.pages.set(p, block, digest.Entry{Hash: h, Version: v})
		reg.update(s.hash, block, old.Hash, h)
	}
	s.ledger.rewritten(first, int64(len(hashes)))
}

// pin returns the pages of the range, in order.
func (s *Session) pin(first, n int64) ([]*page, error) {
	from, to := pagesOf(first, n)
	held := make([]*page, 0, to-from+1)
	for i := from; i <= to; i++ {
		p, err := s.pages.get(i)
		if err != nil {
			return held, err
		}
		held = append(held, p)
	}
	return held, nil
}

// pagesOf returns the first and the last page that hold entries of the blocks.
func pagesOf(first, n int64) (from, to int64) {
	return first / store.EntriesPerPage, (first + n - 1) / store.EntriesPerPage
}

func (s *Session) unpin(held []*page) {
	for _, p := range held {
		s.pages.put(p)
	}
}

// blocksOf returns the blocks that a range of bytes touches.
func blocksOf(off, n int64) (first, count int64) {
	first = off / store.BlockSize
	return first, (off+n+store.BlockSize-1)/store.BlockSize - first
}
