// Command fuzz finds every fuzz target of the module and runs each for a while, several at once with one worker each.
//
//	go run ./tests/fuzz -time 60s [-run REGEXP] [-cache DIR] [-libraries]
//
// It prints a table, also into fuzz.txt in the directory BELAY_REPORT_DIR. What is found is written to testdata/fuzz beside the
// target, from where `go test` runs it from then on. The exit code is 1 where a target fails.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"time"
)

func main() {
	var r runner
	var only string
	flag.DurationVar(&r.time, "time", time.Second, "how long each target runs")
	flag.IntVar(&r.workers, "workers", runtime.NumCPU(), "how many targets run at once")
	flag.StringVar(&only, "run", "", "run the targets whose PACKAGE.NAME matches")
	flag.StringVar(&r.cache, "cache", "", "directory that keeps what was interesting for the next run (default: forget it)")
	flag.BoolVar(&r.libraries, "libraries", false, "be guided by the libraries' code, too, and not by the module's alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := start(ctx, r, only); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, r runner, only string) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if r.dir, err = os.MkdirTemp("", "belay-fuzz-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	if r.cache == "" {
		r.cache = filepath.Join(r.dir, "cache")
	}
	packages, err := find(ctx, ".", wanted)
	if err != nil {
		return err
	}
	began := time.Now()
	outcomes := r.run(ctx, packages)
	return report(outcomes, time.Since(began))
}
