package mirror

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// Stop refuses writes from now on, waits for those in flight, flushes, and records at a majority that the writer left nothing
// behind: whoever takes its place from here on finds a clean volume. Where something is unsettled Evidence records that. Reads
// go on. Stopping twice is no error.
func (s *Session) Stop() error {
	s.gate.Lock() // waits for every request in flight
	s.stopped.Store(true)
	s.gate.Unlock()
	if s.background.ctx.Err() != nil {
		s.comeBack() // a seal that was refused has ended what else would
	}
	settled := s.regions.settled() // before the flush, which makes it durable
	if err := s.flushShared(); err != nil || !settled {
		return err
	}
	return s.leftClean()
}

// leftClean records that every checksum on the stores is final.
func (s *Session) leftClean() error {
	if s.Config().Flags.Has(quorum.Clean) {
		return nil
	}
	s.comeBack() // nothing else would: it is stopped
	return s.Update(func(c *quorum.Config) error {
		c.Flags |= quorum.Clean
		return nil
	})
}

// Stopped says that writes are refused.
func (s *Session) Stopped() bool { return s.stopped.Load() }

// Evidence makes everything durable, reads back from every member what was written since its last verification, mends
// what has a good copy, and says what each replica holds. It needs Stop before it. ErrUnavailable where too few
// replicas can be found where they belong; nothing is touched then.
func (s *Session) Evidence(ctx context.Context, progress func(engine.Progress)) (engine.Barrier, error) {
	s.evidence.Lock()
	defer s.evidence.Unlock()
	if !s.Stopped() {
		return engine.Barrier{}, fmt.Errorf("%w: volume %s", engine.ErrNotStopped, s.id)
	}
	s.comeBack()
	if err := s.present(); err != nil {
		return engine.Barrier{}, err
	}
	s.restore(ctx, progress)
	if err := s.finish(ctx); err != nil {
		return engine.Barrier{}, err
	}
	b, err := s.proof(ctx, progress)
	if err != nil || agreed(b) {
		return b, err
	}
	// What was written was read back: so it is a table of sums that is not what it was. The blocks decide.
	s.log.Warn("a replica's sums are not what they were; counting them anew", "volume", s.id)
	if err := s.recountSums(ctx); err != nil {
		return engine.Barrier{}, err
	}
	if err := s.finish(ctx); err != nil {
		return engine.Barrier{}, err
	}
	return s.proof(ctx, progress)
}

// proof reads back what was written, makes it clean, and says what each replica holds.
func (s *Session) proof(ctx context.Context, progress func(engine.Progress)) (engine.Barrier, error) {
	if err := s.verifyDirty(ctx, progress); err != nil {
		return engine.Barrier{}, err
	}
	if err := s.makeClean(s.regions.list()); err != nil {
		return engine.Barrier{}, err
	}
	return s.testify()
}

// agreed says that every replica that attests to anything attests to what the engine expects.
func agreed(b engine.Barrier) bool {
	return !slices.ContainsFunc(b.Evidence, func(e engine.Evidence) bool { return e.DigestBy == engine.AttestReplica && !e.Digest.Equal(b.Expected) })
}

// finish counts and settles what is left, and flushes. What nobody can decide is in the ledger then.
func (s *Session) finish(ctx context.Context) error {
	if err := s.countSums(ctx); err != nil {
		return err
	}
	if err := decided(s.settleAll(ctx)); err != nil {
		return err
	}
	settled := s.regions.settled()
	if err := s.flushShared(); err != nil || !settled || s.Config().Writer != s.epoch {
		return err
	}
	return s.leftClean()
}

// present refuses unless a majority of the voters, and a member, are found where they belong, and excludes members that are not.
// A store that was moved away still takes writes through open files, but nobody would find them there.
func (s *Session) present() error {
	v := s.view.Load()
	absent, err := s.quorate(v)
	if err != nil {
		return err
	}
	if missing := absent.among(v.config.Members); len(missing) > 0 {
		return s.exclude(missing)
	}
	return nil
}

// quorate returns the voters that are not found where they belong. ErrUnavailable where the others are no majority, or none of them a member.
func (s *Session) quorate(v *view) (absent failures, err error) {
	absent = each(v.voters(), func(r *replica) error {
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
		err = fmt.Errorf("%w: volume %s: %d of %d replicas are there, %d are needed: %w", engine.ErrUnavailable, s.id,
			here.Len(), len(v.config.Voters), quorum.Majority(len(v.config.Voters)), absent.err())
	}
	return absent, err
}

func (f failures) among(s quorum.Set) (out failures) {
	for _, x := range f {
		if s.Has(x.replica.index) {
			out = append(out, x)
		}
	}
	return out
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
	case s.sealed.Load() && sha256.Sum256(receipt) == v.config.Head:
		return nil
	case s.refusal(false) != nil:
		return s.refusal(false)
	case !s.stopped.Load() || b.View != v.config.String() || len(s.regions.list()) > 0 && len(b.Unresolved) == 0:
		return fmt.Errorf("%w: volume %s has changed since the barrier %s (now %s)", engine.ErrStaleEpoch, s.id, b.View, v.config)
	}
	return s.seal(v, b, receipt)
}

func (s *Session) seal(v *view, b engine.Barrier, receipt []byte) error {
	failed := each(v.voters(), func(r *replica) error {
		if err := r.Failed(); err != nil {
			return err
		}
		if mutant.SealWithoutReceipt {
			return nil
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
	s.sealed.Store(true)
	return nil
}

// Sealed says that Seal has succeeded.
func (s *Session) Sealed() bool { return s.sealed.Load() }

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
