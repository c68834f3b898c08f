package host

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/engine"
)

func TestUpgrade(t *testing.T) {
	r := newRig(t)
	r.attach()
	for _, to := range []string{"new", "old", "new"} {
		r.guest.goesOn()
		var phases []string
		u, err := r.client.Upgrade(t.Context(), id, r.program(to), func(p engine.Progress) { phases = append(phases, p.Phase) })
		if err != nil || u.To != to || u.Pause <= 0 || len(phases) == 0 {
			t.Fatalf("%+v, phases %v: %v", u, phases, err)
		}
		d := r.served(to)
		r.kill(d.Engine.PID) // what follows is of the new program
		r.served(to)
	}
	t.Logf("longest operation of the guest: %v", r.guest.longest)
}

// A program that cannot serve is rolled back, whatever is wrong with it.
func TestUpgradeIsRolledBack(t *testing.T) {
	for name, says := range map[string]string{
		"exits": "ended before it said hello", "hangs": "has not said hello", "format": "reads formats 2 to 3, the volume has 1", "protocol": "speaks protocol",
		"stuck": "has not answered", "refuses": "too few replicas", "crashes": "exit status 2", "mute": "has answered no request", "text": "exec format error",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.attach()
			program := filepath.Join(r.dir, "text")
			if name == "text" {
				r.must(os.WriteFile(program, []byte("no program"), 0o700))
			} else {
				program = r.program(name)
			}
			_, err := r.client.Upgrade(t.Context(), id, program, nil)
			if !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), says) {
				t.Errorf("%v, want it to say %q", err, says)
			}
			r.kill(r.served("old").Engine.PID) // and what follows is of the old program
			r.served("old")
			t.Logf("longest operation of the guest: %v", r.guest.longest)
		})
	}
}

// Whoever dies at whatever step: one engine serves, the old or the new one, and the guest notices nothing.
func TestDeathAtEveryStepOfAnUpgrade(t *testing.T) {
	for _, step := range []string{"started", "prepared", "yielded", "taken over", "watched"} {
		for _, whom := range []string{"host", "first", "last"} {
			t.Run(step+", "+whom, func(t *testing.T) {
				r := newRig(t, "BELAY_TEST_AT=upgrade: "+step+"|"+whom)
				r.attach()
				r.guest.goesOn()
				_, err := r.client.Upgrade(t.Context(), id, r.program("new"), nil)
				if whom == "host" {
					r.start()
				}
				r.guest.goesOn()
				d := r.device()
				if d.State != Serving {
					t.Fatalf("%s (%s)", d.State, d.Cause)
				}
				if err == nil && d.Engine.Version != "new" {
					t.Errorf("upgraded, and %s serves", d.Engine.Version)
				}
				r.served(d.Engine.Version)
				r.kill(d.Engine.PID)
				r.served(d.Engine.Version)
			})
		}
	}
}

// The same while a dead engine is replaced, and while the device is made: there nobody uses it, and nothing is left.
func TestHostKilledAtEveryStepOfATakeOver(t *testing.T) {
	for _, step := range []string{"next: started", "next: taken"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t, "BELAY_TEST_AT="+step+"|host")
			r.attach()
			r.guest.goesOn()
			host := r.host()
			r.kill(r.device().Engine.PID)
			r.dies(host)
			r.start()
			r.served("old")
		})
	}
	for _, step := range []string{"first: started", "first: taken", "first: attached"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t, "BELAY_TEST_AT="+step+"|host")
			host, answered := r.host(), make(chan error, 1)
			go func() { _, err := r.client.Attach(t.Context(), r.spec(), nil); answered <- err }()
			r.dies(host)
			r.start()
			if err := <-answered; err != nil { // asked again of the next host
				t.Fatal(err)
			}
			r.attach()
			r.served("old")
		})
	}
}

func (r *rig) dies(pid int) {
	r.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	r.must(waitDead(r.t.Context(), fd))
}

// A stopped engine does not yield. It is killed, proven dead, and what it had taken is asked again; woken up it does nothing more.
func TestUpgradeOfAStoppedEngine(t *testing.T) {
	r := newRig(t)
	r.attach()
	was := r.device().Engine
	r.must(unix.Kill(was.PID, unix.SIGSTOP))
	if _, err := r.client.Upgrade(t.Context(), id, r.program("new"), nil); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(was.PID, unix.SIGCONT); err == nil && StartOf(was.PID) == was.Start {
		t.Error("the stopped engine is still there")
	}
	r.served("new")
}

func TestUpgradeWhileNoEngineCanStart(t *testing.T) {
	r := newRig(t)
	r.attach()
	away := filepath.Join(r.dir, "away")
	r.must(os.WriteFile(away, nil, 0o600))
	r.kill(r.device().Engine.PID)
	r.becomes(Waiting)
	if _, err := r.client.Upgrade(t.Context(), id, r.program("new"), nil); !errors.Is(err, ErrRolledBack) {
		t.Errorf("while its volume is away: %v", err)
	}
	r.must(os.Remove(away))
	if _, err := r.client.Upgrade(t.Context(), id, r.program("new"), nil); err == nil {
		r.served("new")
	} else {
		r.served("old") // it was back before
	}
}
