package main

import (
	"context"
	"log/slog"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/host"
)

// TestRespawn: a host that is killed is followed by another, and the end of whoever looks after it is its end.
func TestRespawn(t *testing.T) {
	state := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- respawn(ctx, []string{"host", "--state", state}, slog.New(slog.DiscardHandler))
	}()
	defer func() { stop(); <-ended }()
	c, last := host.NewClient(state), 0
	for range 3 {
		pid := anotherHost(t, c, last)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		last = pid
	}
	pid := anotherHost(t, c, last)
	stop()
	<-ended
	ended <- nil // for the deferred wait
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("host %d is left", pid)
	}
}

func anotherHost(t *testing.T, c *host.Client, than int) int {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if about, err := c.About(t.Context()); err == nil && about.PID != than {
			return about.PID
		}
	}
	t.Fatal("no other host")
	return 0
}

func TestRespawnEndsWithAHostThatEnds(t *testing.T) {
	if err := respawn(t.Context(), []string{"version"}, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if got := without([]string{"host", "--respawn", "--state", "/s", "--respawn=true"}, "--respawn"); !slices.Equal(got, []string{"host", "--state", "/s"}) {
		t.Error(got)
	}
}

// TestRespawnSlowsDown: where every host dies as it starts, as for a wrong argument, there are few of them; one that has worked is followed at once.
func TestRespawnSlowsDown(t *testing.T) {
	waits, wait := []time.Duration{}, time.Duration(0)
	for _, lived := range []time.Duration{0, 0, 0, time.Second, 0, 0, time.Hour, 0} {
		wait = nextWait(wait, lived)
		waits = append(waits, wait/time.Millisecond)
	}
	if !slices.Equal(waits, []time.Duration{200, 400, 800, 1600, 2000, 2000, 200, 400}) {
		t.Errorf("ms: %d", waits)
	}
}
