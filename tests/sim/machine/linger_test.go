package machine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
)

// lingering is longer than a host waits for the death of a process that it has killed.
const lingering = 3 * time.Minute

// alone wants the device served by a program of that name in the end, and no other engine left.
func (r *rig) alone(g *guest, by string) {
	r.t.Helper()
	for began := time.Now(); r.device().State != host.Serving && time.Since(began) < 2*lingering; {
		time.Sleep(time.Second)
	}
	r.served(g, by)
	if all := r.engines(); len(all) != 1 {
		r.t.Errorf("left: %v", all)
	}
}

// An engine that hangs on a disk does not yield, and does not die. No other takes its place before it is dead.
func TestUpgradePastAnEngineThatDoesNotDie(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.engine().Linger(lingering)
		r.engine().Stop()
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); err == nil {
			t.Error("upgraded")
		}
		if d := r.device(); d.State != host.Waiting {
			t.Errorf("%+v", d)
		}
		r.alone(g, "old")
	})
}

// The new engine hangs on a disk while it takes the device over, or in its first seconds, and does not die. Requests wait, which is said, until it
// does; the old one, which has yielded, is not forgotten.
func TestUpgradeToAnEngineThatDoesNotDie(t *testing.T) {
	for _, name := range []string{"stuck", "mute"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				g := r.attach()
				r.m.Install("/lingers", func(ctx context.Context, p *Process, e host.EngineProcess) error {
					p.Linger(lingering)
					return run(ctx, name, p, e)
				})
				if _, err := r.client.Upgrade(t.Context(), id, "/lingers", nil); !errors.Is(err, engine.ErrUnavailable) {
					t.Errorf("%v", err)
				}
				if d := r.device(); d.State != host.Waiting {
					t.Errorf("%+v", d)
				}
				r.alone(g, "old")
			})
		})
	}
}

// The host dies in an upgrade, and the next one finds an engine that it can neither use nor end. It has the device all the same, and another
// engine serves it as soon as that one is dead.
func TestHostRestartedBesideAnEngineThatDoesNotDie(t *testing.T) {
	for _, step := range []string{"upgrade: started", "upgrade: yielded"} {
		t.Run(step, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				g := r.attach()
				old := r.engine()
				r.strike(step, "host")
				if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); err == nil {
					t.Error("upgraded by a host that is dead")
				}
				old.Linger(lingering)
				old.Stop()
				r.start()
				if d := r.device(); d.State != host.Waiting {
					t.Errorf("%+v", d)
				}
				r.alone(g, "old")
			})
		})
	}
}
