package machine

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/host"
)

// newEntry is where the host writes an entry first: a directory there stands for a state disk on which nothing can be written.
const newEntry = state + "/host/devices/v.json.new"

// An upgrade that cannot even be begun, since the state disk is full, changes nothing: the engine that serves goes on.
func TestUpgradeOnAFullStateDisk(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		before := r.engine()
		r.must(r.m.disk.Mkdir(newEntry))
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); !errors.Is(err, host.ErrRolledBack) {
			t.Errorf("%v", err)
		}
		r.served(g, "old")
		if d := r.device(); d.Engine.PID != before.id.PID || d.Deaths > 0 {
			t.Errorf("%+v, before it was engine %d", d, before.id.PID)
		}
	})
}

// The state disk fills up in the middle of an upgrade: one engine serves in the end, and no other is left.
func TestStateDiskFillsDuringAnUpgrade(t *testing.T) {
	for _, step := range []string{"upgrade: started", "upgrade: prepared", "upgrade: yielded", "next: taken", "upgrade: taken over", "upgrade: watched"} {
		t.Run(step, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				g := r.attach()
				r.step = func(what string) {
					if what == step {
						r.must(r.m.disk.Mkdir(newEntry))
						r.step = func(string) {}
					}
				}
				_, err := r.client.Upgrade(t.Context(), id, "/new", nil)
				by := "new"
				if err != nil {
					by = "old"
				}
				r.served(g, by)
				if all := r.engines(); len(all) != 1 || r.device().Deaths > 0 {
					t.Errorf("engines %v, %+v: %v", all, r.device(), err)
				}
			})
		})
	}
}

// A host that finds the state disk full takes its devices back all the same, and looks after them once it can.
func TestHostRestartedOnAFullStateDisk(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.must(r.m.disk.Mkdir(newEntry))
		r.host.Kill()
		r.start()
		r.served(g, "old")
		r.engine().Kill()
		time.Sleep(10 * time.Second)
		r.must(r.m.disk.Remove(newEntry))
		r.served(g, "old")
	})
}

// The same where the engine has died, too, while no host looked, and only the one that stands by has the device.
func TestHostRestartedOnAFullStateDiskInAnUpgrade(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		old := r.engine()
		r.step = func(what string) {
			if what == "upgrade: started" {
				old.Kill()
				r.must(r.m.disk.Mkdir(newEntry))
				r.host.Kill()
			}
		}
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); err == nil {
			t.Error("upgraded by a host that is dead")
		}
		r.step = func(string) {}
		r.start()
		if d := r.device(); d.State != host.Waiting {
			t.Fatalf("%+v", d)
		}
		r.must(r.m.disk.Remove(newEntry))
		g.goesOn()
	})
}

// The state disk fills up while a new engine starts: that one is ended, and none is left that stands by for ever.
func TestStateDiskFillsWhileAnEngineStarts(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.m.Install("/fills", func(ctx context.Context, p *Process, e host.EngineProcess) error {
			time.Sleep(time.Second) // it is named by now
			r.must(r.m.disk.Mkdir(newEntry))
			return run(ctx, "new", p, e)
		})
		if _, err := r.client.Upgrade(t.Context(), id, "/fills", nil); !errors.Is(err, host.ErrRolledBack) {
			t.Errorf("%v", err)
		}
		r.served(g, "old")
		if all := r.engines(); len(all) != 1 {
			t.Errorf("left: %v", all)
		}
	})
}
