// Command mutants checks the checkers: each wrong variant of the protocol (pkg/mutant) must be found by the simulation, and the right one
// must not.
//
//	go run ./tests/mutants [-within 1m] [-run REGEXP] [-seeds N] [-learn]
//
// The simulation is built once with the tag "mutants". Each mutant first runs the seeds that killed it when somebody last learned them
// (kills.txt), and then others until one does, for so long at most. The correct protocol then runs every seed that has killed a mutant, in the same
// program. The table also goes into mutants.txt in the directory BELAY_REPORT_DIR. The exit code is 1 where a mutant lives, or the right protocol
// does not.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/belay-storage/belay/pkg/mutant"
)

// lab is how mutants are looked for.
type lab struct {
	program string // the simulation, with the mutants in it
	within  time.Duration
	workers int
	kills   int // how many seeds that kill it are looked for
	right   int // how many seeds more the right protocol runs
}

func main() {
	var l lab
	var only string
	var learn bool
	flag.DurationVar(&l.within, "within", time.Minute, "how long each mutant may live")
	flag.IntVar(&l.workers, "workers", runtime.NumCPU(), "how many seeds run at once")
	flag.IntVar(&l.right, "seeds", 100, "how many seeds the right protocol runs beside those that have killed mutants")
	flag.StringVar(&only, "run", "", "only the mutants whose names match")
	flag.BoolVar(&learn, "learn", false, "look for seeds anew, and write them to "+killsFile)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := start(ctx, l, only, learn); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func start(ctx context.Context, l lab, only string, learn bool) error {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	dir, err := os.MkdirTemp("", "belay-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	l.program = filepath.Join(dir, "sim.test")
	if err := build(ctx, l.program); err != nil {
		return err
	}
	known, err := readKills(killsFile)
	if err != nil {
		return err
	}
	if l.kills = 1; learn {
		l.kills, known = 3, kills{}
	}
	verdicts := l.all(ctx, wanted, known)
	if learn {
		if err := writeKills(killsFile, verdicts); err != nil {
			return err
		}
	}
	return report(verdicts, l.correct(ctx, verdicts), time.Since(began))
}

// killsFile is where the seeds are that are tried first.
const killsFile = "tests/mutants/kills.txt"

func build(ctx context.Context, program string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", program, "./tests/sim")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the simulation with the mutants: %w: %s", err, text)
	}
	return nil
}

// all looks for every wanted mutant: with the seeds that are known beside each other, and then for what is left one after the other.
func (l lab) all(ctx context.Context, wanted *regexp.Regexp, known kills) []verdict {
	all := slices.DeleteFunc(slices.Clone(mutant.All), func(m mutant.Mutant) bool { return !wanted.MatchString(m.Name) })
	out := make([]verdict, len(all))
	l.share(len(all), func(i int) { out[i] = l.recall(ctx, all[i], known[all[i].Name]) })
	for i := range out {
		if !out[i].killed && ctx.Err() == nil {
			out[i] = l.search(ctx, all[i])
		}
		fmt.Println(out[i])
	}
	return out
}

// share does n things, as many at once as there are workers.
func (l lab) share(n int, do func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range l.workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}
