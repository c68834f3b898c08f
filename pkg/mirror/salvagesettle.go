package mirror

import (
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// fate is what becomes of a block of the chosen replica that is not what its checksum says.
type fate struct {
	block int64
	from  *replica // another replica has what the checksum says; nil: none has
	zero  bool     // it cannot be read either
}

// findingsMax bounds the ranges that a salvage tells of one by one.
const findingsMax = 4096

// examine reads what may be wrong with the chosen replica, and decides what becomes of it; nothing is changed yet. Those are the regions
// that were being written, and all of them where blocks were found that no copy was right for, or the content is not what was sealed.
func (s *salvage) examine(report func(engine.Progress)) error {
	regions, err := s.doubtful()
	if err != nil {
		return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	s.recall()
	meter := newMeter("read", report)
	meter.total = volume.Bytes(len(regions)) * store.RegionSize
	for _, i := range regions {
		if err := s.examineRegion(i); err != nil {
			return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
		}
		meter.add(store.RegionSize)
	}
	s.examined = regions
	return nil
}

// recall goes on from what a salvage told that was cut short: what it kept looks right by now.
func (s *salvage) recall() {
	if a := attributesOf(s.look.config); a.Pending && a.Salvaged.From == s.choice.From {
		s.findings = append(s.findings, a.Unresolved...)
	}
}

func (s *salvage) doubtful() ([]int64, error) {
	set := map[int64]struct{}{}
	for _, i := range s.source.Dirty() {
		set[i] = struct{}{}
	}
	base := s.look.base(s.chosen)
	sealed := base.Flags.Has(quorum.Sealed) && s.chosen.total.Bytes() == base.Digest
	if !s.look.config.Flags.Has(quorum.Quarantined) && (sealed || !base.Flags.Has(quorum.Sealed)) {
		return sortedKeys(set), nil
	}
	held, err := heldBy(s.source)
	if err != nil {
		return nil, err
	}
	summed, err := s.summed()
	if err != nil {
		return nil, err
	}
	for _, i := range append(held, summed...) {
		set[i] = struct{}{}
	}
	return sortedKeys(set), nil
}

// summed lists the regions whose sum says that they hold something.
func (s *salvage) summed() (out []int64, err error) {
	sums := make([]digest.Sum, sumsChunk)
	for first := int64(0); first < regionCount(s.look.size()); first += sumsChunk {
		if err := s.source.ReadSums(sums, first); err != nil {
			return nil, err
		}
		for i, sum := range sums {
			if sum != (digest.Sum{}) {
				out = append(out, first+int64(i))
			}
		}
	}
	return out, nil
}

// imageOf reads a region of the chosen replica. Where its checksums cannot be read none of them is sound.
func (s *salvage) imageOf(region int64) *image {
	var want blockset
	want.fill()
	m, err := readImage(s.hash, s.source, region, &want)
	if err == nil {
		return m
	}
	m = &image{replica: s.source}
	buf := vfs.GetBuffer(chunkBlocks * store.BlockSize)
	defer vfs.PutBuffer(buf)
	m.readSingly(s.hash, region*store.RegionBlocks, 0, store.RegionBlocks, buf)
	return m
}

func (s *salvage) examineRegion(region int64) error {
	m := s.imageOf(region)
	var bad blockset
	for i := range int64(store.RegionBlocks) {
		if !m.copyOf(i).Match() {
			bad.add(i)
		}
	}
	if bad.empty() {
		return nil
	}
	donors := s.donors(region, &bad)
	unflushed := s.source.IsDirty(region) && !s.look.base(s.chosen).Flags.Has(quorum.Clean)
	for i := range int64(store.RegionBlocks) {
		if bad.has(i) {
			s.fates[region] = append(s.fates[region], s.fateOf(m, donors, region, i, unflushed))
		}
	}
	return nil
}

// donors read the wanted blocks of the region from all other replicas.
func (s *salvage) donors(region int64, want *blockset) (out []*image) {
	for _, h := range s.look.others(s.chosen) {
		if m, err := readImage(s.hash, h.replica, region, want); err == nil {
			out = append(out, m)
		}
	}
	return out
}

// fateOf decides. A copy with the very checksum is the very content, whatever else its replica has missed. A block of a region that was being
// written may hold an unflushed write that no checksum knows yet: it stays, and the guest was promised nothing of it.
func (s *salvage) fateOf(m *image, donors []*image, region, i int64, unflushed bool) fate {
	f := fate{block: region*store.RegionBlocks + i, zero: !m.read.has(i)}
	if unflushed && !f.zero {
		return f
	}
	for _, d := range donors {
		if m.sound.has(i) && d.read.has(i) && d.data[i] == m.entries[i].Hash {
			f.from, f.zero = d.replica, false
			return f
		}
	}
	cause := "no copy matches its checksum; what the chosen store holds was kept"
	switch {
	case f.zero:
		cause = "no copy could be read; zeros since"
	case !m.sound.has(i):
		cause = "its checksum is damaged; what the chosen store holds was kept"
	}
	s.find(finding("", f.block, cause))
	return f
}

// find notes a finding, as a part of the one before where it goes on from that.
func (s *salvage) find(f engine.Finding) {
	for i := range s.findings {
		if o := s.findings[i]; o.Offset <= f.Offset && f.Offset+f.Length <= o.Offset+o.Length {
			return // told already by a salvage that was cut short
		}
	}
	if last := len(s.findings) - 1; last >= 0 && s.findings[last].Cause == f.Cause && s.findings[last].Offset+s.findings[last].Length == f.Offset {
		s.findings[last].Length += f.Length
		return
	}
	if len(s.findings) < findingsMax {
		s.findings = append(s.findings, f)
	}
}

// settle makes the chosen replica what was decided, durably: every block as its checksum says, every region clean.
func (s *salvage) settle(report func(engine.Progress)) error {
	meter := newMeter("settle", report)
	meter.total = volume.Bytes(len(s.examined)) * store.RegionSize
	// Marked first: where this is cut short, the next one examines the same regions.
	err := s.source.MarkDirty(s.examined)
	for _, region := range s.examined {
		if err == nil {
			err = s.settleRegion(region)
			meter.add(store.RegionSize)
		}
	}
	if err == nil {
		err = s.source.Sync()
	}
	if err == nil {
		err = s.confirm()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	return nil
}

func (s *salvage) settleRegion(region int64) error {
	fates := s.fates[region]
	if len(fates) == 0 {
		return nil
	}
	m := s.imageOf(region)
	for _, f := range fates {
		if err := s.carryOut(m, f); err != nil {
			return err
		}
	}
	return writeRegionEntries(s.source, region, &m.entries)
}

// carryOut changes a block, and its entry in the image.
func (s *salvage) carryOut(m *image, f fate) error {
	i := f.block % store.RegionBlocks
	buf := vfs.GetBuffer(store.BlockSize)
	defer vfs.PutBuffer(buf)
	switch {
	case f.from != nil:
		if err := f.from.ReadBlocks(buf, f.block); err != nil {
			return err
		}
		if s.hash.Block(f.block, buf) != m.entries[i].Hash {
			return fmt.Errorf("block %d of store %s changed meanwhile", f.block, f.from.dir.Path())
		}
		s.ledger.repaired(engine.Repair{Finding: finding(s.source.id(), f.block, "does not match its checksum"), From: f.from.id()})
		return s.source.WriteBlocks(buf, f.block)
	case f.zero:
		clear(buf)
		m.entries[i] = digest.Entry{Version: s.nextVersion()}
		return s.source.WriteBlocks(buf, f.block)
	}
	m.entries[i] = digest.Entry{Hash: m.data[i], Version: s.nextVersion()}
	return nil
}

// confirm reads everything examined back from the media, and makes it clean.
func (s *salvage) confirm() error {
	sums := make(map[int64]digest.Sum, len(s.examined))
	var want blockset
	want.fill()
	for _, region := range s.examined {
		m, err := readImage(s.hash, s.source, region, &want)
		if err != nil {
			return err
		}
		sum := digest.Sum{}
		for i := range int64(store.RegionBlocks) {
			if !m.copyOf(i).Match() {
				return fmt.Errorf("store %s: block %d is not what it was made", s.source.dir.Path(), region*store.RegionBlocks+i)
			}
			s.hash.Add(&sum, m.entries[i].Hash)
		}
		sums[region] = sum
		s.ledger.read(s.source.id(), m.bytes)
	}
	if err := s.source.WriteSums(sums); err != nil {
		return err
	}
	return s.source.ClearDirty(s.examined)
}

// barrier is what a forced receipt will tell.
func (s *salvage) barrier() (engine.Barrier, error) {
	total, err := s.source.Total()
	if err != nil {
		return engine.Barrier{}, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	s.regions.clean = total
	b, err := s.testify()
	b.Clean, b.Unresolved, b.Salvaged = false, s.findings, &s.trace
	if b.Attachment.Epoch == 0 { // attached nowhere: the salvage is the one that had it
		b.Attachment = volume.Attachment{Volume: s.id, Node: s.engine.Node, Epoch: s.epoch}
	}
	return b, errors.Join(err, s.source.Failed())
}
