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

// signal sends to the volume's engine process.
func (s *subject) signal(sig syscall.Signal) (pid int) {
	s.Helper()
	if pid = s.Engine(s.Volume); pid == 0 {
		s.Fatalf("volume %s has no engine process", s.ID)
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

// TestEngineKilledUnderLoad: only the engine process dies. Its device answers errors at once, and the server, which lives,
// finishes the detach by shutting the dead writer out.
func TestEngineKilledUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for i, fstype := range []string{"ext4", "xfs"} {
		s := r.subject(fmt.Sprintf("engine-%d", i), fstype, 320*mib)
		s.do("attach", s.Attach)
		s.keep()
		s.underLoad(func() {
			time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
			s.signal(syscall.SIGKILL)
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

// TestEngineAsleepAtRestart: the engine process is stopped when the server dies, so that it does not see that. The next server
// ends this very process, known by what it wrote into its locks: what waits for its device could not end otherwise.
func TestEngineAsleepAtRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("asleep", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.underLoad(func() {
		// The load must be under way: what waits for the device then cannot be unpublished before it answers.
		s.must("load", orchestrator.Until(t.Context(), "the first record", func() (bool, error) { return s.oracle.synced.Load() > 0, nil }))
		time.Sleep(time.Duration(r.random.Int64N(int64(killWithin))))
		pid := s.signal(syscall.SIGSTOP)
		s.kill()
		s.start()
		s.finish()
		if slices.Contains(s.Processes(), pid) {
			t.Errorf("the engine process of the server before, %d, is still there", pid)
		}
	})
	s.newest(s.Volume, receipt.Fenced)
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.comesBack()
}

// TestEngineAsleep: an engine that does not answer is no reason to let go, and nothing times out to OK. Awake again, it detaches clean.
func TestEngineAsleep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.subject("nap", "ext4", 128*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.must("write", writeFile(filepath.Join(s.Target, "file"), make([]byte, mib)))
	s.do("unpublish", s.Unpublish)
	s.signal(syscall.SIGSTOP)
	for _, call := range []func(context.Context) error{s.Unstage, s.ControllerUnpublish, s.Unstage} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if err := call(ctx); err == nil || status.Code(err) == codes.FailedPrecondition && !strings.Contains(err.Error(), s.ID) {
			t.Errorf("answered while the engine sleeps: %v", err)
		}
		cancel()
	}
	s.signal(syscall.SIGCONT)
	s.finish()
	s.newest(s.Volume, receipt.Clean)
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.comesBack()
}
