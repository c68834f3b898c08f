package mirror

import (
	"context"
	"slices"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Flush implements device.Backend: every write that returned before the call is on stable media on every member,
// together with its checksums. Concurrent calls share one run.
func (s *Session) Flush() error {
	s.touch()
	return s.flushes.do(s.flush)
}

// Bounds of the entries that wait for a flush. At 128 blocks a page dirtyPagesMax is 16 MiB of memory: a write that finds more
// waits for a flush. From dirtyPagesAhead on one is made in the background, so that none has to wait.
const (
	dirtyPagesMax   = 4096
	dirtyPagesAhead = dirtyPagesMax / 2
)

// bound keeps the entries that wait for a flush within their bounds.
func (s *Session) bound() error {
	switch n := s.pages.dirtyCount(); {
	case n > dirtyPagesMax:
		return s.Flush()
	case n > dirtyPagesAhead:
		select {
		case s.background.flush <- struct{}{}:
		default: // it was told already
		}
	}
	return nil
}

// flushAhead flushes whenever it is told to. Whoever must know of an error is told by a flush of his own.
func (s *Session) flushAhead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.background.flush:
			_ = s.flushes.do(s.flush)
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
	runs := joinPages(taken)
	failed := writePages(v.writers(), runs)
	failed = append(failed, each(failed.spared(v.writers()), func(r *replica) error { return r.Sync() }, nil)...)
	outcome := quorum.Acknowledgement(v.config.Members, failed.set(), failed.harmless())
	lost := outcome == quorum.Refuse || outcome == quorum.Lost
	releaseRuns(runs)
	s.pages.done(taken, lost)
	if lost {
		return nil, s.allFailed(failed)
	}
	return failed, nil
}

// pageRun is a row of neighbouring pages of one region, so that one write carries them.
type pageRun struct {
	first int64
	bytes []byte
	owned bool // bytes are from the pool
}

// joinPages joins neighbours; the pages are in ascending order.
func joinPages(taken []dirtyPage) (runs []pageRun) {
	for i := 0; i < len(taken); {
		n := 1
		for i+n < len(taken) && neighbours(taken[i+n-1].page.index, taken[i+n].page.index) {
			n++
		}
		runs = append(runs, joinRun(taken[i:i+n]))
		i += n
	}
	return runs
}

func neighbours(a, b int64) bool {
	return b == a+1 && b%store.PagesPerRegion != 0
}

func joinRun(taken []dirtyPage) pageRun {
	run := pageRun{first: taken[0].page.index, bytes: taken[0].raw}
	if len(taken) == 1 {
		return run
	}
	run.owned = true
	run.bytes = vfs.GetBuffer(len(taken) * store.PageSize)
	for i, t := range taken {
		copy(run.bytes[i*store.PageSize:], t.raw)
	}
	return run
}

func releaseRuns(runs []pageRun) {
	for _, r := range runs {
		if r.owned {
			vfs.PutBuffer(r.bytes)
		}
	}
}

// runsAtOnce bounds how many writes of a flush are under way on each replica.
const runsAtOnce = 64

// writePages gives the runs to every replica, and returns who failed.
func writePages(replicas []*replica, runs []pageRun) (failed failures) {
	for batch := range slices.Chunk(runs, runsAtOnce) {
		now := together(replicas, func(t *store.Transfers, r *replica) {
			for _, run := range batch {
				t.WriteEntries(r.Replica, run.bytes, run.first)
			}
		}, nil)
		if len(now) > 0 {
			failed = append(failed, now...)
			replicas = now.spared(replicas)
		}
	}
	return failed
}
