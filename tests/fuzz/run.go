package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// runner builds and runs targets.
type runner struct {
	time    time.Duration
	workers int
	cache   string
	dir     string // for what is built
	// libraries has the fuzzer see what the libraries do, too: where JSON is parsed it gets further, at a tenth of the pace, and all of them
	// are compiled once more.
	libraries bool
}

// outcome is how a target did.
type outcome struct {
	name        string
	execs       int
	interesting int // inputs that reached something new
	took        time.Duration
	failed      string // what it said; empty where nothing was found
}

// run returns the outcomes of all targets, by name. Each package is built once, and its targets run as soon as it is.
func (r runner) run(ctx context.Context, packages []fuzzed) (out []outcome) {
	var mu sync.Mutex
	var all sync.WaitGroup
	turn := make(chan struct{}, r.workers)
	take := func(do func() []outcome) {
		turn <- struct{}{}
		defer func() { <-turn }()
		done := do()
		mu.Lock()
		defer mu.Unlock()
		out = append(out, done...)
	}
	for _, p := range packages {
		all.Go(func() {
			var program string
			take(func() (failed []outcome) { program, failed = r.build(ctx, p); return failed })
			if program == "" {
				return
			}
			for _, t := range p.targets {
				all.Go(func() { take(func() []outcome { return []outcome{r.twice(ctx, p, program, t)} }) })
			}
		})
	}
	all.Wait()
	slices.SortFunc(out, func(a, b outcome) int { return cmp.Compare(a.name, b.name) })
	return out
}

// build makes the instrumented test program of the package; that it cannot be made is the outcome of all its targets.
func (r runner) build(ctx context.Context, p fuzzed) (program string, failed []outcome) {
	program = filepath.Join(r.dir, strings.ReplaceAll(p.path, "/", "-")+".test")
	instrument := "-gcflags=" + p.module + "/...=-d=libfuzzer" // what -fuzz does, for the module alone
	if r.libraries {
		instrument = "-fuzz=^Fuzz"
	}
	compile := exec.CommandContext(ctx, "go", "test", "-c", instrument, "-o", program, p.path)
	compile.Dir = p.dir
	text, err := compile.CombinedOutput()
	if err == nil {
		return program, nil
	}
	for _, t := range p.targets {
		failed = append(failed, outcome{name: name(p, t), failed: fmt.Sprintf("build: %v: %s", err, text)})
	}
	return "", failed
}

func name(p fuzzed, target string) string {
	_, short, _ := strings.Cut(p.path, "/belay/")
	return short + "." + target
}

// twice runs a target once more where the clock ran out within an input, which package testing tells as a failure.
func (r runner) twice(ctx context.Context, p fuzzed, program, target string) outcome {
	o := r.fuzz(ctx, p, program, target)
	late := strings.Contains(o.failed, "context deadline exceeded") && !strings.Contains(o.failed, "Failing input written")
	if late && ctx.Err() == nil {
		o = r.fuzz(ctx, p, program, target)
	}
	return o
}

// fuzz runs one target. What is only interesting is made small for a moment at most: that can take all of the time.
func (r runner) fuzz(ctx context.Context, p fuzzed, program, target string) outcome {
	began, o := time.Now(), outcome{name: name(p, target)}
	cmd := exec.CommandContext(ctx, program, "-test.run=^$", "-test.fuzz=^"+target+"$", "-test.fuzztime="+r.time.String(),
		"-test.fuzzminimizetime="+(r.time/100).Truncate(100*time.Millisecond).String(), "-test.parallel=1", "-test.fuzzcachedir="+filepath.Join(r.cache, p.path))
	cmd.Dir = p.dir
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	err := cmd.Run()
	o.took, o.execs, o.interesting = time.Since(began), last(execs, text.String()), last(interesting, text.String())
	switch {
	case err != nil:
		o.failed = fmt.Sprintf("%v\n%s", err, text.String())
	case !strings.Contains(text.String(), "fuzz: elapsed"):
		o.failed = "it was not run:\n" + text.String()
	}
	return o
}

var (
	execs       = regexp.MustCompile(`execs: (\d+)`)
	interesting = regexp.MustCompile(`new interesting: (\d+)`)
)

// last is the number that was said last.
func last(what *regexp.Regexp, text string) int {
	all := what.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(all[len(all)-1][1]) // digits
	return n
}
