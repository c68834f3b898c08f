package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
)

func TestAttachAndDetach(t *testing.T) {
	r := newRig(t)
	d := r.attach()
	if again, err := r.client.Attach(t.Context(), r.spec(), nil); err != nil || again.Path != d.Path || again.Engine.PID != d.Engine.PID {
		t.Errorf("again: %+v: %v", again, err)
	}
	r.served("old")
	if err := r.client.Detach(t.Context(), id); !errors.Is(err, device.ErrInUse) {
		t.Errorf("detach in use: %v", err)
	}
	r.served("old")
	r.guest.end()
	r.must(r.client.Detach(t.Context(), id))
	for _, err := range []error{r.client.Detach(t.Context(), id), r.client.Resize(t.Context(), id), r.client.GiveUp(t.Context(), id, "")} {
		if !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("after detach: %v", err)
		}
	}
}

func TestEngineThatCannotStartLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.program("exits")
	r.program("refuses")
	for _, name := range []string{"exits", "refuses", "no such file"} {
		s := r.spec()
		s.Executable = filepath.Join(r.dir, name)
		_, err := r.client.Attach(t.Context(), s, nil)
		if err == nil || name == "refuses" && !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := r.client.Device(t.Context(), id); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s left a device: %v", name, err)
		}
	}
	r.attach()
	r.served("old")
}

func TestEngineKilled(t *testing.T) {
	r := newRig(t)
	r.attach()
	for n := range 5 {
		r.guest.goesOn()
		r.kill(r.device().Engine.PID)
		if d := r.served("old"); d.Deaths != n+1 {
			t.Errorf("deaths %d, want %d", d.Deaths, n+1)
		}
	}
	t.Logf("longest operation of the guest: %v", r.guest.longest)
}

// Requests wait for as long as no engine can take over, and go on without an error.
func TestEngineKilledWhileItsVolumeIsAway(t *testing.T) {
	r := newRig(t)
	r.attach()
	away := filepath.Join(r.dir, "away")
	r.must(os.WriteFile(away, nil, 0o600))
	r.kill(r.device().Engine.PID)
	r.becomes(Waiting)
	r.must(os.Remove(away))
	r.served("old")
}

func (r *rig) becomes(s State) {
	r.t.Helper()
	var cursor Cursor
	ctx, cancel := context.WithCancel(r.t.Context())
	defer cancel()
	if r.device().State == s {
		return
	}
	_ = r.client.Follow(ctx, &cursor, func(Event) {
		if r.device().State == s {
			cancel()
		}
	})
}

// Where somebody newer has the volume no engine may take over, and waiting is no use.
func TestEngineKilledAndVolumeTaken(t *testing.T) {
	r := newRig(t)
	r.attach()
	r.must(os.WriteFile(filepath.Join(r.dir, "taken"), nil, 0o600))
	r.kill(r.device().Engine.PID)
	r.guest.fails()
	if d := r.device(); d.State != Lost || d.Cause == "" {
		t.Errorf("%+v", d)
	}
}

func TestGivenUp(t *testing.T) {
	r := newRig(t)
	r.attach()
	r.guest.goesOn()
	engine := r.device().Engine
	r.must(r.client.GiveUp(t.Context(), id, "somebody said so"))
	if StartOf(engine.PID) == engine.Start {
		t.Error("the engine lives")
	}
	r.guest.fails()
	r.must(r.client.GiveUp(t.Context(), id, "again"))
	if d := r.device(); d.State != Lost || d.Cause != "somebody said so" {
		t.Errorf("%+v", d)
	}
}

func TestHostKilled(t *testing.T) {
	r := newRig(t)
	r.attach()
	for range 3 {
		served := r.device().Engine.PID
		r.guest.goesOn()
		r.kill(r.host())
		r.guest.goesOn()
		r.start()
		if d := r.served("old"); d.Engine.PID != served {
			t.Error("another engine serves")
		}
		r.kill(served) // the new host looks after an engine that it did not start
		r.served("old")
	}
}

// An engine that does not answer the new host is ended, and another takes over: nobody knows what it does.
func TestHostKilledWhileTheEngineIsStopped(t *testing.T) {
	r := newRig(t)
	r.attach()
	was := r.device().Engine
	r.kill(r.host())
	r.must(unix.Kill(was.PID, unix.SIGSTOP)) // not before: the kernel wakes up whoever loses his last relative
	r.start()
	r.served("old")
	if StartOf(was.PID) == was.Start {
		t.Error("the stopped engine is still there")
	}
}

func TestHostAndEngineKilled(t *testing.T) {
	r := newRig(t)
	r.attach()
	r.guest.goesOn()
	was := r.device().Engine.PID
	r.kill(r.host())
	r.kill(was)
	r.guest.fails()
	r.start()
	if d := r.device(); d.State != Lost || d.Cause != "host and engine died together" {
		t.Errorf("%+v", d)
	}
}

func TestWithoutResend(t *testing.T) {
	r := newRig(t, "BELAY_TEST_WITHOUT_RESEND=1")
	r.attach()
	r.guest.goesOn()
	if _, err := r.client.Upgrade(t.Context(), id, r.program("new"), nil); err != nil {
		t.Fatal(err) // nothing is unanswered then
	}
	r.kill(r.served("new").Engine.PID)
	r.guest.fails()
	if d := r.device(); d.State != Lost {
		t.Errorf("%+v", d)
	}
}

// A host that is asked to end waits where a device rests on it alone.
func TestHostEndsWithoutLosingADevice(t *testing.T) {
	r := newRig(t)
	r.attach()
	away := filepath.Join(r.dir, "away")
	r.must(os.WriteFile(away, nil, 0o600))
	r.kill(r.device().Engine.PID)
	r.becomes(Waiting)
	host := r.host()
	r.must(unix.Kill(host, unix.SIGTERM))
	r.must(os.Remove(away))
	r.dies(host)
	r.guest.goesOn()
	r.start()
	r.served("old")
}

func TestSecondHostIsRefused(t *testing.T) {
	r := newRig(t)
	if _, err := New(Config{State: r.state()}); !errors.Is(err, ErrRunning) {
		t.Errorf("%v", err)
	}
}

// An engine that dies while its first device is made is not waited for: the kernel would hold up every other device of the machine.
// The next call makes the device.
func TestEngineDiesWhileItsDeviceIsMade(t *testing.T) {
	for _, step := range []string{"first: started", "first: taken"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t, "BELAY_TEST_AT="+step+"|last")
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := r.client.Attach(ctx, r.spec(), nil); !errors.Is(err, engine.ErrUnavailable) {
				t.Fatalf("%v, want %v", err, engine.ErrUnavailable)
			}
			r.attach()
			r.served("old")
		})
	}
}
