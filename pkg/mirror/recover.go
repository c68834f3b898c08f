package mirror

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// sumsChunk is how many regions' sums are read at a time (64 KiB).
const sumsChunk = 2048

// recover makes the members identical and durable before anything is served: it settles every region that is dirty on any of them
// and every region whose sums differ. A member that fails is left out. What it settled stays dirty, to be read back
// before the next seal.
func (s *Session) recover(newest quorum.Config, progress func(engine.Progress)) error {
	started := time.Now()
	report := func(done, total int) {
		if progress != nil {
			progress(engine.Progress{Phase: "recover", Done: volume.Bytes(done) * store.RegionSize, Total: volume.Bytes(total) * store.RegionSize, Since: started})
		}
	}
	for {
		failed, err := s.recoverOnce(newest, report)
		if err != nil {
			return err
		}
		if len(failed) == 0 {
			return nil
		}
		if err := s.leaveOut(failed); err != nil {
			return err
		}
	}
}

// leaveOut drops members before the first configuration is committed.
func (s *Session) leaveOut(failed failures) error {
	v := s.view.Load()
	next := v.config
	next.Members = next.Members.Without(failed.set())
	if next.Members == 0 {
		return fmt.Errorf("%w: volume %s: every member failed during recovery: %w", engine.ErrUnavailable, s.id, failed.err())
	}
	for _, f := range failed {
		f.replica.Fail(f.err)
		s.log.Warn("replica left out of the recovery", "volume", s.id, "cause", f.err)
	}
	s.setView(next, 0)
	return nil
}

func (s *Session) recoverOnce(newest quorum.Config, report func(done, total int)) (failures, error) {
	s.regions = newRegions()
	v := s.view.Load()
	dirty := unionDirty(v.members())
	if failed := s.settle(v, dirty, report); len(failed) > 0 {
		return failed, nil
	}
	differ, failed := s.compareSums(v)
	if len(failed) > 0 {
		return failed, nil
	}
	if len(differ) > 0 {
		s.log.Warn("regions differ between replicas", "volume", s.id, "regions", len(differ))
		if failed := s.settle(v, differ, report); len(failed) > 0 {
			return failed, nil
		}
	}
	return s.adoptTotal(v, newest)
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

// settle makes the regions identical on all members, durably, together with their sums.
func (s *Session) settle(v *view, regions []int64, report func(done, total int)) failures {
	if len(regions) == 0 {
		return nil
	}
	// Marked everywhere first: where this is cut short, whichever members come back know what is unfinished.
	failed := each(v.members(), func(r *replica) error { return r.MarkDirty(regions) }, nil)
	sums := make(map[int64]digest.Sum, len(regions))
	for i, region := range regions {
		if len(failed) > 0 {
			return failed
		}
		sums[region], failed = s.settleRegion(v, region)
		report(i+1, len(regions))
	}
	if len(failed) > 0 {
		return failed
	}
	return each(v.members(), func(r *replica) error {
		if err := r.Sync(); err != nil {
			return err
		}
		return r.WriteSums(sums)
	}, nil)
}

func (s *Session) settleRegion(v *view, index int64) (digest.Sum, failures) {
	var want blockset
	want.fill()
	images, failed := readImages(s.hash, v.members(), index, &want)
	if len(failed) > 0 {
		return digest.Sum{}, failed
	}
	right := s.decideRegion(v, index, images)
	failed = each(v.members(), func(r *replica) error {
		return s.conform(r, images, index, right)
	}, nil)
	return right.sum(s.hash), failed
}

// verdict is what a region should be: the entry of each block, and which image has the right copy (-1: nobody).
type verdict struct {
	entries [store.RegionBlocks]digest.Entry
	winner  [store.RegionBlocks]int8
}

func (d *verdict) sum(h *digest.Hasher) (s digest.Sum) {
	for i := range d.entries {
		h.Add(&s, d.entries[i].Hash)
	}
	return s
}

func (s *Session) decideRegion(v *view, index int64, images []*image) *verdict {
	d := &verdict{}
	copies := make([]quorum.Copy, len(images))
	for i := range int64(store.RegionBlocks) {
		for k, m := range images {
			copies[k] = m.copyOf(i)
		}
		newest := newestEntry(images, i)
		win, rule := s.decideBlock(copies, newest, v)
		d.winner[i] = int8(win)
		switch {
		case rule == quorum.ByNobody:
			d.entries[i] = newest
			s.ledger.unresolve(index*store.RegionBlocks+i, "no replica has what was written")
		case copies[win].Match():
			d.entries[i] = images[win].entries[i]
		case rule == quorum.ByExpectation:
			d.entries[i] = newest
		default:
			d.entries[i] = digest.Entry{Hash: images[win].data[i], Version: s.nextVersion()}
		}
	}
	return d
}

// decideBlock picks the right copy of a block in a dirty region. Where the last writer had flushed everything the newest
// checksum says what the block is; where it had not, an unflushed write may be there that no checksum knows.
func (s *Session) decideBlock(copies []quorum.Copy, newest digest.Entry, v *view) (int, quorum.Rule) {
	if s.unclean {
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

// conform makes r hold what the verdict says: blocks that differ from the winner's, then entries that differ.
func (s *Session) conform(r *replica, images []*image, index int64, d *verdict) error {
	mine := images[slices.IndexFunc(images, func(m *image) bool { return m.replica == r })]
	buf := vfs.GetBuffer(store.BlockSize)
	defer vfs.PutBuffer(buf)
	stale := false
	for i := range int64(store.RegionBlocks) {
		stale = stale || mine.entries[i] != d.entries[i] || !mine.sound.has(i)
		win := d.winner[i]
		if win < 0 || mine.read.has(i) && mine.data[i] == images[win].data[i] {
			continue
		}
		block := index*store.RegionBlocks + i
		if err := images[win].replica.ReadBlocks(buf, block); err != nil {
			return fmt.Errorf("copying block %d from store %s: %w", block, images[win].replica.dir.Path(), err)
		}
		if err := r.WriteBlocks(buf, block); err != nil {
			return err
		}
	}
	if !stale {
		return nil
	}
	return writeRegionEntries(r, index, &d.entries)
}

func writeRegionEntries(r *replica, index int64, entries *[store.RegionBlocks]digest.Entry) error {
	raw := vfs.GetBuffer(store.PagesPerRegion * store.PageSize)
	defer vfs.PutBuffer(raw)
	for i, e := range entries {
		digest.Encode(raw[i*digest.EntrySize:(i+1)*digest.EntrySize], index*store.RegionBlocks+int64(i), e)
	}
	return r.WriteEntries(raw, index*store.PagesPerRegion)
}

// compareSums lists the regions whose sums are not the same on all members.
func (s *Session) compareSums(v *view) (differ []int64, failed failures) {
	members := v.members()
	tables := make(map[*replica][]digest.Sum, len(members))
	for _, r := range members {
		tables[r] = make([]digest.Sum, sumsChunk)
	}
	for first := int64(0); first < regionCount(v.config.Size); first += sumsChunk {
		if failed = each(members, func(r *replica) error { return r.ReadSums(tables[r], first) }, nil); len(failed) > 0 {
			return nil, failed
		}
		for _, r := range members[1:] {
			differ = append(differ, differing(tables[members[0]], tables[r], first)...)
		}
	}
	slices.Sort(differ)
	return slices.Compact(differ), nil
}

func differing(a, b []digest.Sum, first int64) (out []int64) {
	for i := range a {
		if a[i] != b[i] {
			out = append(out, first+int64(i))
		}
	}
	return out
}

// adoptTotal makes the members' digest what the engine expects. A sealed volume must still have the digest of its seal:
// a member that has not is left out, and where none has nobody can tell what happened.
func (s *Session) adoptTotal(v *view, newest quorum.Config) (failures, error) {
	var failed failures
	var total digest.Sum
	for _, r := range v.members() {
		sum, err := r.Total()
		switch {
		case err != nil:
			failed = append(failed, failure{r, err})
		case newest.Flags.Has(quorum.Sealed) && sum.Bytes() != newest.Digest:
			failed = append(failed, failure{r, errors.New("its digest is not the one of the seal")})
		default:
			total = sum
		}
	}
	if len(failed) == len(v.members()) && newest.Flags.Has(quorum.Sealed) {
		return nil, fmt.Errorf("%w: volume %s: no replica has the digest that was sealed: %w", engine.ErrQuarantined, s.id, failed.err())
	}
	s.regions.clean = total
	return failed, s.keepDirty(v)
}

// keepDirty remembers what recovery settled as not yet read back.
func (s *Session) keepDirty(v *view) error {
	members := v.members()
	dirty := unionDirty(members)
	sums, err := s.baseSums(v, dirty)
	if err != nil {
		return fmt.Errorf("sums of volume %s: %w", s.id, err)
	}
	for i, index := range dirty {
		s.regions.add(index, sums[i])
		s.regions.get(index).written.fill()
	}
	return nil
}

func regionCount(size volume.Bytes) int64 {
	return int64(size.RoundUp(store.RegionSize) / store.RegionSize)
}
