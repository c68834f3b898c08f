package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"
)

// Pace of respawn. One that dies as soon as it starts must not take a processor, nor fill the log; but an engine that dies while there is none takes its
// device along, so that it is never long.
const (
	respawnAfter = 200 * time.Millisecond
	respawnMost  = 2 * time.Second
)

// respawn runs this program again with the arguments, in place of the one that died, until one of them ends in order or ctx ends: then the last is
// asked to end, and waited for. The processes that they have started live on in between.
func respawn(ctx context.Context, args []string, log *slog.Logger) error {
	for wait := time.Duration(0); ; {
		began := time.Now()
		err := once(ctx, args)
		if err == nil {
			return nil
		}
		if _, died := errors.AsType[*exec.ExitError](err); !died || ctx.Err() != nil {
			return err
		}
		wait = nextWait(wait, time.Since(began))
		log.Error("the host died; another takes its place", "error", err, "in", wait)
		if pause(ctx, wait) != nil {
			return err
		}
	}
}

// nextWait is how long to wait after a process that lived for so long; it was waited before that one for last.
func nextWait(last, lived time.Duration) time.Duration {
	if lived > respawnMost {
		return respawnAfter
	}
	return min(max(2*last, respawnAfter), respawnMost)
}

func once(ctx context.Context, args []string) error {
	c := exec.CommandContext(ctx, self, args...)
	c.Args[0] = "belay"
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to the group is told by us, once
	if err := c.Run(); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	return nil
}

// without returns args without the flag.
func without(args []string, flag string) []string {
	return slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == flag || a == flag+"=true" })
}
