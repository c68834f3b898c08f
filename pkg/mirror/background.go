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
	loops  int           // that every has started
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

// every runs do again and again until the session ends. What is done like that does not begin all at the same moment.
func (b *background) every(pause time.Duration, do func(ctx context.Context)) {
	b.loops++
	phase := time.Duration(b.loops) * loopsApart
	b.wg.Go(func() {
		sleep(b.ctx, phase)
		for {
			select {
			case <-b.ctx.Done():
				return
			case <-time.After(pause):
				do(b.ctx)
			}
		}
	})
}

func (s *Session) startBackground() {
	s.events.replicas(s)
	s.background.every(reopenEvery, s.bringBack)
	s.background.every(idleAfter, s.giveBack)
	s.background.wg.Go(func() { s.flushAhead(s.background.ctx) })
	s.background.wg.Go(func() {
		sleep(s.background.ctx, catchUpPast)
		s.catchUp(s.background.ctx)
	})
	if pace, on := verifyInterval(attributesOf(s.Config()).Parameters); on {
		s.background.every(min(quietAfter, pace)/4, func(ctx context.Context) { s.verifyQuiet(ctx, min(quietAfter, pace)) })
		s.background.wg.Go(func() { s.scrubForever(s.background.ctx, pace) })
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
