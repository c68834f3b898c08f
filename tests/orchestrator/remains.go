package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/device"
)

// Dangling says what is there of a machine on which nothing is attached although it should not be: mounts, devices,
// processes but for the server, sockets of engines, replicas half made or half removed, stages in the journal.
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
		if pid != m.PID() {
			left = append(left, fmt.Errorf("process left: %d: %s", pid, commandLine(pid)))
		}
	}
	patterns := []string{filepath.Join(m.State(), "engines", "*"), filepath.Join(m.State(), "stages", "*")}
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

// Settled waits until nothing dangles, as far as that takes no more than a moment: an engine that lost its server ends by itself.
func (m *Machine) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var last error
	if err := Until(ctx, "the end of what dangles", func() (bool, error) { last = m.Dangling(); return last == nil, nil }); err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// Processes are those that run this machine's copy of the program.
func (m *Machine) Processes() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is good
	for _, exe := range names {
		if target, _ := os.Readlink(exe); strings.TrimSuffix(target, " (deleted)") == m.Binary && !zombie(exe) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func zombie(exe string) bool {
	stat, _ := os.ReadFile(filepath.Join(filepath.Dir(exe), "stat"))
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// Engine is the engine process of the volume, 0 where there is none.
func (m *Machine) Engine(v *Volume) int {
	for _, pid := range m.Processes() {
		if commandLine(pid) == m.Binary+" engine "+v.ID {
			return pid
		}
	}
	return 0
}

func commandLine(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
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

// Close ends everything, takes away what is left, and removes the directory. The error tells what should not have been left.
func (m *Machine) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	m.letGo(ctx)
	err := m.Stop()
	left := m.Settled(ctx)
	m.hangUp()
	if left != nil {
		m.sweep()
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

// sweep takes away by force what a failed test left.
func (m *Machine) sweep() {
	for _, pid := range m.Processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	points := m.mounts()
	slices.Reverse(points)
	for _, p := range points {
		_ = unix.Unmount(p, unix.MNT_DETACH)
	}
	devices, _ := m.devices()
	for _, d := range devices {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = device.Abort(d.Path)
		_ = device.Remove(ctx, d.Path)
		cancel()
	}
}
