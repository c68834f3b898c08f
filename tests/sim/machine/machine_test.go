package machine

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
)

func TestAttachAndDetach(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.served(g, "old")
		if err := r.client.Detach(t.Context(), id); !errors.Is(err, device.ErrInUse) {
			t.Errorf("in use: %v", err)
		}
		r.served(g, "old")
		g.end()
		r.must(r.client.Detach(t.Context(), id))
		if err := r.client.Detach(t.Context(), id); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("again: %v", err)
		}
		if all := r.m.Processes(); len(all) != 2 || len(r.m.channels) > 0 || len(r.m.sockets) != 1 {
			t.Errorf("left: %v, %v, %v", all, r.m.channels, r.m.sockets)
		}
	})
}

func TestEngineKilled(t *testing.T) {
	r := bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		for n := range 5 {
			g.goesOn()
			r.engine().Kill()
			r.served(g, "old")
			if d := r.device(); d.Deaths != n+1 {
				t.Errorf("deaths %d, want %d", d.Deaths, n+1)
			}
		}
	})
	r.wants("asks 1 requests again")
}

// wants that something happened, so that a test is about what it says.
func (r *rig) wants(what string) {
	if !strings.Contains(strings.Join(r.log, "\n"), what) {
		r.t.Errorf("%q has not happened", what)
	}
}

func TestUpgrade(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		for _, to := range []string{"new", "old", "new"} {
			g.goesOn()
			u, err := r.client.Upgrade(t.Context(), id, "/"+to, nil)
			if err != nil || u.To != to || u.Pause <= 0 {
				t.Fatalf("%+v: %v", u, err)
			}
			r.served(g, to)
			r.engine().Kill() // what follows is of the new program
			r.served(g, to)
		}
	})
}

func TestUpgradeIsRolledBack(t *testing.T) {
	for name, says := range map[string]string{
		"exits": "ended before it said hello", "hangs": "has not said hello", "silent": "has not said hello", "text": "exec format error",
		"format": "reads formats 2 to 3, the volume has 1", "protocol": "speaks protocol", "stuck": "has not answered", "refuses": "too few replicas",
		"crashes": "killed", "mute": "has answered no request",
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				g := r.attach()
				_, err := r.client.Upgrade(t.Context(), id, "/"+name, nil)
				if !errors.Is(err, host.ErrRolledBack) || !strings.Contains(err.Error(), says) {
					t.Errorf("%v, want it to say %q", err, says)
				}
				r.served(g, "old")
				r.engine().Kill() // and what follows is of the old program
				r.served(g, "old")
			})
		})
	}
}

// strike has somebody die when the host comes to a step.
func (r *rig) strike(step, whom string) {
	r.step = func(what string) {
		if what != step {
			return
		}
		r.step = func(string) {}
		switch whom {
		case "host":
			r.host.Kill()
		case "first":
			r.engines()[0].Kill()
		case "last":
			r.engines()[len(r.engines())-1].Kill()
		}
	}
}

func (r *rig) engines() (out []*Process) {
	for _, p := range r.m.Processes() {
		if p.name == "engine" {
			out = append(out, p)
		}
	}
	return out
}

// Whoever dies at whatever step of an upgrade: one engine serves, the old or the new one, and the guest notices nothing.
func TestDeathAtEveryStepOfAnUpgrade(t *testing.T) {
	for _, step := range []string{"started", "prepared", "yielded", "taken over", "watched"} {
		for _, whom := range []string{"host", "first", "last"} {
			t.Run(step+", "+whom, func(t *testing.T) {
				bubble(t, Config{}, func(t *testing.T, r *rig) {
					g := r.attach()
					r.strike("upgrade: "+step, whom)
					_, err := r.client.Upgrade(t.Context(), id, "/new", nil)
					if whom == "host" {
						r.start()
					}
					g.goesOn()
					d := r.device()
					if d.State != host.Serving || err == nil && d.Engine.Version != "new" {
						t.Fatalf("%+v after %v", d, err)
					}
					r.served(g, d.Engine.Version)
					r.engine().Kill()
					r.served(g, d.Engine.Version)
				})
			})
		}
	}
}

func TestHostKilledAtEveryStepOfATakeOver(t *testing.T) {
	for _, step := range []string{"next: started", "next: taken"} {
		t.Run(step, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				g := r.attach()
				r.strike(step, "host")
				r.engine().Kill()
				<-r.host.Dead()
				r.start()
				r.served(g, "old")
			})
		})
	}
	for _, step := range []string{"first: started", "first: taken", "first: attached"} {
		t.Run(step, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				r.strike(step, "host")
				answered := make(chan error, 1)
				go func() { _, err := r.client.Attach(t.Context(), r.spec(), nil); answered <- err }()
				<-r.host.Dead()
				r.start()
				r.must(<-answered) // asked again of the next host
				r.served(r.attach(), "old")
			})
		})
	}
}

func TestEngineDiesWhileItsDeviceIsMade(t *testing.T) {
	for _, step := range []string{"first: started", "first: taken"} {
		t.Run(step, func(t *testing.T) {
			bubble(t, Config{}, func(t *testing.T, r *rig) {
				r.strike(step, "last")
				if _, err := r.client.Attach(t.Context(), r.spec(), nil); !errors.Is(err, engine.ErrUnavailable) {
					t.Fatalf("%v, want %v", err, engine.ErrUnavailable)
				}
				r.served(r.attach(), "old")
			})
		})
	}
}

func TestHostKilled(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		for range 3 {
			served := r.engine()
			r.host.Kill()
			g.goesOn()
			r.start()
			r.served(g, "old")
			if r.engine() != served {
				t.Error("another engine serves")
			}
			served.Kill() // the new host looks after an engine that it did not start
			r.served(g, "old")
		}
	})
}

func TestHostAndEngineKilled(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g, e := r.attach(), r.engine()
		g.goesOn()
		r.host.Kill()
		e.Kill()
		g.fails(syscall.EIO)
		r.start()
		if d := r.device(); d.State != host.Lost || d.Cause != "host and engine died together" {
			t.Errorf("%+v", d)
		}
		r.must(r.client.Detach(t.Context(), id))
		r.served(r.attach(), "old")
	})
}

// A stopped engine answers nothing. An upgrade kills it, and what it had taken is asked again; so does a new host.
func TestEngineStopped(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g, e := r.attach(), r.engine()
		e.Stop()
		time.Sleep(time.Second)
		before, _ := g.count()
		time.Sleep(10 * time.Second)
		if now, _ := g.count(); now != before {
			t.Error("a stopped engine answers")
		}
		e.Continue()
		r.served(g, "old")
		e.Stop()
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); err != nil {
			t.Fatal(err)
		}
		if e.Continue(); r.m.Find(e.id.PID) != nil {
			t.Error("the stopped engine lives")
		}
		r.served(g, "new")
		e = r.engine()
		r.host.Kill()
		e.Stop()
		r.start()
		r.served(g, "new")
		if r.m.Find(e.id.PID) != nil {
			t.Error("the stopped engine lives")
		}
	})
}

func TestHostStopped(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.host.Stop()
		r.m.Find(r.engines()[0].id.PID).Kill()
		time.Sleep(time.Minute)
		if _, err := g.count(); err != nil {
			t.Fatal(err)
		}
		r.host.Continue()
		r.served(g, "old")
	})
}

func TestEngineKilledWhileItsVolumeIsAway(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g, disk := r.attach(), r.m.disk
		r.must(disk.Mkdir("/away"))
		r.engine().Kill()
		time.Sleep(20 * time.Second)
		if d := r.device(); d.State != host.Waiting {
			t.Errorf("%+v", d)
		}
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); !errors.Is(err, host.ErrRolledBack) {
			t.Errorf("upgrade meanwhile: %v", err)
		}
		r.must(disk.Remove("/away"))
		r.served(g, "old")
	})
}

// A host that is killed while its device waits for better times does not wait for them.
func TestHostKilledWhileItsDeviceWaits(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g := r.attach()
		r.must(r.m.disk.Mkdir("/away"))
		r.engine().Kill()
		time.Sleep(20 * time.Second)
		r.host.Kill()
		g.fails(syscall.EIO)
		r.m.KillAll()
		r.m.Wait()
	})
}

func TestWithoutResend(t *testing.T) {
	bubble(t, Config{WithoutResend: true}, func(t *testing.T, r *rig) {
		g := r.attach()
		if _, err := r.client.Upgrade(t.Context(), id, "/new", nil); err != nil {
			t.Fatal(err) // nothing is unanswered then
		}
		r.served(g, "new")
		r.engine().Kill()
		g.fails(syscall.EIO)
		if d := r.device(); d.State != host.Lost {
			t.Errorf("%+v", d)
		}
	})
}

func TestGivenUp(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g, e := r.attach(), r.engine()
		r.must(r.client.GiveUp(t.Context(), id, "somebody said so"))
		if r.m.Find(e.id.PID) != nil {
			t.Error("the engine lives")
		}
		g.fails(syscall.EIO)
		if d := r.device(); d.State != host.Lost || d.Cause != "somebody said so" {
			t.Errorf("%+v", d)
		}
	})
}

func TestPowerCut(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		g, boot := r.attach(), r.m.boot()
		g.goesOn()
		r.m.PowerCut()
		g.fails(ErrPowerCut)
		if r.m.boot() == boot || len(r.m.Processes()) > 0 {
			t.Errorf("boot %s, before %s; %v", r.m.boot(), boot, r.m.Processes())
		}
		r.client = host.NewClientOn(r.m.Start("serve", idle).Network(), state)
		r.start()
		if _, err := r.client.Device(t.Context(), id); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("a device of the kernel before: %v", err)
		}
		r.served(r.attach(), "old")
	})
}

func TestSecondHostIsRefused(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, r *rig) {
		p := r.m.Start("host", idle)
		if _, err := host.New(host.Config{State: state, Machine: p.Machine()}); !errors.Is(err, host.ErrRunning) {
			t.Errorf("%v", err)
		}
	})
}

// story is a run with everything in it that a seed decides.
func story(_ *testing.T, r *rig) {
	g := r.attach()
	for n := range 3 {
		g.goesOn()
		r.engine().Kill()
		r.served(g, []string{"old", "new", "new"}[n])
		_, err := r.client.Upgrade(r.t.Context(), id, []string{"/new", "/mute", "/crashes"}[n], nil)
		r.hear(fmt.Sprint("upgrade: ", err))
		r.host.Kill()
		r.start()
		e := r.engine()
		e.Stop()
		time.Sleep(3 * time.Second)
		e.Continue()
		g.goesOn()
	}
	r.m.PowerCut()
	g.fails(ErrPowerCut)
	r.hear(fmt.Sprint(g.rounds, " rounds of the guest, the longest took ", g.longest))
}

// One seed is one history, to the nanosecond; another one is another.
func TestSeedDecidesWhatHappens(t *testing.T) {
	one(t)
	before := bubble(t, Config{Seed: 1}, story).log
	for range 3 {
		same(t, before, bubble(t, Config{Seed: 1}, story).log)
	}
	if other := bubble(t, Config{Seed: 2}, story).log; fmt.Sprint(other) == fmt.Sprint(before) {
		t.Error("another seed has the same history")
	}
	t.Logf("%d lines, the last: %s", len(before), before[len(before)-1])
}
