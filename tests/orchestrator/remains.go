package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/device"
)

// Dangling says what is there of a machine on which nothing is attached although it should not be: mounts, devices, engines and
// what a host keeps of them, replicas half made or half removed, stages in the journal. The server may be there, and while it is,
// or was a moment ago, its host.
func (m *Machine) Dangling() error {
	var left []error
	for _, p := range m.mounts() {
		left = append(left, fmt.Errorf("still mounted: %s", p))
	}
	devices, err := m.devices()
	for _, d := range devices {
		left = append(left, fmt.Errorf("device left: %s of %s", d.Path, d.Volume))
	}
	for _, pid := range m.Processes() {
		if pid != m.PID() && !m.isHost(pid) {
			left = append(left, fmt.Errorf("process left: %d: %s", pid, commandLine(pid)))
		}
	}
	patterns := []string{
		filepath.Join(m.State(), "engines", "*"), filepath.Join(m.State(), "stages", "*"), filepath.Join(m.State(), "host", "devices", "*"),
	}
	for _, s := range m.Stores {
		patterns = append(patterns, filepath.Join(s, "incoming", "*"), filepath.Join(s, "trash", "*"))
	}
	return errors.Join(append(left, err, none(patterns))...)
}

func none(patterns []string) error {
	var left []error
	for _, p := range patterns {
		names, err := filepath.Glob(p)
		left = append(left, err)
		for _, n := range names {
			left = append(left, fmt.Errorf("left: %s", n))
		}
	}
	return errors.Join(left...)
}

// Settled waits until nothing dangles, as far as that takes no more than a moment.
func (m *Machine) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var last error
	if err := Until(ctx, "the end of what dangles", func() (bool, error) { last = m.Dangling(); return last == nil, nil }); err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// suffix is what the names of this installation's devices end in; "" where it never started.
func (m *Machine) suffix() string {
	installation, err := os.ReadFile(filepath.Join(m.State(), "installation"))
	if err != nil || len(installation) < 8 {
		return ""
	}
	return "@" + string(installation[:8])
}

// devices are the block devices of this installation.
func (m *Machine) devices() ([]device.Leftover, error) {
	suffix := m.suffix()
	if suffix == "" {
		return nil, nil
	}
	all, err := device.Leftovers()
	return slices.DeleteFunc(all, func(l device.Leftover) bool { return !strings.HasSuffix(l.Volume, suffix) }), err
}

// Device is the path of the volume's block device, "" where it has none.
func (m *Machine) Device(v *Volume) (string, error) {
	all, err := m.devices()
	for _, l := range all {
		if l.Of(v.ID + m.suffix()) {
			return l.Path, nil
		}
	}
	return "", err
}

// mounts are the mount points below the machine's directory, the deepest last.
func (m *Machine) mounts() (points []string) {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], filepath.Join(m.Dir, "mounts")+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// MountOf is the number of the mount that has the path, which is no other's for as long as the kernel runs.
func MountOf(path string) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID_UNIQUE, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		err = unix.ENOSYS // Linux before 6.8
	}
	if err != nil {
		return 0, fmt.Errorf("mount of %s: %w", path, err)
	}
	return st.Mnt_id, nil
}

// Close ends everything, takes away what is left, and removes the directory. The error tells what should not have been left.
func (m *Machine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.letGo(ctx)
	err := m.Stop()
	left := m.Settled(ctx)
	if left == nil {
		left = m.endHost(ctx)
	}
	m.hangUp()
	if left != nil {
		left = errors.Join(left, m.sweep())
	}
	m.log.Close()
	return errors.Join(err, left, os.RemoveAll(m.Dir))
}

// letGo detaches what is still attached, as far as that goes.
func (m *Machine) letGo(ctx context.Context) {
	if m.server == nil || m.server.Process.Signal(syscall.Signal(0)) != nil {
		return
	}
	for _, v := range m.volumes {
		_ = v.Unpublish(ctx)
		_ = v.Unstage(ctx)
	}
}

// sweep takes away by force what a failed test left. The error tells what could not be.
func (m *Machine) sweep() error {
	err := m.KillAll()
	points := m.mounts()
	slices.Reverse(points)
	for _, p := range points {
		_ = unix.Unmount(p, unix.MNT_DETACH)
	}
	devices, _ := m.devices()
	for _, d := range devices {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = d.Abort()
		var last error // the kernel lets go of a filesystem some time after its unmount
		if Until(ctx, "the end of "+d.Path, func() (bool, error) { last = d.Remove(ctx); return last == nil, nil }) != nil {
			err = errors.Join(err, last)
		}
		cancel()
	}
	return err
}
