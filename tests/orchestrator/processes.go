package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/host"
)

// Processes are those that run a program below the machine's directory: the server, its host, the engines.
func (m *Machine) Processes() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is good
	for _, exe := range names {
		if target, _ := os.Readlink(exe); strings.HasPrefix(target, m.Dir+"/") && !zombie(exe) {
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

// Host is the host process of this machine, 0 where there is none.
func (m *Machine) Host() int {
	for _, pid := range m.Processes() {
		if m.isHost(pid) {
			return pid
		}
	}
	return 0
}

// isHost says whether the process is this machine's host. A server with another state directory has another.
func (m *Machine) isHost(pid int) bool {
	line := commandLine(pid) + " "
	return strings.HasPrefix(line, "belay host ") && strings.Contains(line, " --state "+m.State()+" ")
}

// Engines are the engine processes of the volume: one, or two while it is being upgraded.
func (m *Machine) Engines(v *Volume) (pids []int) {
	for _, pid := range m.Processes() {
		if commandLine(pid) == "belay engine "+v.ID {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Engine is the engine process that serves the volume's device, 0 where none does. It is the host that says so.
func (m *Machine) Engine(ctx context.Context, v *Volume) (int, error) {
	d, err := m.Served(ctx, v)
	return d.Engine.PID, err
}

// Served is what the host says of the volume's device; engine.ErrNotFound where it has none.
func (m *Machine) Served(ctx context.Context, v *Volume) (host.Device, error) {
	return m.HostClient().Device(ctx, v.volumeID())
}

// HostClient asks the host of this machine.
func (m *Machine) HostClient() *host.Client { return host.NewClient(m.State()) }

func commandLine(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
}

// KillHost is SIGKILL to the host alone. It returns when that is dead; the server starts another. No host is no error.
func (m *Machine) KillHost(ctx context.Context) error { return killDead(ctx, m.Host()) }

// KillEngine is SIGKILL to the engine that serves the volume. It returns when that is dead; the host starts another.
func (m *Machine) KillEngine(ctx context.Context, v *Volume) error {
	pid, err := m.Engine(ctx, v)
	if err != nil {
		return err
	}
	return killDead(ctx, pid)
}

// KillEngines is SIGKILL to all engines there are, serving or not. It returns when they are dead; the host starts others.
func (m *Machine) KillEngines(ctx context.Context) error {
	var engines []int
	for _, pid := range m.Processes() {
		if strings.HasPrefix(commandLine(pid), "belay engine ") {
			engines = append(engines, pid)
		}
	}
	err := killInOrder(engines)
	for _, pid := range engines {
		err = errors.Join(err, gone(ctx, pid))
	}
	return err
}

// KillDevice is SIGKILL to both holders of the volume's device: the host, and the engine that serves it. The server lives. It returns
// when both are dead: the device is lost.
func (m *Machine) KillDevice(ctx context.Context, v *Volume) error {
	pid, err := m.Engine(ctx, v)
	if err != nil {
		return err
	}
	both := []int{m.Host(), pid} // both at once: either lives long enough without the other to be followed
	return errors.Join(killInOrder(both), gone(ctx, both[0]), gone(ctx, both[1]))
}

// KillAll is SIGKILL to the server, to the host and to all engines, as when the machine's container is ended. The server goes before
// the host and the host before the engines, since each would start the next. It returns when all are dead.
func (m *Machine) KillAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	err := Until(ctx, "the end of all processes", func() (bool, error) {
		// No wait before all have the signal: one may wait for a device of another. What was being started is found the next time.
		pids := m.Processes()
		return len(pids) == 0, killInOrder(append([]int{m.PID(), m.Host()}, pids...))
	})
	return errors.Join(err, m.Kill())
}

func killInOrder(pids []int) error {
	for _, pid := range pids {
		if pid == 0 {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// killDead returns when the process is dead; 0 is none.
func killDead(ctx context.Context, pid int) error {
	if pid == 0 {
		return nil
	}
	if err := killInOrder([]int{pid}); err != nil {
		return err
	}
	return gone(ctx, pid)
}

// gone waits until the process has ended, every thread of it. One that nobody waits for counts as ended: it holds nothing any more.
func gone(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return Until(ctx, fmt.Sprintf("the end of process %d", pid), func() (bool, error) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return n > 0, err
	})
}

// HostGone waits until the host has ended by itself, which it does some seconds after the server that it served, and looks for
// what it should have taken along.
func (m *Machine) HostGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, hostStays)
	defer cancel()
	if err := Until(ctx, "the end of the host", func() (bool, error) { return m.Host() == 0, nil }); err != nil {
		return err
	}
	return none([]string{host.SocketIn(m.State())})
}

// hostStays is longer than a host stays that nobody needs.
const hostStays = 20 * time.Second

// endHost has the host end now rather than in some seconds, in order.
func (m *Machine) endHost(ctx context.Context) error {
	pid := m.Host()
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	if err := gone(ctx, pid); err != nil {
		return err
	}
	return none([]string{host.SocketIn(m.State())})
}

// Memory is what a process takes, in MiB.
type Memory struct {
	Resident     float64 // with the pages of the program itself, which all processes of it share
	Anonymous    float64 // without them
	Proportional float64 // with its share of them
}

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	return Memory{Resident: mebibytes(status, "VmRSS:"), Anonymous: mebibytes(status, "RssAnon:"), Proportional: mebibytes(rollup, "Pss:")}, err
}

func mebibytes(text []byte, name string) float64 {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name && f[2] == "kB" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}
