package mirror

import (
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Flush implements device.Backend: every write that returned before the call is on stable media on every member,
// together with its checksums. Concurrent calls share one run.
func (s *Session) Flush() error {
	s.touch()
	return s.flushes.do(func() error { return s.flush(true) })
}

// writeBack gives the waiting entries to the stores without making them durable.
func (s *Session) writeBack() error { return s.flushes.do(func() error { return s.flush(false) }) }

func (s *Session) flush(sync bool) error {
	failed, err := s.flushOnce(sync)
	if err != nil || len(failed) == 0 {
		return err
	}
	return s.exclude(failed)
}

func (s *Session) flushOnce(sync bool) (failures, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if err := s.refusal(false); err != nil {
		return nil, err
	}
	return s.flushView(sync)
}

// flushView returns the replicas that must be excluded before the flush may be acknowledged. The caller holds gate.
func (s *Session) flushView(sync bool) (failures, error) {
	v := s.view.Load()
	taken := s.pages.takeDirty()
	runs := joinPages(taken)
	failed := each(v.writers(), func(r *replica) error {
		if err := writePages(r, runs); err != nil {
			return err
		}
		if !sync {
			return nil
		}
		return r.Sync()
	}, nil)
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

func writePages(r *replica, runs []pageRun) error {
	for _, run := range runs {
		if err := r.WriteEntries(run.bytes, run.first); err != nil {
			return err
		}
	}
	return nil
}
