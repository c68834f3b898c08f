package crash

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// death is that of some of the processes, of which the host or an engine is left at every moment: no device goes.
type death struct {
	name string
	kill func(*subject) error
}

var deaths = []death{
	{"server", func(s *subject) error { return errors.Join(s.Kill(), s.Start(s.Context())) }},
	{"server, while it starts", func(s *subject) error { s.kill(); s.restart(); return nil }},
	{"host", func(s *subject) error { return s.KillHost(s.Context()) }},
	{"engine", func(s *subject) error { return s.KillEngine(s.Context(), s.Volume) }},
	{"server and host", func(s *subject) error {
		return errors.Join(s.Kill(), s.KillHost(s.Context()), s.Start(s.Context()))
	}},
	{"server and engine", func(s *subject) error {
		return errors.Join(s.Kill(), s.KillEngine(s.Context(), s.Volume), s.Start(s.Context()))
	}},
	{"host, and the engine once the next host has it", func(s *subject) error {
		return errors.Join(s.KillHost(s.Context()), s.serving(), s.KillEngine(s.Context(), s.Volume))
	}},
	{"engine, and the host once the next engine serves", func(s *subject) error {
		return errors.Join(s.KillEngine(s.Context(), s.Volume), s.serving(), s.KillHost(s.Context()))
	}},
	{"engine, three times", func(s *subject) error {
		for range 3 {
			if err := errors.Join(s.KillEngine(s.Context(), s.Volume), s.serving()); err != nil {
				return err
			}
		}
		return nil
	}},
}

// TestKillUnderLoad kills the server, the host, or an engine, again and again, while fio and a writer of our own write, sync and
// read back. Nobody notices: no operation fails, the filesystem is never unmounted, and the detach is clean.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	subjects := r.subjects("kill")
	n := kills(t, 4, fullKills/3)
	began := time.Now()
	for i := range n {
		s := subjects[i%len(subjects)]
		s.do("attach", s.Attach)
		s.keep()
		mounted := s.mount()
		s.undisturbed(func() {
			for _, k := range r.random.Perm(len(deaths))[:3] {
				d := deaths[k]
				time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
				s.must(d.name+" killed", d.kill(s))
				s.must("the device", s.serving())
				t.Logf("round %3d: %-4s %s killed; %d records synced so far", i+1, s.fstype, d.name, s.oracle.synced.Load())
			}
		})
		if now := s.mount(); now != mounted {
			t.Errorf("mounted anew: was mount %d, is %d", mounted, now)
		}
		s.detachesClean()
	}
	r.done(subjects)
	t.Logf("%d rounds of 3 deaths in %v", n, time.Since(began).Round(time.Second))
}

// serving waits until the volume's device is served by an engine that lives: a host may not have noticed yet that one is dead.
func (s *subject) serving() error {
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	var last error
	err := orchestrator.Until(ctx, "an engine that serves "+s.ID, func() (bool, error) {
		d, err := s.Served(ctx, s.Volume)
		last = err
		if err == nil && (d.State != host.Serving || !slices.Contains(s.Engines(s.Volume), d.Engine.PID)) {
			last = fmt.Errorf("%s: engine %d: %s", d.State, d.Engine.PID, d.Cause)
		}
		return last == nil, nil
	})
	if err != nil {
		s.hung(ctx)
		return errors.Join(err, last)
	}
	return nil
}

// detachesClean detaches a volume whose workload has noticed nothing, and attaches it once more to look for what was written.
func (s *subject) detachesClean() {
	s.Helper()
	s.must("what was written", s.oracle.check(s.Target))
	for range 2 {
		s.do("detach", s.Detach)
		s.complete(s.newest(s.Volume, receipt.Clean))
		s.verify(s.Volume)
		s.identical(s.Volume, s.fstype)
		s.settled()
		s.do("attach again", s.Attach)
		s.must("what was synced", errors.Join(s.oracle.check(s.Target), s.keptIsThere()))
	}
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
}

// undisturbed runs do under a load that must not see an error, and then lets the load finish and verify what it wrote.
func (s *subject) undisturbed(do func()) {
	s.Helper()
	stop := make(chan struct{})
	ends := make(chan error, 2)
	go func() { ends <- s.oracle.run(s.Target, stop) }()
	go func() { ends <- s.fioUntil(stop) }()
	defer func() {
		close(stop)
		s.ended(ends)
	}()
	do()
}

// ended waits for the load, and wants no error of it.
func (s *subject) ended(ends <-chan error) {
	s.Helper()
	late := time.After(callWithin)
	for range cap(ends) {
		select {
		case err := <-ends:
			s.must("load", err)
		case <-late:
			done, cancel := context.WithCancel(s.Context())
			cancel()
			s.hung(done)
			s.Fatal("the load hangs")
		}
	}
}

// fioUntil writes, syncs, reads back and compares, over and over. fio itself looks at the last run whole.
func (s *subject) fioUntil(stop <-chan struct{}) error {
	for i := 0; !closed(stop); i++ {
		out, err := s.fio("undisturbed", "--size=4m", "--verify_backlog=128", "--fsync=16", "--do_verify=1", "--verify_fatal=1",
			fmt.Sprintf("--randseed=%d", i+1), fmt.Sprintf("--direct=%d", i%2))
		if err != nil {
			return fmt.Errorf("fio: %w: %s", err, out)
		}
	}
	return nil
}

// mount names the mount that the workload has, for ever: unmounted and mounted again it is another.
func (s *subject) mount() uint64 {
	s.Helper()
	id, err := orchestrator.MountOf(s.Target)
	s.must("mount", err)
	return id
}

// TestDeathsWhileIdle: where nothing is written, nothing is noticed either, whoever dies in whatever order.
func TestDeathsWhileIdle(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("idle", "ext4", 64*mib)
	s.do("attach", s.Attach)
	s.keep()
	for _, d := range deaths {
		before := s.Engines(s.Volume)
		s.must(d.name+" killed", d.kill(s))
		s.must("the device", s.serving())
		s.must("what was kept", s.keptIsThere())
		now := s.Engines(s.Volume)
		if dies := slices.Contains([]string{"server", "server, while it starts", "host", "server and host"}, d.name); dies != slices.Equal(before, now) {
			t.Errorf("%s killed: engines were %v, are %v", d.name, before, now)
		}
	}
	s.must("write", writeFile(filepath.Join(s.Target, "file"), make([]byte, mib)))
	s.do("detach", s.Detach)
	s.complete(s.newest(s.Volume, receipt.Clean))
	s.verify(s.Volume)
	s.identical(s.Volume, s.fstype)
	s.do("delete", s.Delete)
	s.settled()
}
