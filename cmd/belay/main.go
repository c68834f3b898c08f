// Command belay is the whole product in one binary: the roles that serve volumes, and the verbs with which people look at them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "unknown"

// Exit codes. Scripts rely on them.
const (
	exitOK      = 0
	exitFailed  = 1 // refused, failed, or unknown: the message says which
	exitUsage   = 2 // the command line cannot be understood
	exitDiffers = 3 // verify read everything, and something was not what it should be
)

// errDiffers is how verify says that it found differences, after having printed them.
var errDiffers = errors.New("differences were found")

// usageError is an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes the command line and returns the exit code. Ending ctx asks it to stop.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	return report(cmd, err, errOut)
}

func report(cmd *cobra.Command, err error, errOut io.Writer) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDiffers):
		return exitDiffers
	case errors.As(err, new(usageError)):
		fmt.Fprintf(errOut, "belay: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(errOut, "belay: %v\n", err)
	return exitFailed
}
