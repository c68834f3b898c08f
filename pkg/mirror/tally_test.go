package mirror

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

func TestWhatAnEngineProcessCountsBecomesEventsOfItsParent(t *testing.T) {
	count, socket := newCounter(), filepath.Join(t.TempDir(), "e.sock")
	server := wire.NewServer(nil, slog.New(slog.DiscardHandler))
	methods(server, nil, count)
	serve(t, server, socket)

	child := count.events()
	child.Repaired("v") // before anybody follows
	child.Replicas("v", 2, 3)
	var repaired, members int
	var scrubbed volume.Bytes
	var first, last sync.Once
	following, end := context.WithCancel(t.Context())
	relay(following, "v", wire.NewClient(socket, host.Codes), Events{
		Replicas: func(id volume.ID, m, n int) {
			if members = m; id != "v" || n != 3 {
				t.Errorf("%s %d", id, n)
			}
			first.Do(func() { // while it is followed
				child.Repaired("v")
				child.Scrubbed("v", 4096)
				child.Scrubbed("v", 4096)
				child.Replicas("v", 3, 3)
			})
			if members == 3 { // the last change, so that what comes with it is everything
				last.Do(end)
			}
		},
		Repaired: func(volume.ID) { repaired++ },
		Scrubbed: func(_ volume.ID, n volume.Bytes) { scrubbed += n },
	})
	if repaired != 2 || scrubbed != 8192 || members != 3 {
		t.Errorf("repaired %d, scrubbed %d, members %d", repaired, scrubbed, members)
	}
}

// An engine process is followed whatever its socket is called: the next attachment of a volume has the same name again.
func TestEveryEngineProcessIsFollowed(t *testing.T) {
	state := t.TempDir()
	socket := filepath.Join(state, "engines", "v.1.sock")
	pids := make(chan int, 1)
	fake := wire.NewServer(host.Codes, slog.New(slog.DiscardHandler))
	wire.Handle(fake, "devices", func(context.Context, nothing, func(nothing)) ([]host.Device, error) {
		pid := <-pids
		pids <- pid
		return []host.Device{{Volume: "v", State: host.Serving, Engine: host.Engine{PID: pid, Start: "1", Socket: socket}}}, nil
	})
	serve(t, fake, host.SocketIn(state))
	repaired := make(chan struct{}, 1)
	e := &Engine{Config: Config{Host: host.NewClient(state), Events: Events{Repaired: func(volume.ID) { repaired <- struct{}{} }}}}
	var relayed sync.Map
	for pid := range 2 {
		pids <- pid
		count := newCounter()
		count.events().Repaired("v")
		engine := wire.NewServer(nil, slog.New(slog.DiscardHandler))
		methods(engine, nil, count)
		end := serve(t, engine, socket)
		e.relayAll(t.Context(), &relayed)
		e.relayAll(t.Context(), &relayed) // followed once
		<-repaired
		end()
		<-pids
	}
	e.follows.Wait()
	if len(repaired) > 0 {
		t.Error("counted twice")
	}
}

// serve has the server answer at the socket until the returned function is called, or the test ends.
func serve(t *testing.T, s *wire.Server, socket string) (end func()) {
	t.Helper()
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(ctx, l) })
	end = func() { cancel(); served.Wait() }
	t.Cleanup(end)
	return end
}
