package mirror

import (
	"errors"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// Warm says what is known of the engine before, whose guest is alive: everything that it acknowledged counts, flushed or not.
type Warm struct {
	After volume.Epoch       // writer epoch of the engine before
	Lossy []engine.ReplicaID // members of which it said that a sync failed
}

// follows says whether the newest configuration is a writer's that this device had, so that nobody has come between: whoever did,
// the gate for one, has recovered the volume without regard for what was not flushed.
func (w *Warm) follows(newest quorum.Config) bool {
	return !newest.Flags.Has(quorum.Sealed) && newest.Epoch == newest.Writer && newest.Writer >= w.After
}

// forget makes those lossy of which the engine before said so.
func (w *Warm) forget(replicas []*replica) {
	for _, r := range replicas {
		if r != nil && slices.Contains(w.Lossy, r.id()) {
			r.lossy = true
		}
	}
}

// elect decides whom to go on from. ErrUnavailable where asking again may help; ErrDeviceLost where the guest was told of writes that
// nobody has any more.
func (s *Session) elect(warm *Warm) (quorum.Config, quorum.Set, error) {
	newest, sources, err := quorum.Elect(s.answers(), warm != nil)
	switch {
	case errors.Is(err, quorum.ErrAllLossy):
		return newest, 0, fmt.Errorf("%w: volume %s: every replica in sync may have lost its cache with writes that were acknowledged and not flushed, "+
			"its disk was away or failed to sync: %w; detach the volume and attach it anew", engine.ErrDeviceLost, s.id, err)
	case err != nil:
		return newest, 0, fmt.Errorf("%w: volume %s: %w", engine.ErrUnavailable, s.id, err)
	}
	return newest, sources, nil
}

// Yield ends the session for one that takes its place warm, in this process or another. No request is being served. The stores
// are given the checksums that they lack, so that the next one has little to settle; nothing is synced, which the next one's flush
// does. When it returns, with or without an error, the locks are free and every request is refused. Again, it returns the same.
func (s *Session) Yield() error {
	s.yield.Lock()
	defer s.yield.Unlock()
	if s.handed {
		return s.yielded
	}
	s.handed = true
	s.background.cancel() // and not waited for, while a guest waits: it finds the files closed, which is no worse than a death
	s.yielded = s.handOver()
	s.closeReplicas()
	return s.yielded
}

func (s *Session) handOver() error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if !s.broken.CompareAndSwap(nil, &errYielded) || s.sealed.Load() {
		return nil
	}
	taken := s.pages.takeDirty()
	failed := writePages(s.view.Load().writers(), joinPages(taken))
	s.pages.done(taken, len(failed) > 0)
	if len(failed) > 0 {
		return fmt.Errorf("volume %s: writing checksums: %w", s.id, failed.err())
	}
	return nil
}
