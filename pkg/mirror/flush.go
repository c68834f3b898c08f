package mirror

import (
	"context"
	"slices"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Flush implements device.Backend: every write that returned before the call is on stable media on every member,
// together with its checksums. Concurrent calls share one run.
func (s *Session) Flush() error {
	s.touch()
	return s.answer(s.flushShared())
}

func (s *Session) flushShared() error { return s.flushes.do(s.flush) }

// bound keeps the entries that wait for a flush within their bounds: a write that finds too many waits for one. From half of
// that on one is made in the background, so that none has to wait.
func (s *Session) bound() error {
	switch n := s.pages.dirtyCount(); {
	case n > s.pages.dirtyMax:
		return s.flushShared()
	case n > s.pages.dirtyMax/2:
		select {
		case s.background.flush <- struct{}{}:
		default: // it was told already
		}
	}
	return nil
}

// flushAhead flushes whenever it is told to. Whoever must know of an error is told by a flush of his own.
func (s *Session) flushAhead(ctx context.Context) {
	for ctx.Err() == nil { // also where it was told something meanwhile
		select {
		case <-ctx.Done():
		case <-s.background.flush:
			_ = s.flushShared()
		}
	}
}

func (s *Session) flush() error {
	failed, err := s.flushOnce()
	if err != nil || len(failed) == 0 {
		return err
	}
	return s.exclude(failed)
}

func (s *Session) flushOnce() (failures, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.refusal(false); err != nil {
		return nil, err
	}
	return s.flushView()
}

// flushView returns the replicas that must be excluded before the flush may be acknowledged. The caller holds gate.
func (s *Session) flushView() (failures, error) {
	v := s.view.Load()
	taken := s.pages.takeDirty()
	var failed failures
	if !mutant.FlushWithoutChecksums {
		failed = writePages(v.writers(), joinPages(taken))
	}
	failed = append(failed, each(failed.spared(v.writers()), func(r *replica) error {
		if mutant.NoFlush && s.stopped.Load() || mutant.FlushSparesOne && r.index == 0 {
			return nil
		}
		return r.Sync()
	}, nil)...)
	outcome := quorum.Acknowledgement(v.config.Members, failed.set(), failed.harmless())
	lost := outcome == quorum.Refuse || outcome == quorum.Lost
	s.pages.done(taken, lost)
	if lost {
		return nil, s.allFailed(failed)
	}
	return failed, nil
}

// pageRun is a row of neighbouring pages of one region, so that one write carries them.
type pageRun []takenPage

// joinPages joins neighbours; the pages are in ascending order.
func joinPages(taken []takenPage) (runs []pageRun) {
	for i := 0; i < len(taken); {
		n := 1
		for i+n < len(taken) && neighbours(taken[i+n-1].index, taken[i+n].index) {
			n++
		}
		runs = append(runs, taken[i:i+n])
		i += n
	}
	return runs
}

func neighbours(a, b int64) bool {
	return b == a+1 && b%store.PagesPerRegion != 0
}

// copied is the content of the run, in a buffer from the pool.
func (r pageRun) copied() []byte {
	b := vfs.GetBuffer(len(r) * store.PageSize)
	for i, t := range r {
		t.copyTo(b[i*store.PageSize : (i+1)*store.PageSize])
	}
	return b
}

// runsAtOnce bounds how many writes of a flush are under way on each replica.
const runsAtOnce = 64

// writePages gives the runs to every replica, and returns who failed.
func writePages(replicas []*replica, runs []pageRun) (failed failures) {
	for batch := range slices.Chunk(runs, runsAtOnce) {
		now := writeRuns(replicas, batch)
		failed = append(failed, now...)
		replicas = now.spared(replicas)
	}
	return failed
}

func writeRuns(replicas []*replica, runs []pageRun) failures {
	content := make([][]byte, len(runs))
	for i, run := range runs {
		content[i] = run.copied()
	}
	failed := together(replicas, func(t *store.Transfers, r *replica) {
		for i, run := range runs {
			t.WriteEntries(r.Replica, content[i], run[0].index)
		}
	}, nil)
	for _, b := range content {
		vfs.PutBuffer(b)
	}
	return failed
}
