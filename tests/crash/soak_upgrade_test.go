package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// upgrade has another program serve the volume. at is told each phase as it begins.
func (s *soak) upgrade(program string, at func(phase string)) (host.Upgrade, error) {
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	last := ""
	u, err := s.HostClient().Upgrade(ctx, volume.ID(s.ID), program, func(p engine.Progress) {
		if p.Phase != last {
			last = p.Phase
			at(p.Phase)
		}
	})
	s.hung(ctx)
	return u, err
}

// phases of an upgrade, and how long each may take.
var phases = []struct {
	name  string
	takes time.Duration
}{
	{"start", 60 * time.Millisecond}, // the new engine is started and checked
	{"drain", 40 * time.Millisecond}, // requests are held, and the engines change places
	{"watch", 3 * time.Second},       // the new one serves, the old one stands by
}

// TestSoakUpgrade changes engines in order: to another program and back.
func TestSoakUpgrade(t *testing.T) {
	onEach(t, "upgraded", soakTimes(t, 4, 1), func(s *soak, i int) {
		var from time.Time
		to := s.program([]string{"next", "previous"}[i%2])
		u, err := s.upgrade(to, func(phase string) {
			switch phase {
			case "drain":
				from = time.Now()
			case "watch":
				s.pause("planned upgrade", from)
			}
		})
		s.must("upgrade", err)
		s.must("the device", s.serving())
		s.account("planned upgrade", u.Pause)
		s.one(to)
	})
}

// program makes a program that the engine can be upgraded to: a copy, so that it is another file.
func (r *rig) program(name string) (path string) {
	r.Helper()
	path = r.Dir + "/" + name
	if _, err := os.Stat(path); err != nil {
		r.must("copy", orchestrator.CopyProgram(path, r.Binary))
	}
	return path
}

// one wants one engine process, which serves and runs the program; "" is any.
func (s *soak) one(program string) {
	s.Helper()
	var pids []int
	s.until("one engine process", func() (bool, error) { pids = s.Engines(s.Volume); return len(pids) == 1, nil })
	serving, err := s.Engine(s.Context(), s.Volume)
	s.must("engine", err)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", serving))
	s.must("its program", err)
	if serving != pids[0] || program != "" && exe != program {
		s.Fatalf("engine %d serves (%s), there is %v; want %s", serving, exe, pids, program)
	}
}

// TestSoakKilledDuringUpgrade kills the old engine, the new one, or the host at a random instant of each phase of an upgrade.
func TestSoakKilledDuringUpgrade(t *testing.T) {
	victims := []string{"old", "new", "host"}
	n := len(victims) * len(phases)
	onEach(t, "cut", soakTimes(t, n, 1), func(s *soak, i int) {
		i = 2*i + s.index
		victim, phase := victims[i%len(victims)], phases[i/len(victims)%len(phases)]
		s.event(fmt.Sprintf("upgrade, %s killed at %s", victim, phase.name), func() {
			err := s.cut(victim, phase.name, time.Duration(s.random.Int64N(int64(phase.takes))))
			s.Logf("%s: %s killed at %s: %v", s.fstype, victim, phase.name, err)
		})
		s.one("")
		s.holds()
	})
}

// cut upgrades, and kills at an instant after a phase has begun. It returns what became of the upgrade, which may end either way.
func (s *soak) cut(victim, phase string, after time.Duration) error {
	s.Helper()
	old, err := s.Engine(s.Context(), s.Volume)
	s.must("engine", err)
	var killing sync.WaitGroup
	_, err = s.upgrade(s.program("next"), func(now string) {
		if now == phase {
			killing.Go(func() { time.Sleep(after); s.killVictim(victim, old) })
		}
	})
	killing.Wait()
	if err != nil && !errors.Is(err, host.ErrRolledBack) && !errors.Is(err, wire.ErrLost) && !errors.Is(err, wire.ErrNotRunning) {
		s.Errorf("%s killed at %s: %v", victim, phase, err)
	}
	return err
}

// killVictim kills without looking whether it is there: it may be too early or too late.
func (s *soak) killVictim(victim string, old int) {
	switch victim {
	case "host":
		_ = s.KillHost(s.Context())
	case "old":
		_ = syscall.Kill(old, syscall.SIGKILL)
	default:
		for _, pid := range s.Engines(s.Volume) {
			if pid != old {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// TestStoppedEngineCannotWrite: the old engine is stopped in the middle of its work, with requests that it has taken and not answered. The
// upgrade does not wait for it: it is ended before anybody takes its place, so that nothing of it reaches the volume when it is
// woken, be it before, in the middle or after. What it had taken is done by the new one.
func TestStoppedEngineCannotWrite(t *testing.T) {
	resent := stoppedEngines(t, soakTimes(t, 2, 0.05))
	for round := 1; resent == 0 && round < 15; round++ { // the signal came between two requests, which is luck
		t.Logf("no stopped engine had a request in its hands: again, round %d", round+1)
		resent = stoppedEngines(t, 2)
	}
	if resent == 0 {
		t.Error("no stopped engine had a request in its hands: the test has shown nothing")
	}
}

// stoppedEngines stops so many engines, upgrades past them, and returns how many requests they had in their hands.
func stoppedEngines(t *testing.T, times int) (resent uint64) {
	t.Helper()
	onEach(t, "stopped", times, func(s *soak, i int) {
		end := s.crowd()
		defer end()
		old := s.signal(syscall.SIGSTOP)
		s.asleep(old)
		s.event("old engine stopped, upgrade", func() { s.passBy(old, (i+s.index)%2 == 1) })
		if err := syscall.Kill(old, syscall.SIGCONT); err == nil && !isZombie(old) {
			s.Errorf("the engine that was stopped, %d, lives", old)
		}
		s.one(s.program("next"))
		n := s.resent()
		resent += n
		s.Logf("%s: %d requests that the stopped engine had taken were done by the next one", s.fstype, n)
	})
	return resent
}

// passBy upgrades past an engine that is stopped, and may wake it at some instant of that.
func (s *soak) passBy(old int, wake bool) {
	s.Helper()
	var waking sync.WaitGroup
	if wake {
		after := time.Duration(s.random.Int64N(int64(4 * time.Second)))
		waking.Go(func() { time.Sleep(after); _ = syscall.Kill(old, syscall.SIGCONT) })
	}
	_, err := s.upgrade(s.program("next"), func(string) {})
	s.must("upgrade", err)
	waking.Wait()
}

// crowd has many write at once, and nobody of them waits for a flush, which they would share: so the engine has writes in its hands at
// almost any moment.
func (s *soak) crowd() (end func()) {
	s.Helper()
	var writers []*prober
	for i := range 16 {
		writers = append(writers, s.probeFile(fmt.Sprintf("crowd-%d", i), 0))
	}
	s.until("the crowd is there", func() (bool, error) {
		return !slices.ContainsFunc(writers, func(p *prober) bool { return p.count() < 10 }), nil
	})
	return func() {
		s.Helper()
		for _, p := range writers {
			_, err := p.finish()
			s.must("one of the crowd", err)
		}
	}
}

// asleep returns once the process has stopped and the guest waits for it.
func (s *soak) asleep(pid int) {
	s.Helper()
	s.until("the process stops", func() (bool, error) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(rest, "T"), err
	})
	before := s.prober.count()
	time.Sleep(100 * time.Millisecond)
	if s.prober.count() > before+1 {
		s.Fatalf("the engine is stopped, and the guest is answered")
	}
}

// resent is how many requests the engine got that the one before had taken and not answered.
func (s *soak) resent() uint64 {
	s.Helper()
	d, err := s.Served(s.Context(), s.Volume)
	s.must("device", err)
	type pulse struct{ Resent uint64 }
	p, err := wire.Call[pulse, struct{}](s.Context(), wire.NewClient(d.Engine.Socket, host.Codes), "host/pulse", struct{}{}, nil)
	s.must("pulse", err)
	return p.Resent
}

func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return err != nil || strings.HasPrefix(rest, "Z")
}

// badEngines are versions that must be rolled back, and what the answer must say of each.
var badEngines = map[string]string{
	"text": "exec format error", "forbidden": "permission denied", "exits": "ended before it said hello", "hangs": "has not said hello", "garbage": "is no hello",
	"protocol": "speaks protocol 99", "format": "reads formats 1000 to 1001", "refuses": "finds no replica", "stuck": "has not answered",
	"breaks": "exit status 2", "young": "exit status 2", "mute": "has answered no request",
}

// TestUpgradeToABadEngine: a version that does not start, ends, hangs or crashes at whatever point, or speaks another protocol or
// format, is rolled back. The old one serves on, the answer says what was wrong, and the guest has waited at most.
func TestUpgradeToABadEngine(t *testing.T) {
	dir := t.TempDir()
	needsRoot(t)
	if err := build("tests/crash/badengine", dir+"/bad"); err != nil {
		t.Fatal(err)
	}
	names := sorted(badEngines)
	rounds := soakTimes(t, 1, 0.005)
	onEach(t, "bad", rounds*len(names), func(s *soak, i int) {
		name := names[(2*i+s.index)%len(names)]
		s.event("upgrade to one that is bad: "+name, func() {
			a, err := s.Ask(s.Context(), "upgrade", s.ID, "--to", s.badProgram(dir, name))
			s.must("belay upgrade", err)
			if a.Code != 1 || !strings.Contains(a.Stdout, "NOT upgraded") || !strings.Contains(a.Stdout, badEngines[name]) {
				s.Errorf("upgrade to %s: exit code %d, want %q: %s%s", name, a.Code, badEngines[name], a.Stdout, a.Stderr)
			}
		})
		s.one(s.Binary)
		s.holds()
	})
}

func (s *soak) badProgram(dir, name string) string {
	s.Helper()
	path := s.Dir + "/" + name
	switch _, err := os.Stat(path); {
	case err == nil:
	case name == "text":
		s.must("write", os.WriteFile(path, []byte("no program\n"), 0o700))
	case name == "forbidden":
		s.must("write", os.WriteFile(path, []byte("no program\n"), 0o600))
	default:
		s.must("copy", orchestrator.CopyProgram(path, dir+"/bad"))
	}
	return path
}
