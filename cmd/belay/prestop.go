package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/wire"
)

const prestopLong = `Wait until it is safe to end a role on this machine: for the preStop hook of its container.

"prestop host" waits until no volume is staged on this machine any more, since the death of host and engines takes devices away.
"prestop node" returns at once, but where the host is being stopped too, as when the machine shuts down: somebody must unstage then, so it waits as well.

It waits for as long as the supervisor lets it.`

const prestopExample = `  belay prestop host
  belay prestop node --state /var/lib/belay`

// Pace of prestop. settle is how long "prestop node" looks whether the host is being stopped: a supervisor stops both at about the same time. patience
// is how long a host may be silent: the next one may have many engines to take over before it answers.
const (
	prestopEvery    = 500 * time.Millisecond
	prestopSettle   = 3 * time.Second
	prestopPatience = time.Minute
)

// stoppingFile is locked for as long as the host of the state directory is being stopped.
const stoppingFile = "stopping"

func newPrestop() *cobra.Command {
	state := defaultState
	cmd := &cobra.Command{
		Use: "prestop host|node", Short: "wait until a role can be ended", Long: prestopLong, Example: prestopExample,
		Args: usageArgs(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)), ValidArgs: []cobra.Completion{"host", "node"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "host" {
				return prestopHost(cmd.Context(), state, cmd.ErrOrStderr())
			}
			return prestopNode(cmd.Context(), state, cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVar(&state, "state", state, "directory of this machine's own state")
	_ = cmd.MarkFlagDirname("state")
	return cmd
}

// prestopHost holds the lock while it waits, and the lock ends with this process however it ends.
func prestopHost(ctx context.Context, state string, told io.Writer) error {
	f, err := os.OpenFile(filepath.Join(state, stoppingFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return untilUnstaged(ctx, devicesOf(state), told, func() (bool, error) { return true, nil })
}

func prestopNode(ctx context.Context, state string, told io.Writer) error {
	for end := time.Now().Add(prestopSettle); time.Now().Before(end); {
		stopping, err := hostStops(state)
		if err != nil {
			return err
		}
		if stopping {
			return untilUnstaged(ctx, devicesOf(state), told, func() (bool, error) { return hostStops(state) })
		}
		if err := pause(ctx, prestopEvery); err != nil {
			return err
		}
	}
	return nil
}

// hostStops says whether somebody holds the lock of prestopHost.
func hostStops(state string) (bool, error) {
	f, err := os.Open(filepath.Join(state, stoppingFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// untilUnstaged waits until the host has no device, or until needed says that nobody needs to wait. A host that was killed is followed by another, and
// the devices live on in between, so one that does not answer is given time.
func untilUnstaged(ctx context.Context, devices func(context.Context) ([]host.Device, error), told io.Writer, needed func() (bool, error)) error {
	for last, answered := -1, time.Now(); ; {
		list, err := devices(ctx)
		switch silent := errors.Is(err, wire.ErrNotRunning) || errors.Is(err, wire.ErrLost); {
		case silent && time.Since(answered) > prestopPatience:
			return nil // no host: nothing to wait for
		case err != nil && !silent:
			return err
		case err == nil:
			answered = time.Now()
			if n := len(list); n != last {
				fmt.Fprintf(told, "%s staged\n", plural(n, "volume"))
				last = n
			}
		}
		wait, err := needed()
		if err != nil || !wait || last == 0 {
			return err
		}
		if err := pause(ctx, prestopEvery); err != nil {
			return err
		}
	}
}

// devicesOf asks the host of the state directory; where there never was one it has none.
func devicesOf(state string) func(context.Context) ([]host.Device, error) {
	if _, err := os.Stat(filepath.Dir(host.SocketIn(state))); errors.Is(err, os.ErrNotExist) {
		return func(context.Context) ([]host.Device, error) { return nil, nil }
	}
	return host.NewClient(state).Devices
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
