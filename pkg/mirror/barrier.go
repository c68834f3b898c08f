package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// Stop refuses writes from now on, waits for those in flight, flushes, and records at a majority that the writer left nothing
// behind: whoever takes its place from here on finds a clean volume. Reads go on. Stopping twice is no error.
func (s *Session) Stop() error {
	s.gate.Lock() // waits for every request in flight
	s.stopped = true
	s.gate.Unlock()
	if err := s.Flush(); err != nil || s.Config().Flags.Has(quorum.Clean) {
		return err
	}
	return s.Update(func(c *quorum.Config) error {
		c.Flags |= quorum.Clean
		return nil
	})
}

// Stopped says that writes are refused.
func (s *Session) Stopped() bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.stopped
}

// Evidence makes everything durable, reads back from every member what was written since its last verification, mends
// what has a good copy, and says what each replica holds. It needs Stop before it. ErrUnavailable where too few
// replicas can be found where they belong; nothing is touched then.
func (s *Session) Evidence(ctx context.Context, progress func(engine.Progress)) (engine.Barrier, error) {
	s.evidence.Lock()
	defer s.evidence.Unlock()
	if !s.Stopped() {
		return engine.Barrier{}, fmt.Errorf("%w: volume %s", engine.ErrNotStopped, s.id)
	}
	if err := s.present(); err != nil {
		return engine.Barrier{}, err
	}
	s.restore(ctx, progress)
	if err := s.Flush(); err != nil {
		return engine.Barrier{}, err
	}
	if err := s.verifyDirty(ctx, progress); err != nil {
		return engine.Barrier{}, err
	}
	if err := s.settleClean(s.regions.list()); err != nil {
		return engine.Barrier{}, err
	}
	return s.testify()
}

// verifyAtOnce is how many regions are read back at the same time, so that the disks are kept busy while checksums are
// computed. Each takes 1 MiB of memory for each member.
const verifyAtOnce = 4

// verifyDirty reads back every dirty region. Blocks that nobody can decide are in the ledger when it returns.
func (s *Session) verifyDirty(ctx context.Context, progress func(engine.Progress)) error {
	meter := newMeter("verify", progress)
	dirty := s.regions.list()
	for _, r := range dirty {
		meter.total += s.unverified(r)
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(verifyAtOnce)
	for _, r := range dirty {
		if ctx.Err() != nil {
			break
		}
		work.Go(func() error {
			if err := s.verifyRegion(r, meter); err != nil && !errors.Is(err, errNoCopy) {
				return err
			}
			return ctx.Err()
		})
	}
	return work.Wait()
}

// present refuses unless a majority of the voters, and a member, are found where they belong, and excludes members that are not.
// A store that was moved away still takes writes through open files, but nobody would find them there.
func (s *Session) present() error {
	v := s.view.Load()
	absent := each(v.voters(), func(r *replica) error {
		if err := r.Failed(); err != nil {
			return err
		}
		return r.Present()
	}, nil)
	here := quorum.Set(0)
	for _, r := range v.voters() {
		here = here.With(r.index)
	}
	here = here.Without(absent.set())
	if !quorum.Committed(here, len(v.config.Voters)) || here&v.config.Members == 0 {
		return fmt.Errorf("%w: volume %s: %d of %d replicas are there, %d are needed: %w", engine.ErrUnavailable, s.id,
			here.Len(), len(v.config.Voters), quorum.Majority(len(v.config.Voters)), absent.err())
	}
	if missing := absent.among(v.config.Members); len(missing) > 0 {
		return s.exclude(missing)
	}
	return nil
}

func (f failures) among(s quorum.Set) (out failures) {
	for _, x := range f {
		if s.Has(x.replica.index) {
			out = append(out, x)
		}
	}
	return out
}

// unverified is how much a verification of the region reads from all members.
func (s *Session) unverified(index int64) volume.Bytes {
	r := s.regions.get(index)
	r.mu.Lock()
	defer r.mu.Unlock()
	var n volume.Bytes
	for first, count := nextRun(&r.written, 0); count > 0; first, count = nextRun(&r.written, first+count) {
		n += volume.Bytes(count * store.BlockSize)
	}
	return n * volume.Bytes(len(s.view.Load().members()))
}

// verifyRegion reads back what was written in a dirty region and mends what differs from what the engine expects. Nobody
// writes in the region meanwhile. What was mended is durable when it returns. errNoCopy where a block stays unresolved.
func (s *Session) verifyRegion(index int64, meter *meter) error {
	reg := s.regions.get(index)
	if reg == nil || reg.written.empty() {
		return nil
	}
	expected, err := s.expectedRegion(index)
	if err != nil {
		return err
	}
	bad, err := s.readBack(index, expected, &reg.written, meter)
	if err != nil {
		return err
	}
	if len(bad) > 0 {
		if err := errors.Join(s.mendEach(bad), s.Flush()); err != nil {
			return err
		}
		if expected, err = s.expectedRegion(index); err != nil {
			return err
		}
	}
	reg.mu.Lock()
	reg.sum, reg.written = expected.sum(s.hash), blockset{}
	reg.mu.Unlock()
	return nil
}

// mendEach mends every block it can.
func (s *Session) mendEach(blocks []int64) error {
	var errs []error
	for _, b := range blocks {
		if err := s.mend(b); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// expectation is what the engine expects of a region's blocks.
type expectation struct {
	entries [store.RegionBlocks]digest.Entry
	sound   blockset
}

func (x *expectation) sum(h *digest.Hasher) (s digest.Sum) {
	for i := range x.entries {
		h.Add(&s, x.entries[i].Hash)
	}
	return s
}

func (s *Session) expectedRegion(index int64) (*expectation, error) {
	held, err := s.pin(index*store.RegionBlocks, store.RegionBlocks)
	defer s.unpin(held)
	if err != nil {
		return nil, fmt.Errorf("checksums of volume %s: %w", s.id, err)
	}
	x := &expectation{}
	for i := range int64(store.RegionBlocks) {
		e, ok := held[i/store.EntriesPerPage].entry(index*store.RegionBlocks + i)
		if x.entries[i] = e; ok {
			x.sound.add(i)
		}
	}
	return x, nil
}

// readBack compares what every member holds of the wanted blocks with what is expected, and every member's entries of
// the whole region. Wrong entries are rewritten; wrong blocks are returned.
func (s *Session) readBack(index int64, expected *expectation, want *blockset, meter *meter) (bad []int64, err error) {
	images, failed := readImages(s.hash, s.view.Load().members(), index, want)
	if len(failed) > 0 {
		if err := s.exclude(failed); err != nil {
			return nil, err
		}
	}
	wrong := map[int64]struct{}{}
	for _, m := range images {
		meter.add(m.bytes - store.PagesPerRegion*store.PageSize)
		s.ledger.read(m.replica.id(), m.bytes)
		for _, b := range m.wrong(index, expected, want) {
			wrong[b] = struct{}{}
		}
		if m.entries == expected.entries && m.sound == expected.sound {
			continue
		}
		s.log.Warn("checksums differ from what was written, rewriting them", "volume", s.id, "region", index, "replica", m.replica.id())
		if err := writeRegionEntries(m.replica, index, &expected.entries); err != nil {
			return nil, s.exclude(failures{{m.replica, err}})
		}
	}
	return sortedKeys(wrong), nil
}

// wrong lists the wanted blocks whose content is not what is expected.
func (m *image) wrong(index int64, expected *expectation, want *blockset) (out []int64) {
	for i := range int64(store.RegionBlocks) {
		if want.has(i) && (!m.read.has(i) || !expected.sound.has(i) || m.data[i] != expected.entries[i].Hash) {
			out = append(out, index*store.RegionBlocks+i)
		}
	}
	return out
}

// settleClean makes verified regions clean: their sums durable first, then the maps.
func (s *Session) settleClean(regions []int64) error {
	sums := make(map[int64]digest.Sum, len(regions))
	done := make([]int64, 0, len(regions))
	for _, i := range regions {
		r := s.regions.get(i)
		r.mu.Lock()
		if r.written.empty() {
			sums[i] = r.sum
			done = append(done, i)
		}
		r.mu.Unlock()
	}
	if len(done) == 0 {
		return nil
	}
	failed := each(s.view.Load().members(), func(r *replica) error {
		if err := r.WriteSums(sums); err != nil {
			return err
		}
		return r.ClearDirty(done)
	}, nil)
	if len(failed) > 0 {
		if err := s.exclude(failed); err != nil {
			return err
		}
	}
	for _, i := range done {
		s.regions.settle(i)
	}
	return nil
}

// testify is the barrier as the stores' own tables have it.
func (s *Session) testify() (engine.Barrier, error) {
	v := s.view.Load()
	repairs, unresolved, verified := s.ledger.entries()
	b := engine.Barrier{
		Salvaged:   pendingOf(v.config),
		Attachment: volume.Attachment{Volume: s.id, Epoch: v.config.Published, Node: attributesOf(v.config).Node},
		Writer:     s.epoch, View: v.config.String(), Clean: !s.unclean || v.config.Writer == s.epoch,
		Size: v.config.Size, Replicas: len(v.config.Voters), Expected: digestOf(s.regions.total(), v.config.Size),
		Repairs: repairs, Unresolved: unresolved, Head: headOf(v.config),
	}
	for i := range v.config.Voters {
		e := s.witness(v, i, verified)
		b.Verified += e.Verified
		b.Evidence = append(b.Evidence, e)
	}
	return b, nil
}

// witness is one voter's evidence.
func (s *Session) witness(v *view, i int, verified map[engine.ReplicaID]volume.Bytes) engine.Evidence {
	r := v.replicas[i]
	e := engine.Evidence{Replica: s.describe(v, i), Incarnation: v.config.Voters[i].Incarnation.String(), At: time.Now().UTC()}
	if r == nil || !v.config.Members.Has(i) {
		e.Error = "not in sync: " + e.Reason
		return e
	}
	sum, err := r.Total()
	if err != nil {
		e.Error = err.Error()
		return e
	}
	e.Digest, e.DigestBy = digestOf(sum, v.config.Size), engine.AttestReplica
	e.Position = engine.Position{Generation: fmt.Sprint(s.epoch), Sequence: s.sequence.Load()}
	e.PositionBy = engine.AttestReplica
	e.Durable, e.Lossy, e.Verified = r.Failed() == nil, r.lossy, verified[r.id()]
	return e
}

// Seal keeps the receipt on the stores and then ends the epoch at a majority: the seal names the receipt by its hash, so that
// a receipt without a seal counts nothing. After it, or after an error of it, the session serves nothing any more.
// ErrStaleEpoch where anything happened since b.
func (s *Session) Seal(b engine.Barrier, receipt []byte) error {
	s.background.stop() // before evidence is locked: what it waits for may be waiting for evidence
	s.evidence.Lock()
	defer s.evidence.Unlock()
	if s.broken.Load() == nil && !s.Sealed() {
		if err := s.present(); err != nil {
			return err
		}
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	v := s.view.Load()
	switch {
	case s.sealed && sha256.Sum256(receipt) == v.config.Head:
		return nil
	case s.refusal(false) != nil:
		return s.refusal(false)
	case !s.stopped || b.View != v.config.String() || len(s.regions.list()) > 0 && len(b.Unresolved) == 0:
		return fmt.Errorf("%w: volume %s has changed since the barrier %s (now %s)", engine.ErrStaleEpoch, s.id, b.View, v.config)
	}
	return s.seal(v, b, receipt)
}

func (s *Session) seal(v *view, b engine.Barrier, receipt []byte) error {
	failed := each(v.voters(), func(r *replica) error {
		if err := r.Failed(); err != nil {
			return err
		}
		return r.dir.PutReceipt(s.id, s.epoch, link(v.config.Head, receipt))
	}, nil)
	if kept := len(v.voters()) - len(failed); kept < quorum.Majority(len(v.config.Voters)) {
		return fmt.Errorf("%w: volume %s: %d of %d stores keep the receipt: %w", engine.ErrUnavailable, s.id, kept, len(v.config.Voters), failed.err())
	}
	next := v.config
	next.Flags |= quorum.Sealed
	next.Flags &^= quorum.Clean | quorum.Quarantined
	if b.Clean {
		next.Flags |= quorum.Clean
	}
	if len(b.Unresolved) > 0 && !s.salvaging { // forced: the volume is let go, and nobody may use it before a person has decided
		next.Flags |= quorum.Quarantined
	}
	if pendingOf(next) != nil {
		if err := editAttributes(&next, func(a *attributes) { a.Pending = false }); err != nil {
			return err
		}
	}
	next.Digest, next.Head = s.regions.total().Bytes(), sha256.Sum256(receipt)
	err := s.commit(next, false)
	if err != nil { // some replicas may have sealed: this session cannot go on, the next one finds out
		s.breakWith(err)
		return err
	}
	s.sealed = true
	return nil
}

// Sealed says that Seal has succeeded.
func (s *Session) Sealed() bool {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.sealed
}

func digestOf(sum digest.Sum, size volume.Bytes) engine.Digest {
	b := sum.Bytes()
	return engine.Digest{Algorithm: digest.Algorithm, Scope: "full", Bytes: size, Sum: b[:]}
}

func headOf(c quorum.Config) []byte {
	if c.Head == [32]byte{} {
		return nil
	}
	return c.Head[:]
}
