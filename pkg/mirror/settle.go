package mirror

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// A writer that dies leaves blocks unsettled: the members may differ there, and hold what no checksum knows. Settling one is to
// decide what it is, to make all members that, and to record its checksum. The one path for it is here; recovery takes it for
// all blocks before it serves, or, where a guest waits, whoever needs a block takes it for that block.

// settleRange settles the blocks. They stay settled. EIO where nobody can decide one of them: that one stays as it is.
func (s *Session) settleRange(first, n int64) error {
	if s.regions.settled() || !s.unsettled(first, n) {
		return nil
	}
	held := s.ranges.lock(first, n, true)
	defer s.ranges.unlock(held)
	return s.settleHeld(first, n)
}

func (s *Session) unsettled(first, n int64) (found bool) {
	_ = eachPart(first, n, func(index int64, want blockset) error {
		left := s.regions.unsettledIn(index, want)
		found = found || !left.empty()
		return nil
	})
	return found
}

// settleHeld is settleRange for a caller that holds the range exclusively.
func (s *Session) settleHeld(first, n int64) error {
	if s.regions.settled() {
		return nil
	}
	return worse(eachPart(first, n, s.settleBlocks), s.bound())
}

// eachPart calls do for each part of the range that lies in one region, with the blocks that are wanted of that. Parts are short: whoever
// must wait for what is done with one does not wait for all.
func eachPart(first, n int64, do func(index int64, want blockset) error) (err error) {
	for n > 0 {
		from := first % store.RegionBlocks
		now := min(n, chunkBlocks-from%chunkBlocks)
		err = worse(err, do(first/store.RegionBlocks, blockSpan(from, now)))
		first, n = first+now, n-now
	}
	return err
}

// decided is err, or nil where that says only that nobody can decide some block.
func decided(err error) error {
	if errors.Is(err, errNoCopy) {
		return nil
	}
	return err
}

// worse is the error to tell of two: any other before one that says only that nobody can decide some block.
func worse(a, b error) error {
	if a == nil || decided(a) == nil && b != nil {
		return b
	}
	return a
}

// settleBlocks settles the wanted blocks of a region. A member that fails is excluded, and the others decide.
func (s *Session) settleBlocks(index int64, want blockset) error {
	for {
		todo := s.regions.unsettledIn(index, want)
		if todo.empty() {
			return nil
		}
		failed, err := s.settleOnce(index, &todo)
		if len(failed) == 0 {
			return err
		}
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
}

// settleOnce returns the members that must be excluded; nothing was recorded then.
func (s *Session) settleOnce(index int64, want *blockset) (failures, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.refusal(false); err != nil {
		return nil, err
	}
	if s.sealed.Load() {
		return nil, fmt.Errorf("volume %s: %w", s.id, syscall.EIO)
	}
	v := s.view.Load()
	first, n := want.bounds()
	held, err := s.pin(index*store.RegionBlocks+first, n)
	defer s.unpin(held)
	if err != nil {
		return s.unopened(v, err), fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	images, failed := readImages(s.hash, v.members(), index, want)
	if len(images) == 0 {
		return s.unopened(v, failed.err()), fmt.Errorf("checksums of volume %s: %w", s.id, failed.err())
	}
	if failed = append(failed, sick(v.members())...); len(failed) > 0 {
		return failed, nil
	}
	right := s.decide(v, index, images, want)
	if failed := s.conform(images, index, right); len(failed) > 0 {
		return failed, nil
	}
	return nil, s.adoptVerdict(held, index, right)
}

// unopened is that every member failed, where the session does not serve yet; it is not opened then.
func (s *Session) unopened(v *view, err error) (failed failures) {
	if s.opening.Load() {
		for _, r := range v.members() {
			failed = append(failed, failure{r, err})
		}
	}
	return failed
}

// sick are the members that have failed: one whose cache is gone may show what it held before, as if nothing had been written since.
func sick(members []*replica) (failed failures) {
	for _, r := range members {
		if err := r.Failed(); err != nil {
			failed = append(failed, failure{r, err})
		}
	}
	return failed
}

// verdict is what blocks of a region should be: of each that is decided, its entry and which image has it.
type verdict struct {
	decided, undecided blockset
	entries            [store.RegionBlocks]digest.Entry
	winner             [store.RegionBlocks]int8
}

func (s *Session) decide(v *view, index int64, images []*image, want *blockset) *verdict {
	d := &verdict{}
	copies := make([]quorum.Copy, len(images))
	for i := range int64(store.RegionBlocks) {
		if !want.has(i) {
			continue
		}
		for k, m := range images {
			copies[k] = m.copyOf(i)
		}
		newest := newestEntry(images, i)
		win, rule := s.decideBlock(copies, newest, v)
		if rule == quorum.ByNobody {
			d.undecided.add(i)
			s.ledger.unresolve(index*store.RegionBlocks+i, "no replica has what was written")
			continue
		}
		d.decided.add(i)
		d.winner[i], d.entries[i] = int8(win), newest
		if h := images[win].data[i]; h != newest.Hash {
			d.entries[i] = digest.Entry{Hash: h, Version: s.nextVersion()} // above the newest, whatever that was of
		}
		s.ledger.resolve(index*store.RegionBlocks + i)
	}
	return d
}

// decideBlock picks the right copy of an unsettled block. Where the last writer had flushed everything the newest
// checksum says what the block is; where it had not, an unflushed write may be there that no checksum knows.
func (s *Session) decideBlock(copies []quorum.Copy, newest digest.Entry, v *view) (int, quorum.Rule) {
	if s.unflushed {
		return quorum.Recovered(copies, v.config.Members)
	}
	expected := quorum.Hash(newest.Hash)
	return quorum.Winner(copies, &expected)
}

// newestEntry is the sound entry of block i with the highest version.
func newestEntry(images []*image, i int64) (e digest.Entry) {
	for _, m := range images {
		if m.sound.has(i) && !newer(e.Version, m.entries[i].Version) {
			e = m.entries[i]
		}
	}
	return e
}

func (s *Session) nextVersion() digest.Version {
	return digest.Version{Epoch: uint32(s.epoch), Sequence: s.sequence.Add(1)}
}

// conform makes every image's replica hold the decided blocks.
func (s *Session) conform(images []*image, index int64, d *verdict) (failed failures) {
	buf := vfs.GetBuffer(store.BlockSize)
	defer vfs.PutBuffer(buf)
	for i := range int64(store.RegionBlocks) {
		if !d.decided.has(i) {
			continue
		}
		right := images[d.winner[i]]
		var wrong []*replica
		for _, m := range images {
			if !m.read.has(i) || m.data[i] != right.data[i] {
				wrong = append(wrong, m.replica)
			}
		}
		if len(wrong) == 0 {
			continue
		}
		block := index*store.RegionBlocks + i
		if err := s.readKnown(right.replica, buf, block, right.data[i]); err != nil {
			return failures{{right.replica, err}}
		}
		failed = together(wrong, func(t *store.Transfers, r *replica) { t.WriteBlocks(r.Replica, buf, block) }, nil)
		if len(failed) > 0 {
			return failed
		}
	}
	return nil
}

// readKnown reads a block of which the checksum is known.
func (s *Session) readKnown(r *replica, p []byte, block int64, want digest.Hash) error {
	if err := r.ReadBlocks(p, block); err != nil {
		return err
	}
	if s.hash.Block(block, p) != want {
		return fmt.Errorf("block %d reads differently each time", block)
	}
	return nil
}

// adoptVerdict makes what was decided what the engine expects. errNoCopy where something was not decided.
func (s *Session) adoptVerdict(held []*page, index int64, d *verdict) error {
	reg := s.regions.get(index)
	var open int64
	for i := range int64(store.RegionBlocks) {
		block := index*store.RegionBlocks + i
		if d.undecided.has(i) {
			open++
			s.log.Error("no copy of a block can win", "volume", s.id, "block", block)
		}
		if !d.decided.has(i) {
			continue
		}
		p := held[block/store.EntriesPerPage-held[0].index]
		if e, sound := p.entry(block); !sound || e != d.entries[i] {
			s.pages.set(p, block, d.entries[i])
		}
		reg.update(s.hash, block, digest.Hash{}, d.entries[i].Hash)
	}
	if open > 0 {
		return fmt.Errorf("volume %s: %d blocks of region %d: %w: %w", s.id, open, index, errNoCopy, syscall.EIO)
	}
	return nil
}

// settleAll settles everything that is unsettled. errNoCopy where something cannot be.
func (s *Session) settleAll(ctx context.Context) (err error) {
	for _, index := range s.regions.list() {
		err = worse(err, s.settleRange(index*store.RegionBlocks, store.RegionBlocks))
		if err = worse(err, ctx.Err()); decided(err) != nil {
			return err
		}
	}
	return err
}

// Pace of settling in the background: few blocks at a time, since requests for them wait, and where the guest asks for something
// a rest of so many times what the last ones took.
const (
	settleStep = store.EntriesPerPage
	settleRest = 3
	askedJust  = 100 * time.Millisecond
)

// catchUp does in the background what an attach without a guest does before it serves.
func (s *Session) catchUp(ctx context.Context) {
	for ctx.Err() == nil && s.regions.next() != allCounted {
		s.evidence.Lock()
		err := s.countChunk()
		s.evidence.Unlock()
		if err != nil {
			s.log.Warn("comparing what the replicas hold", "volume", s.id, "cause", err)
			break // a detach tries again
		}
	}
	s.settleBehind(ctx)
}

// settleBehind settles everything, giving way to requests. What cannot be decided, or fails, is left to whoever asks for it.
func (s *Session) settleBehind(ctx context.Context) {
	for _, index := range s.regions.list() {
		for first := index * store.RegionBlocks; first < (index+1)*store.RegionBlocks; first += settleStep {
			if ctx.Err() != nil || s.regions.settled() {
				return
			}
			if !s.unsettled(first, settleStep) {
				continue
			}
			started := time.Now()
			if err := s.settleRange(first, settleStep); err != nil {
				s.log.Warn("settling what the writer before left", "volume", s.id, "cause", err)
			}
			if time.Since(time.Unix(0, s.touched.Load())) < askedJust {
				sleep(ctx, settleRest*time.Since(started))
			}
		}
	}
}
