package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/wire"
)

// Launch is how a host is started where none runs.
type Launch struct {
	Executable string   // the program
	Args       []string // its command line, argv[0] first
	Log        *os.File // where it writes its log
}

// launchWithin bounds how long a host may take to answer: it takes back the devices of the one before first.
const launchWithin = time.Minute

// Ensure returns when a host answers, one that it has started where none did. That one is a process of its own, in a
// session of its own: it lives on when this one ends.
func (c *Client) Ensure(ctx context.Context, l Launch) (About, error) {
	a, err := c.About(ctx)
	if !missing(err) {
		return a, err
	}
	cmd := exec.Command(l.Executable)
	cmd.Args = l.Args
	cmd.Stdout, cmd.Stderr = l.Log, l.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return a, fmt.Errorf("start belay host: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return c.answered(ctx, ended)
}

// missing says that no host answers: none runs, or it died just now.
func missing(err error) bool {
	return errors.Is(err, wire.ErrNotRunning) || errors.Is(err, wire.ErrLost)
}

// answered waits until a host answers: the one that was started, or one that somebody else started at the same time.
func (c *Client) answered(ctx context.Context, ended chan error) (About, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, launchWithin, fmt.Errorf("belay host does not answer within %v; see its log", launchWithin))
	defer cancel()
	for left := startTries; ; {
		a, err := c.About(ctx)
		if !missing(err) {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, context.Cause(ctx)
		case err := <-ended:
			ended <- err // it stays so
			if left--; left == 0 {
				return a, fmt.Errorf("belay host ended as soon as it was started; see its log: %w", cmp.Or(err, errEnded))
			}
			time.Sleep(hostEvery)
		case <-time.After(hostEvery):
		}
	}
}

// errEnded: a host ended without an error although nobody has asked it to.
var errEnded = errors.New("it says no reason")

// startTries is how often a host is looked for after the one that was started here has ended: another may just be starting.
const startTries = 100

// Keep has a host run until ctx ends: where the present one dies another is started. report gets what goes wrong.
func (c *Client) Keep(ctx context.Context, l Launch, report func(error)) {
	const every = 200 * time.Millisecond
	for ctx.Err() == nil {
		if _, err := c.Ensure(ctx, l); err != nil && ctx.Err() == nil {
			report(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}
