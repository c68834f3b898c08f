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

// respawnAfter keeps a process that dies as soon as it starts from taking a processor.
const respawnAfter = 200 * time.Millisecond

// respawn runs this program again with the arguments, in place of the one that died, until one of them ends in order or ctx ends: then the last is
// asked to end, and waited for. The processes that they have started live on in between.
func respawn(ctx context.Context, args []string, log *slog.Logger) error {
	for {
		err := once(ctx, args)
		if err == nil {
			return nil
		}
		if _, died := errors.AsType[*exec.ExitError](err); !died || ctx.Err() != nil {
			return err
		}
		log.Error("the host died; another takes its place", "error", err)
		if pause(ctx, respawnAfter) != nil {
			return err
		}
	}
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
