package mirror

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

func TestWhatAnEngineProcessCountsBecomesEventsOfItsParent(t *testing.T) {
	count, socket := newCounter(), filepath.Join(t.TempDir(), "e.sock")
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	server := wire.NewServer(nil, slog.New(slog.DiscardHandler))
	methods(server, nil, count)
	served.Go(func() { _ = server.Serve(ctx, l) })
	defer func() { cancel(); served.Wait() }()

	child := count.events()
	child.Repaired("v") // before anybody follows
	child.Replicas("v", 2, 3)
	var repaired, members int
	var scrubbed volume.Bytes
	var first, last sync.Once
	following, end := context.WithCancel(ctx)
	relay(following, "v", socket, Events{
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
