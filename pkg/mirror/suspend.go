package mirror

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// errYielded: the session was handed over.
var errYielded = fmt.Errorf("%w: the volume was handed over to the next engine", engine.ErrStaleEpoch)

// answer is what the guest is told. Where the session was ended by force and the next engine can be asked instead, it is told
// nothing until the session is closed: the kernel asks again whoever serves next. The caller holds nothing.
func (s *Session) answer(err error) error {
	if err == nil || !s.suspend {
		return err
	}
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, errStopped) {
		s.outOfReach()
	}
	if cause := s.broken.Load(); cause == nil || errors.Is(*cause, errYielded) {
		return err
	}
	<-s.closed // or until the process ends, which is what follows
	return err
}

// outOfReach ends the session where no disk answers any more, also where nothing but a read has told of it yet: the engine after this one
// may find them again. A block that is bad on all of them is another matter, and the guest's.
func (s *Session) outOfReach() {
	if s.broken.Load() != nil {
		return
	}
	members := s.view.Load().config.Members
	if failed := s.dead(members); len(failed) == members.Len() {
		_ = s.exclude(failed) // of the last member: it ends the session
	}
}

// breakWith ends the session. What must be known later is made durable first, as far as that can be done.
func (s *Session) breakWith(err error) {
	if !s.broken.CompareAndSwap(nil, &err) {
		return
	}
	s.log.Error("session ended by force", "volume", s.id, "epoch", s.epoch, "cause", err)
	go func() {
		s.markLossy()
		close(s.lost)
	}()
}

// Lost is closed once the session was ended by force: fenced, or left by the last member. Where Suspend was asked for nobody is answered
// from then on, and the process should end.
func (s *Session) Lost() <-chan struct{} { return s.lost }

// LostCause says why the session can serve no more; nil where it can.
func (s *Session) LostCause() error {
	if err := s.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// LossyMembers are those members of which a sync failed: what they took since the one before it may be gone, and a later session
// cannot see that. They are no sources of a warm take-over.
func (s *Session) LossyMembers() (out []engine.ReplicaID) {
	for _, r := range s.view.Load().members() {
		if r.SyncFailed() || r.Record().Lossy {
			out = append(out, r.id())
		}
	}
	return out
}

// markWithin bounds how long a disk that has just failed a sync is waited for once more.
const markWithin = time.Second

// markLossy records on the lossy members that they are, where their disks still take it.
func (s *Session) markLossy() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		each(s.view.Load().members(), func(r *replica) error {
			if !r.SyncFailed() {
				return nil
			}
			err := r.MarkLossy()
			s.log.Warn("replica lost its cache", "volume", s.id, "replica", r.id(), "recorded", err == nil, "cause", r.Failed())
			return err
		}, nil)
	}()
	select {
	case <-done:
	case <-time.After(markWithin):
	}
}
