package detach

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// work is what a job does; it tells how far it is.
type work func(ctx context.Context, report func(engine.Progress)) error

// jobs runs at most one piece of work for a volume, independently of the calls that wait for it. Its zero value is
// not ready: see newJobs.
type jobs struct {
	clock func() time.Time
	base  context.Context
	stop  context.CancelFunc
	all   sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	running map[volume.ID]*job
	failed  map[volume.ID]string // why the newest finished run failed
}

type job struct {
	since    time.Time
	progress engine.Progress // guarded by jobs.mu
	done     chan struct{}
	err      error // valid after done
}

func newJobs(clock func() time.Time) *jobs {
	base, stop := context.WithCancel(context.Background())
	return &jobs{clock: clock, base: base, stop: stop, running: map[volume.ID]*job{}, failed: map[volume.ID]string{}}
}

// close cancels what runs and waits for it.
func (j *jobs) close() {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.stop()
	j.all.Wait()
}

// do starts w for the volume, or joins what runs, and waits for its end or for ctx. started says that it is w's own
// outcome. A result that nobody waits for is not kept: the next call finds a good one in the engine and the journal, and
// starts a failed one anew.
func (j *jobs) do(ctx context.Context, id volume.ID, w work) (started bool, err error) {
	run, started, err := j.start(id, w)
	if err != nil {
		return false, err
	}
	return started, j.wait(ctx, id, run)
}

func (j *jobs) start(id volume.ID, w work) (*job, bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if run := j.running[id]; run != nil {
		return run, false, nil
	}
	if j.closed {
		return nil, false, fmt.Errorf("%w: volume %s: this process is about to end; the next one goes on", ErrInProgress, id)
	}
	run := &job{since: j.clock(), done: make(chan struct{})}
	j.running[id] = run
	j.all.Go(func() { j.run(id, run, w) })
	return run, true, nil
}

func (j *jobs) run(id volume.ID, run *job, w work) {
	err := w(j.base, func(p engine.Progress) {
		j.mu.Lock()
		defer j.mu.Unlock()
		run.progress = p
	})
	if err != nil && j.base.Err() != nil {
		err = fmt.Errorf("%w: volume %s: this process ends, the next one goes on: %w", ErrInProgress, id, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	run.err = err
	delete(j.running, id)
	if delete(j.failed, id); err != nil {
		j.failed[id] = err.Error()
	}
	close(run.done)
}

// join waits for what runs for the volume; false where nothing does.
func (j *jobs) join(ctx context.Context, id volume.ID) (bool, error) {
	j.mu.Lock()
	run := j.running[id]
	j.mu.Unlock()
	if run == nil {
		return false, nil
	}
	return true, j.wait(ctx, id, run)
}

func (j *jobs) wait(ctx context.Context, id volume.ID, run *job) error {
	ctx, cancel := inTime(ctx)
	defer cancel()
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return fmt.Errorf("%w: volume %s: %s", ErrInProgress, id, progressText(j.status(id), j.clock()))
	}
}

func (j *jobs) status(id volume.ID) JobStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := JobStatus{Failed: j.failed[id]}
	if run := j.running[id]; run != nil {
		s.Running, s.Since, s.Progress = true, run.since, run.progress
	}
	return s
}

// answerMargin bounds the time kept back for the answer itself.
const answerMargin = 500 * time.Millisecond

// inTime ends a little before ctx does: an answer given at the deadline never reaches the caller, who then sees "deadline
// exceeded" and not how far the work is.
func inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, bounded := ctx.Deadline()
	if !bounded {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, answerMargin)))
}
