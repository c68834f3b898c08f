package mirror

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// holderText says who holds a lock: "belay engine pid=12 start=345 node=n1 volume=v".
func holderText(role, node string, id volume.ID, pid int) string {
	text := fmt.Sprintf("belay %s pid=%d start=%s node=%s", role, pid, startOf(pid), node)
	if id != "" {
		text += " volume=" + string(id)
	}
	return text
}

// startOf is when the process started, in ticks since boot: with its number it names a process for ever. Empty where it is gone.
func startOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	const startField = 22 - 3 // field 22 of proc(5), counted from the one behind the name
	if f := strings.Fields(rest); len(f) > startField {
		return f[startField]
	}
	return ""
}

// bootID identifies the running kernel.
func bootID() (id quorum.UUID, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, err
	}
	return id, id.UnmarshalText([]byte(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")))
}

// holderWait bounds how long a killed holder may take to die.
const holderWait = 10 * time.Second

// endHolder ends the engine process of another parent that still holds the volume's replicas, and returns when it is
// dead. It never ends anything but the very process that wrote its name into the lock.
func (e *Engine) endHolder(ctx context.Context, id volume.ID) error {
	for _, d := range e.stores.present() {
		r, err := d.Open(id, e.holder("control", id))
		if err == nil {
			r.Close()
			continue
		}
		locked, ok := errors.AsType[*vfs.LockedError](err)
		if !ok {
			continue
		}
		if err := endProcess(ctx, locked.Holder); err != nil {
			return fmt.Errorf("%w: volume %s: %w", engine.ErrBusy, id, err)
		}
	}
	return nil
}

func endProcess(ctx context.Context, holder string) error {
	role, pid, start, ok := parseHolder(holder)
	if !ok || role != "engine" {
		return fmt.Errorf("held by %q, which is no engine process", holder)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if startOf(pid) != start {
		return nil // the number belongs to somebody else by now: the holder is dead
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	return waitDead(ctx, fd, pid)
}

func waitDead(ctx context.Context, fd, pid int) error {
	deadline := time.Now().Add(holderWait)
	for ctx.Err() == nil && time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return fmt.Errorf("process %d does not die", pid)
}

func parseHolder(text string) (role string, pid int, start string, ok bool) {
	f := strings.Fields(text)
	if len(f) < 4 || f[0] != "belay" {
		return "", 0, "", false
	}
	p, okPid := strings.CutPrefix(f[2], "pid=")
	start, okStart := strings.CutPrefix(f[3], "start=")
	pid, err := strconv.Atoi(p)
	return f[1], pid, start, okPid && okStart && err == nil && pid > 1
}
