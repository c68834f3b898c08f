package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// killWithin is the window in which the kill comes, counted from the start of the load.
const killWithin = 1200 * time.Millisecond

// subject is a volume, what was written to it, and what of that must be there.
type subject struct {
	*rig
	*orchestrator.Volume
	fstype string
	oracle *oracle
	kept   int // seed of the fio run whose data was synced; 0: none yet
}

// TestAllKilledUnderLoad kills the server, the host and the engines, as when the machine's container is ended, while fio and a
// writer of our own write, sync and read back. Nobody is left to keep the device, so that it answers errors; what was synced is there.
func TestAllKilledUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	subjects := r.subjects("all")
	n := kills(t, 8, fullKills/2)
	began := time.Now()
	for i := range n {
		s := subjects[i%len(subjects)]
		after := time.Duration(r.random.Int64N(int64(killWithin)))
		whom := killed[r.random.IntN(len(killed))]
		restarts := s.round(after, whom.kill)
		t.Logf("kill %3d: %-4s %-20s %4d ms after the load began; %d records synced so far; killed %d times more while it started",
			i+1, s.fstype, whom.name, after.Milliseconds(), s.oracle.synced.Load(), restarts)
	}
	r.done(subjects)
	t.Logf("%d kills in %v", n, time.Since(began).Round(time.Second))
}

// subjects are one volume for each filesystem.
func (r *rig) subjects(name string) []*subject {
	r.Helper()
	return []*subject{r.subject(name+"-ext4", "ext4", 128*mib), r.subject(name+"-xfs", "xfs", 320*mib)}
}

// done deletes them, and wants nothing left.
func (r *rig) done(subjects []*subject) {
	r.Helper()
	for _, s := range subjects {
		s.do("delete", s.Delete)
		if s.oracle.synced.Load() == 0 {
			r.Errorf("nothing was ever synced on %s: the test has shown nothing", s.fstype)
		}
	}
	r.settled()
}

func (r *rig) subject(name, fstype string, size int64) *subject {
	r.Helper()
	return &subject{
		rig: r, fstype: fstype, oracle: newOracle(r.random.Uint64()),
		Volume: r.create(orchestrator.Spec{Name: name, Size: size, FSType: fstype}),
	}
}

// killed are who dies where nobody is left. An engine that outlives the server and the host finishes what it has begun; where
// all die at once writes are cut off half-way between the stores.
var killed = []struct {
	name string
	kill func(*subject) error
}{
	{"server, then the rest", func(s *subject) error { return errors.Join(s.Kill(), s.KillAll()) }},
	{"server and host first", func(s *subject) error { return errors.Join(s.Kill(), s.KillHost(s.Context()), s.KillAll()) }},
	{"all at once", func(s *subject) error { return s.KillAll() }},
	{"all at once", func(s *subject) error { return s.KillAll() }}, // half of the time
}

// restart starts the server, and kills it now and then while it starts.
func (s *subject) restart() (killed int) {
	s.Helper()
	for s.random.IntN(3) == 0 {
		s.must("start", s.Launch())
		time.Sleep(time.Duration(s.random.Int64N(int64(startTakes))))
		s.kill()
		killed++
	}
	s.start()
	return killed
}

// startTakes is how long a start takes, about.
const startTakes = 200 * time.Millisecond

// round is one kill and everything that must hold after it.
func (s *subject) round(after time.Duration, kill func(*subject) error) (restarts int) {
	s.Helper()
	s.do("attach", s.Attach)
	s.keep()
	s.underLoad(func() { time.Sleep(after); s.must("kill", kill(s)) })
	restarts = s.restart()
	s.finish()
	s.complete(s.newest(s.Volume, receipt.Fenced))
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.verify(s.Volume)
	s.identical(s.Volume, "")

	s.do("attach after the kill", s.Attach)
	s.must("what was synced", errors.Join(s.oracle.check(s.Target), s.keptIsThere()))
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.verify(s.Volume)
	s.identical(s.Volume, s.fstype)
	s.settled()
	return restarts
}

// complete wants every replica in sync: a process that dies has no reason to exclude any.
func (s *subject) complete(r receipt.Receipt) {
	s.Helper()
	for _, e := range r.Evidence {
		if e.State != engine.InSync || !e.Durable || !e.Digest.Equal(r.Expected) {
			s.Fatalf("volume %s: replica %s at %s is %s (%s), durable: %v", s.ID, e.ID, e.Place, e.State, e.Error, e.Durable)
		}
	}
}

// finish is the way out up to the receipt. Now and then kubelet forgets its part, and it is finished from the stage journal.
func (s *subject) finish() {
	s.Helper()
	s.eventually("unpublish", s.Unpublish)
	if s.random.IntN(4) == 0 {
		s.eventually("controller-unpublish of what kubelet forgot", s.ControllerUnpublish)
		return
	}
	s.eventually("unstage", s.Unstage)
}

// underLoad runs do under load, and returns when the load has ended by it.
func (s *subject) underLoad(do func()) {
	s.Helper()
	stop := make(chan struct{})
	ends := make(chan error, 2)
	go func() { _ = s.oracle.run(s.Target, stop); ends <- nil }() // it ends with the device
	go func() { ends <- s.load() }()
	do()
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	for range cap(ends) {
		select {
		case err := <-ends:
			s.must("load", err)
		case <-ctx.Done():
			s.hung(ctx)
			close(stop)
			s.Fatal("the load hangs: the device does not answer errors")
		}
	}
}

// fio runs a job on a file of the volume.
func (s *subject) fio(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.Context(), 2*callWithin)
	defer cancel()
	args = append([]string{
		"--name=" + name, "--filename=" + filepath.Join(s.Target, name), "--bs=4k", "--ioengine=libaio", "--iodepth=8",
		"--verify=crc32c", "--verify_state_save=0", "--rw=randwrite", "--eta=never",
	}, args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Dir = s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.CombinedOutput()
	return string(out), errors.Join(err, ctx.Err())
}

func makeFile(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// load writes and verifies what it wrote until the device fails. Errors of the device are what it is for; content that
// is wrong is not.
func (s *subject) load() error {
	// The file is made here: a fio that opens it late must not make one where the volume was unmounted meanwhile.
	if err := makeFile(filepath.Join(s.Target, "load"), 8*mib); err != nil {
		return nil //nolint:nilerr // the device went away before the load began
	}
	out, err := s.fio("load", "--allow_file_create=0", "--size=8m", "--time_based", "--runtime=60", "--verify_backlog=128", "--fsync=16",
		"--direct="+[]string{"0", "1"}[s.oracle.churn.next%2])
	if err == nil {
		return errors.New("fio ended without an error although the device went away under it")
	}
	if strings.Contains(out, "disallowed by allow_file_create") {
		return nil // it came too late
	}
	if strings.Contains(out, "verify:") || !strings.Contains(out, "err=") {
		return fmt.Errorf("fio: %w: %s", err, out)
	}
	return nil
}

const keptSize = "--size=2m"

// keep writes and syncs what keptIsThere wants back.
func (s *subject) keep() {
	s.Helper()
	s.kept = 1 + s.random.IntN(1<<30)
	out, err := s.fio("kept", keptSize, "--direct=1", "--do_verify=0", "--end_fsync=1", fmt.Sprintf("--randseed=%d", s.kept))
	if err != nil {
		s.Fatalf("fio: %v: %s", err, out)
	}
}

func (s *subject) keptIsThere() error {
	if _, err := os.Stat(filepath.Join(s.Target, "kept")); err != nil {
		return err
	}
	out, err := s.fio("kept", keptSize, "--direct=1", "--verify_only", fmt.Sprintf("--randseed=%d", s.kept))
	if err != nil {
		return fmt.Errorf("fio, what was kept: %w: %s", err, out)
	}
	return nil
}
