package machine

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/wire"
)

// What a lost session has to say reaches the engine after it, also where the state disk is full for a while: nobody else knows it.
func TestLastWordsWaitForRoom(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var sessions []*session
		heard := ""
		r.m.Install("/says", func(ctx context.Context, p *Process, e host.EngineProcess) error {
			return e.Run(ctx, host.Program{
				Version: "says", FormatMin: 1, FormatMax: 1, Methods: func(*wire.Server, func() (host.Session, error)) {},
				Open: func(_ context.Context, t host.Take, _ func(engine.Progress)) (host.Session, error) {
					s, err := open(p, t, false)
					if err != nil {
						return nil, err
					}
					mu.Lock()
					defer mu.Unlock()
					sessions, heard = append(sessions, s.(*session)), string(t.Words)
					return s, nil
				},
			}, slog.New(slog.DiscardHandler))
		})
		spec := r.spec()
		spec.Executable = "/says"
		_, err := r.client.Attach(t.Context(), spec, nil)
		r.must(err)
		words, entry := fmt.Sprintf("%s/host/devices/%s.1.words", state, id), fmt.Sprintf("%s/host/devices/%s.json.new", state, id)
		r.must(r.m.disk.Mkdir(words))
		r.must(r.m.disk.Mkdir(entry))
		close(sessions[0].lost)
		time.Sleep(time.Minute)
		_ = r.m.disk.Remove(words) // the host removes it where its engine is dead
		r.must(r.m.disk.Remove(entry))
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if len(sessions) != 2 || heard != `"last words"` {
			t.Errorf("engine %d was told %q", len(sessions), heard)
		}
	})
}
