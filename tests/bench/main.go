// Command bench measures Belay beside what it stands on: raw files, a loop device, and the most that N copies can reach.
//
// It measures and does not judge: a missed aim is printed, and the exit code is 0 all the same.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags that both benchmarks share.
type options struct {
	dirs  []string
	belay string
	json  string
}

func (o *options) register(cmd *cobra.Command, result string) {
	cmd.Flags().StringArrayVar(&o.dirs, "dir", []string{"/var/tmp"}, "directory to work in; give it up to three times for stores on different disks")
	cmd.Flags().StringVar(&o.belay, "belay", "bin/belay", "the program whose engine processes serve the volumes")
	cmd.Flags().StringVar(&o.json, "json", result, "file for the result as JSON; empty for none")
}

// check refuses what would fail half way.
func (o *options) check(tools ...string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it makes FUSE and loop devices")
	}
	if _, err := os.Stat(o.belay); err != nil {
		return fmt.Errorf("%w: run make build, or name the program with --belay", err)
	}
	return lookFor(tools...)
}

func newRoot() *cobra.Command {
	o := &throughputOptions{}
	root := &cobra.Command{
		Use: "bench", Short: "throughput and latency of volumes, beside raw files and a loop device",
		Long: `Throughput, latency and CPU time of a Belay volume with one store and with three, beside a raw file, a loop device on a
raw file, and the limit for three stores: three raw files written in parallel with the same pattern. All take turns in
every round, so that whatever else the machine does hits them alike: trust the ratios more than the figures.`,
		Example: `  go run ./tests/bench                          # about three minutes
  go run ./tests/bench --seconds 5 --rounds 5   # calmer figures
  go run ./tests/bench --only 4k-write --fresh  # first writes to thin volumes, 4 KiB random writes only
  go run ./tests/bench --dir /mnt/a --dir /mnt/b --dir /mnt/c
  go run ./tests/bench detach                   # barrier times`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.register(root)
	root.AddCommand(newDetach())
	return root
}
