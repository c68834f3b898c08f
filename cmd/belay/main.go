// Command belay is the whole product in one binary: the roles that serve volumes, and the verbs with which people look at them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
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
	root, args := called(os.Args)
	code := execute(ctx, root, args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// called says what this program is under the name that it was started by.
func called(args []string) (*cobra.Command, []string) {
	switch filepath.Base(args[0]) {
	case pluginName:
		return newKubectlRoot(), args[1:]
	case completerName: // kubectl runs it for what stands after `kubectl belay`
		return newKubectlRoot(), append([]string{cobra.ShellCompRequestCmd}, args[1:]...)
	}
	return newRoot(), args[1:]
}

// run executes a command line of belay.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	return execute(ctx, newRoot(), args, in, out, errOut)
}

// execute executes the command line and returns the exit code. Ending ctx asks it to stop.
func execute(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errOut io.Writer) int {
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	cmd, err := root.ExecuteContextC(ctx)
	return report(cmd, err, errOut)
}

func report(cmd *cobra.Command, err error, errOut io.Writer) int {
	name := cmd.Root().CommandPath()
	if passed, ok := errors.AsType[passedOn](err); ok {
		if passed.advice != "" {
			fmt.Fprintf(errOut, "%s: %s\n", name, passed.advice)
		}
		return passed.code
	}
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDiffers):
		return exitDiffers
	case errors.As(err, new(usageError)):
		fmt.Fprintf(errOut, "%s: %v\nSee '%s --help'.\n", name, err, cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(errOut, "%s: %v\n", name, err)
	return exitFailed
}
