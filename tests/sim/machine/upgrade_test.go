package machine

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/wire"
)

// unfit wants an upgrade to a version that reads other formats to be rolled back, and the device to be served as before.
func (r *rig) unfit(g *guest) {
	r.t.Helper()
	_, err := r.client.Upgrade(r.t.Context(), id, "/format", nil)
	if !errors.Is(err, host.ErrRolledBack) || !strings.Contains(err.Error(), "reads formats 2 to 3, the volume has 1") {
		r.t.Errorf("%v", err)
	}
	r.served(g, "old")
}

// An engine that does not answer cannot say which format it writes. A version that does not read it is refused all the same.
// (Simulation, seed 751: the upgrade succeeded.)
func TestUnfitVersionPastAnEngineThatHangs(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.engine().Stop()
		r.unfit(g)
	})
}

// Where no engine serves nobody can be asked for the format. (Simulation, seed 3603: the upgrade succeeded.)
func TestUnfitVersionWhereNobodyServes(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.must(r.m.disk.Mkdir("/away"))
		r.engine().Kill()
		time.Sleep(20 * time.Second)
		r.must(r.m.disk.Remove("/away"))
		if d := r.device(); d.State != host.Waiting {
			t.Fatalf("%+v", d)
		}
		r.unfit(g)
	})
}

// slow is a session whose first write takes long. It fails where the session ends meanwhile.
type slow struct {
	*session
	first sync.Once
	ended chan struct{}
}

const slowWrite = 10 * time.Second

func (s *slow) WriteAt(p []byte, off int64) (err error) {
	s.first.Do(func() {
		select {
		case <-time.After(slowWrite):
		case <-s.ended:
			err = fs.ErrClosed
		}
	})
	if err != nil {
		return err
	}
	return s.session.WriteAt(p, off)
}

func (s *slow) Yield() error { return s.Close() }
func (s *slow) Close() error { close(s.ended); return s.session.Close() }

// A request takes longer than an upgrade waits for it, so that the upgrade is given up. So does the next one: it waits for the same request, though
// another server of the engine has taken it. (Simulation, seed 9831: the second upgrade had the workload told EIO.)
func TestUpgradeWaitsForRequestsOfAnEarlierDrain(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		r.m.Install("/slow", func(ctx context.Context, p *Process, e host.EngineProcess) error {
			return e.Run(ctx, host.Program{
				Version: "slow", FormatMin: 1, FormatMax: 1, Methods: func(*wire.Server, func() (host.Session, error)) {},
				Open: func(_ context.Context, t host.Take, _ func(engine.Progress)) (host.Session, error) {
					s, err := open(p, t, false)
					if err != nil {
						return nil, err
					}
					return &slow{session: s.(*session), ended: make(chan struct{})}, nil
				},
			}, slog.New(slog.DiscardHandler))
		})
		spec := r.spec()
		spec.Executable = "/slow"
		d, err := r.client.Attach(t.Context(), spec, nil)
		r.must(err)
		g, err := r.m.OpenDevice(d.Path)
		r.must(err)
		defer g.Close()
		want, got := bytes.Repeat([]byte{7}, 512), make([]byte, 512)
		began, written := time.Now(), make(chan error, 1)
		go func() { written <- g.WriteAt(want, 0) }()
		time.Sleep(time.Second)
		for n := range 2 {
			_, err := r.client.Upgrade(t.Context(), id, "/new", nil)
			if !errors.Is(err, host.ErrRolledBack) || !errors.Is(err, engine.ErrBusy) {
				t.Errorf("upgrade %d: %v", n, err)
			}
			r.must(g.ReadAt(got, 1024)) // it serves on
		}
		if err := <-written; err != nil || time.Since(began) < slowWrite {
			t.Errorf("write, after %v: %v", time.Since(began), err)
		}
		_, err = r.client.Upgrade(t.Context(), id, "/new", nil)
		r.must(err)
		r.must(g.ReadAt(got, 0))
		if !bytes.Equal(got, want) {
			t.Error("something else is read than was written")
		}
	})
}
