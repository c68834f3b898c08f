package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StartOf is when the process started, in ticks since boot: with its number it names a process for ever. Empty where it is dead, whether its parent knows or not.
func StartOf(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	const nameEnd, state, start = ") ", 0, 22 - 3 // fields 3 and 22 of proc(5), counted from the one behind the name
	at := strings.LastIndex(string(stat), nameEnd)
	f := strings.Fields(string(stat)[at+len(nameEnd):])
	if at < 0 || len(f) <= start || f[state] == "Z" || f[state] == "X" {
		return ""
	}
	return f[start]
}

// openPid opens the process that started then. ErrGone where it is no more, whoever has its number now.
func openPid(id Identity) (*os.File, error) {
	fd, err := unix.PidfdOpen(id.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", id.PID, err)
	}
	// Read after the open: where the number had passed on before it, the start differs.
	if StartOf(id.PID) != id.Start {
		unix.Close(fd)
		return nil, ErrGone
	}
	return os.NewFile(uintptr(fd), "process"), nil
}

// End kills the process that started then, and returns when it is dead: nothing of it runs any more. One that is gone already, whoever has its
// number now, is no error.
func End(ctx context.Context, pid int, start string) error {
	p, err := openPid(Identity{pid, start})
	if errors.Is(err, ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if err := unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	if err := waitDead(ctx, int(p.Fd())); err != nil {
		return fmt.Errorf("process %d does not die: %w", pid, err)
	}
	return nil
}

// waitDead returns when the process has ended: nothing of it runs any more, its locks and descriptors are closed.
func waitDead(ctx context.Context, fd int) error {
	const pollMilliseconds = 100
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, pollMilliseconds)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return context.Cause(ctx)
}

// killWithin bounds how long a killed process may take to die: one that waits for a disk does not before the disk answers.
const killWithin = time.Minute
