package mirror

import (
	"errors"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
)

// stallRetry is how often a session without a majority asks again.
const stallRetry = 500 * time.Millisecond

// exclude removes the failed replicas and returns once that is in force, so that what the others did may be
// acknowledged (DESIGN.md §3.4). Where no majority answers it waits: nothing is acknowledged meanwhile.
func (s *Session) exclude(failed failures) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if err := s.refusal(false); err != nil {
		return err
	}
	return s.excludeLocked(failed)
}

// excludeLocked is exclude for a caller that holds gate for writing.
func (s *Session) excludeLocked(failed failures) error {
	v := s.view.Load()
	gone := failed.set()
	for _, f := range failed {
		f.replica.Fail(f.err)
	}
	if s.opening.Load() {
		return s.leaveOut(failed)
	}
	next := v.config
	next.Members = v.config.Members.Without(gone)
	if next.Members == 0 {
		return s.allFailed(failed)
	}
	s.setView(v.config, v.targets.Without(gone))
	switch {
	case next.Members == v.config.Members:
		return nil
	case mutant.AckBeforeRecord:
		s.setView(next, v.targets.Without(gone))
		return nil
	case mutant.RestartedStillInSync:
		s.reopen(0)
		return nil
	}
	s.log.Warn("replica excluded", "volume", s.id, "epoch", s.epoch, "cause", failed.err(), "left", next.Members.Len())
	if err := s.commitOrStall(next); err != nil {
		return err
	}
	s.events.replicas(s)
	return nil
}

// commitOrStall puts the configuration in force, however long a majority takes to answer; once the session's background has ended it asks once.
func (s *Session) commitOrStall(next quorum.Config) error {
	for {
		err := s.commit(next, true)
		if !errors.Is(err, engine.ErrUnavailable) {
			s.stalled.Store(nil)
			return err
		}
		why := err.Error()
		if s.stalled.Swap(&why) == nil {
			s.markLossy() // before it is opened again, and votes: if this process dies nobody else knows
		}
		if dead := s.dead(next.Members); len(dead) == next.Members.Len() {
			return s.allFailed(dead) // there is nothing left to go on from, whoever comes back to vote
		}
		s.log.Error("requests wait for a majority of replicas", "volume", s.id, "cause", err)
		select {
		case <-s.background.ctx.Done():
			s.stalled.Store(nil) // nothing waits any more
			s.keepOut(next.Members, err)
			return err
		case <-time.After(stallRetry):
		}
		s.reopen(next.Members)
	}
}

// keepOut fails the members that are to be excluded, and are not, since no majority takes it: they were opened again to vote for it, and may lack what others have.
func (s *Session) keepOut(left quorum.Set, why error) {
	for _, r := range s.view.Load().pick(s.Config().Members.Without(left)) {
		r.Fail(fmt.Errorf("it is still to be excluded: %w", why))
	}
}

// dead are those of the members whose disks do not answer.
func (s *Session) dead(members quorum.Set) failures {
	return each(s.view.Load().pick(members), func(r *replica) error {
		if err := r.Failed(); err != nil {
			return err
		}
		return r.Reachable()
	}, nil)
}

// commit puts a configuration in force: the next step, accepted durably by a majority of the voters. The caller holds
// gate for writing. ErrUnavailable where too few accept; the configuration may come into force later, so that the caller
// acknowledges nothing and goes on with the same or a stricter one.
func (s *Session) commit(next quorum.Config, open bool) error {
	v := s.view.Load()
	next.Epoch, next.Step = s.epoch, v.config.Step+1
	mark := s.mark
	mark.Open = open
	accepted, failed := s.propose(v, next, mark)
	if err := s.superseded(failed); err != nil {
		return err
	}
	if !quorum.Committed(accepted, len(next.Voters)) {
		still := v.config
		still.Step = next.Step + 1 // next's number is used, whoever has accepted it: what is told to those that come back must have another
		s.setView(still, v.targets)
		return fmt.Errorf("%w: volume %s: %d of %d replicas accept a new configuration, %d are needed: %w", engine.ErrUnavailable,
			s.id, accepted.Len(), len(next.Voters), quorum.Majority(len(next.Voters)), failed.err())
	}
	s.setView(next, v.targets)
	return nil
}

func (s *Session) propose(v *view, next quorum.Config, mark store.Session) (accepted quorum.Set, failed failures) {
	voters := v.voters()
	failed = each(voters, func(r *replica) error { return r.vote(v.config, next, mark) }, nil)
	for _, r := range voters {
		accepted = accepted.With(r.index)
	}
	return accepted.Without(failed.set()), failed
}

// vote asks the replica to accept next, where now is in force. Its record says that the session is open for as long as anybody may take it for a member, so that
// whoever comes next sees whether it has lost its cache: one that is excluded keeps its mark, and a member without one has failed.
func (r *replica) vote(now, next quorum.Config, mark store.Session) error {
	if err := r.Failed(); err != nil {
		return err
	}
	member := next.Members.Has(r.index)
	mark.Open = mark.Open && member
	mark.Mount = r.MountID()
	if now.Members.Has(r.index) && !member {
		mark = r.Record().Session
	}
	err := r.Accept(next, mark)
	if err != nil && member && !r.Record().Session.Open {
		r.Fail(err)
	}
	return err
}

// superseded ends the session where a replica has promised a newer epoch.
func (s *Session) superseded(failed failures) error {
	for _, f := range failed {
		if errors.Is(f.err, store.ErrFenced) {
			err := fmt.Errorf("%w: %w", errFenced, f.err)
			s.breakWith(err)
			return err
		}
	}
	return nil
}

func (s *Session) setView(c quorum.Config, targets quorum.Set) {
	old := s.view.Load()
	s.view.Store(&view{config: c, replicas: old.replicas, targets: targets})
}

// Update puts a changed configuration in force: a new size, format or flag. change must not touch epoch, step,
// voters or members.
func (s *Session) Update(change func(*quorum.Config) error) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if err := s.refusal(false); err != nil {
		return err
	}
	next := s.view.Load().config
	if err := change(&next); err != nil {
		return err
	}
	return s.commit(next, true)
}
