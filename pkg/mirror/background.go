package mirror

import (
	"context"
	"sync"
	"time"
)

// Pace of the background work.
const (
	reopenEvery = 2 * time.Second  // between attempts to bring replicas back
	quietAfter  = 30 * time.Second // a dirty region is verified once nobody wrote in it for so long
	idleAfter   = 10 * time.Second // memory is given back once nobody asked anything for so long
	catchUpPast = time.Second      // a guest that waited for a take-over is served first
	loopsApart  = 7*time.Millisecond + 13*time.Microsecond
)

// background runs a session's own work: bringing replicas back, verifying, giving memory back. It ends with stop.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	flush  chan struct{} // tells of entries that wait for a flush
	loops  int           // that were given a phase
}

func (b *background) init() {
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.flush = make(chan struct{}, 1)
}

// stop ends the background work and returns once it has ended.
func (b *background) stop() {
	b.cancel()
	b.wg.Wait()
}

// phase is how much later than the session the next loop begins. Pauses are round and what is paused between may take no time, so that
// loops that began together would meet again and again, and the order in which they then take a lock would be anybody's.
func (b *background) phase() time.Duration {
	b.loops++
	return time.Duration(b.loops) * loopsApart
}

// after runs do once the time has passed and the phase with it, unless the session ends before.
func (b *background) after(pause time.Duration, do func(ctx context.Context)) {
	pause += b.phase()
	b.wg.Go(func() {
		if sleep(b.ctx, pause); b.ctx.Err() == nil {
			do(b.ctx)
		}
	})
}

// every runs do again and again until the session ends.
func (b *background) every(pause time.Duration, do func(ctx context.Context)) {
	b.after(0, func(ctx context.Context) {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
				do(ctx)
			}
		}
	})
}

func (s *Session) startBackground() {
	s.events.replicas(s)
	s.background.every(reopenEvery, s.bringBack)
	s.background.every(idleAfter, s.giveBack)
	s.background.wg.Go(func() { s.flushAhead(s.background.ctx) })
	s.background.after(catchUpPast, s.catchUp)
	if pace, on := verifyInterval(attributesOf(s.Config()).Parameters); on {
		s.background.every(min(quietAfter, pace)/4, func(ctx context.Context) { s.verifyQuiet(ctx, min(quietAfter, pace)) })
		s.background.after(0, func(ctx context.Context) { s.scrubForever(ctx, pace) })
	}
}

// giveBack returns memory to the system where the volume is idle.
func (s *Session) giveBack(context.Context) {
	idle := time.Since(time.Unix(0, s.touched.Load()))
	if idle < idleAfter || idle > 3*idleAfter {
		return
	}
	s.pages.shrink(pagesIdle)
	if s.idle != nil {
		s.idle()
	}
}
