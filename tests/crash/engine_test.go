package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// signal sends to the engine process that serves the volume.
func (s *subject) signal(sig syscall.Signal) (pid int) {
	s.Helper()
	pid, err := s.Engine(s.Context(), s.Volume)
	if err != nil || pid == 0 {
		s.Fatalf("volume %s has no engine process: %v", s.ID, err)
	}
	s.must(sig.String(), syscall.Kill(pid, sig))
	return pid
}

// comesBack attaches, looks for what was synced, and detaches clean.
func (s *subject) comesBack() {
	s.Helper()
	s.verify(s.Volume)
	s.identical(s.Volume, "")
	s.do("attach again", s.Attach)
	s.must("what was synced", errors.Join(s.oracle.check(s.Target), s.keptIsThere()))
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.identical(s.Volume, s.fstype)
	s.do("delete", s.Delete)
	s.settled()
}

// TestDeviceLostUnderLoad: host and engine die together, so that nobody is left to keep the device. It answers errors at once, and
// the server, which lives, finishes the detach by shutting the dead writer out.
func TestDeviceLostUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i, fstype := range []string{"ext4", "xfs"} {
		s := r.subject(fmt.Sprintf("lost-%d", i), fstype, 320*mib)
		s.do("attach", s.Attach)
		s.keep()
		s.underLoad(func() {
			time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
			s.must("kill", s.KillDevice(s.Context(), s.Volume))
		})
		s.must("the device", s.answersErrors())
		s.refusedWhileStaged()
		s.finish()
		s.newest(s.Volume, receipt.Fenced)
		s.do("controller-unpublish", s.ControllerUnpublish)
		s.comesBack()
	}
}

// answersErrors wants EIO, and at once.
func (s *subject) answersErrors() error {
	path, err := s.Device(s.Volume)
	if err != nil || path == "" {
		return fmt.Errorf("volume %s has no device: %w", s.ID, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(page) }()
	if _, err := f.ReadAt(page, 0); !errors.Is(err, unix.EIO) {
		return fmt.Errorf("read of %s: %w, want EIO", path, err)
	}
	return nil
}

// refusedWhileStaged: what is published to a workload is not let go of, whatever became of its engine.
func (s *subject) refusedWhileStaged() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	if err := s.ControllerUnpublish(ctx); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), s.Target) {
		s.Fatalf("ControllerUnpublish while published at %s: %v", s.Target, err)
	}
}

// TestEngineAsleepAtHostRestart: the engine process is stopped when the host dies. The next host gets the device from it, asleep as it
// is, ends it since it does not answer, and has the next engine serve: the workload has waited, and nothing else.
func TestEngineAsleepAtHostRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("asleep", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.undisturbed(func() {
		s.must("load", orchestrator.Until(t.Context(), "the first record", func() (bool, error) { return s.oracle.synced.Load() > 0, nil }))
		pid := s.signal(syscall.SIGSTOP)
		time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
		s.asleepWithoutHost(pid)
		s.must("the device", s.serving())
		if slices.Contains(s.Processes(), pid) {
			t.Errorf("the engine process that slept, %d, is still there", pid)
		}
		before := s.oracle.synced.Load()
		s.until("more synced records", func() (bool, error) { return s.oracle.synced.Load() > before+6, nil })
	})
	s.detachesClean()
	s.do("delete", s.Delete)
	s.settled()
}

// asleepWithoutHost kills the host of an engine that is stopped. The kernel wakes a process group that is stopped when its parent dies
// (POSIX: orphaned process groups), so it is stopped again before the server, which sleeps meanwhile, can start the next host.
func (s *subject) asleepWithoutHost(engine int) {
	s.Helper()
	server := s.PID()
	s.must("stop of the server", syscall.Kill(server, syscall.SIGSTOP))
	defer func() { s.must("wake of the server", syscall.Kill(server, syscall.SIGCONT)) }()
	s.must("kill of the host", s.KillHost(s.Context()))
	s.must("stop of the engine", syscall.Kill(engine, syscall.SIGSTOP))
}

// TestEngineAsleep: an engine that does not answer is no reason to let go, and nothing times out to OK, whoever dies beside it but
// the host. Awake again, it detaches clean.
func TestEngineAsleep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("nap", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.must("write", writeFile(filepath.Join(s.Target, "file"), make([]byte, mib)))
	s.do("unpublish", s.Unpublish)
	pid := s.signal(syscall.SIGSTOP)
	s.staysAttached()
	s.kill()
	s.start()
	s.staysAttached()
	if now := s.signal(syscall.SIGCONT); now != pid {
		t.Errorf("process %d serves, and %d was asleep", now, pid)
	}
	s.finish()
	s.newest(s.Volume, receipt.Clean)
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.comesBack()
}

// staysAttached asks to let go, in vain.
func (s *subject) staysAttached() {
	s.Helper()
	for _, call := range []func(context.Context) error{s.Unstage, s.ControllerUnpublish, s.Unstage} {
		ctx, cancel := context.WithTimeout(s.Context(), 2*time.Second)
		if err := call(ctx); err == nil || status.Code(err) == codes.FailedPrecondition && !strings.Contains(err.Error(), s.ID) {
			s.Errorf("answered while the engine sleeps: %v", err)
		}
		cancel()
	}
}

// TestHostEndsWithServer: a server that stops in order leaves an attached volume to host and engine, which serve it on; the next one goes on
// with it. Without anything attached host and sockets are gone some seconds after the server.
func TestHostEndsWithServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("stop", "ext4", 64*mib)
	s.do("attach", s.Attach)
	s.keep()
	host, engine := r.Host(), s.Engines(s.Volume)
	s.undisturbed(func() {
		s.must("stop", r.Stop())
		before := s.oracle.synced.Load()
		s.until("more synced records without a server", func() (bool, error) { return s.oracle.synced.Load() > before+6, nil })
		r.start()
	})
	if r.Host() != host || !slices.Equal(s.Engines(s.Volume), engine) {
		t.Errorf("host and engine were %d and %v, are %d and %v", host, engine, r.Host(), s.Engines(s.Volume))
	}
	s.detachesClean()
	s.do("delete", s.Delete)
	s.must("stop", r.Stop())
	s.must("the host", r.HostGone(t.Context()))
	s.settled()
}
