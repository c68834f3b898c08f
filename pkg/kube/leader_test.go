package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// stage is where several processes try to lead, and tells who does.
type stage struct {
	*world
	mu      sync.Mutex
	leading []string
	most    int
}

func (s *stage) enter(name string) (stop func()) {
	e := NewElector(s.api, space, LeaseName, name, slog.New(slog.DiscardHandler))
	return s.run(func(ctx context.Context) {
		e.Run(ctx, func(ctx context.Context) {
			s.mu.Lock()
			s.leading = append(s.leading, name)
			s.most = max(s.most, len(s.leading))
			s.mu.Unlock()
			<-ctx.Done()
			s.mu.Lock()
			s.leading = slices.DeleteFunc(s.leading, func(n string) bool { return n == name })
			s.mu.Unlock()
		})
	})
}

func (s *stage) wants(leaders ...string) {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.leading, leaders) {
		s.Errorf("%v lead, want %v", s.leading, leaders)
	}
}

// TestOneLeads, another when that one stops, at once, and never two at the same time.
func TestOneLeads(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		s := &stage{world: w}
		stop := s.enter("a")
		settle()
		s.wants("a")
		for i := range 3 {
			s.enter(fmt.Sprintf("b%d", i))
		}
		time.Sleep(5 * time.Minute)
		s.wants("a")
		stop()
		time.Sleep(2 * renewEvery)
		if s.mu.Lock(); len(s.leading) != 1 || !strings.HasPrefix(s.leading[0], "b") {
			t.Errorf("%v lead", s.leading)
		}
		s.mu.Unlock()
		time.Sleep(time.Hour)
		if s.mu.Lock(); s.most != 1 {
			t.Errorf("%d led at the same time", s.most)
		}
		s.mu.Unlock()
	})
}

// TestADeadLeaderIsFollowed when its Lease has not been renewed for as long as it is good, on the follower's clock.
func TestADeadLeaderIsFollowed(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		l := lease("dead", time.Now().Add(24*time.Hour)) // its clock is a day ahead
		l.Name, l.Namespace = LeaseName, space
		w.server.Put(l)
		s := &stage{world: w}
		s.enter("a")
		time.Sleep(leaseDuration - time.Second)
		s.wants()
		time.Sleep(2 * renewEvery)
		s.wants("a")
	})
}

// TestALeaderThatCannotRenewStops before another one may take over, and leads again afterwards.
func TestALeaderThatCannotRenewStops(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		s := &stage{world: w}
		s.enter("a")
		time.Sleep(time.Minute)
		s.wants("a")
		w.server.SetAway(true)
		time.Sleep(renewDeadline - renewEvery - time.Second)
		s.wants("a")
		time.Sleep(leaseDuration - renewDeadline + renewEvery)
		s.wants()
		w.server.SetAway(false)
		time.Sleep(time.Minute)
		s.wants("a")
	})
}

// TestWhoIsReplacedStops: another one has the Lease.
func TestWhoIsReplacedStops(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		s := &stage{world: w}
		s.enter("a")
		settle()
		l := lease("b", time.Now())
		l.Name, l.Namespace = LeaseName, space
		w.server.Put(l)
		time.Sleep(renewEvery + time.Second)
		s.wants()
	})
}

// TestTwoThatTryAtTheSameTime: both read the Lease, and one of the two writes fails.
func TestTwoThatTryAtTheSameTime(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		l := lease("dead", time.Unix(0, 0))
		l.Name, l.Namespace = LeaseName, space
		w.server.Put(l)
		s := &stage{world: w}
		for i := range 5 {
			s.enter(fmt.Sprint(i))
		}
		time.Sleep(time.Hour)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.most != 1 || len(s.leading) != 1 {
			t.Errorf("%d led at the same time, %v now", s.most, s.leading)
		}
	})
}

// TestALeaderTriesAgainWithinItsDeadline: a renewal that fails ends no term, where the API server is back in time.
func TestALeaderTriesAgainWithinItsDeadline(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		terms := 0
		w.run(func(ctx context.Context) {
			NewElector(w.api, space, LeaseName, "a", w.cluster.Log).Run(ctx, func(ctx context.Context) { terms++; <-ctx.Done() })
		})
		settle()
		for range 20 { // some of these outages fall on a renewal
			w.server.SetAway(true)
			time.Sleep(renewDeadline - renewEvery - 2*time.Second)
			w.server.SetAway(false)
			time.Sleep(time.Minute + 700*time.Millisecond)
		}
		if terms != 1 {
			t.Errorf("led %d times", terms)
		}
	})
}

// TestThatNobodyCanLeadIsTold, once for each cause: without a leader there are no certificates, Events or conditions. That another one leads is no news.
func TestThatNobodyCanLeadIsTold(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		var said strings.Builder
		log := slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))
		l := lease("b", time.Now())
		l.Name, l.Namespace = LeaseName, space
		w.server.Put(l)
		stop := w.run(func(ctx context.Context) {
			NewElector(w.api, space, LeaseName, "a", log).Run(ctx, func(context.Context) {})
		})
		settle()
		if said.Len() != 0 {
			t.Errorf("another one leads, and said: %s", said.String())
		}
		w.server.SetAway(true)
		time.Sleep(10 * time.Minute)
		stop()
		if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "connection refused") || !strings.Contains(got, LeaseName) {
			t.Errorf("said: %s", got)
		}
	})
}
