package model

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// depthMax is the deepest that a search may go: more than ten times what any run needs. One that would go deeper fails.
const depthMax = 20000

// tools are the programs that a search needs, and the Debian packages that have them. gcc alone, without recommended packages, has no C library.
var tools = []string{"spin", "gcc"}

const packages = "spin gcc libc6-dev"

// needTools fails the test where a program is missing.
func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing (as root: apt-get install %s): %v", tool, packages, err)
		}
	}
}

// outcome is what a search said.
type outcome struct {
	states, transitions int64
	depth               int64
	seconds, megabytes  float64
	errors              int64
	complete            bool   // the whole space was searched
	label               string // of the assertion that is violated; empty where none is
}

// search has Spin make a verifier of the model, compiles and runs it. Nothing is left behind.
func search(ctx context.Context, dir string, r run) (outcome, error) {
	if err := verifier(ctx, dir, r, "-DHC4"); err != nil {
		return outcome{}, err
	}
	out, err := explore(ctx, dir, r)
	if err != nil || out.errors == 0 {
		return out, err
	}
	replayed, _ := command(ctx, dir, "spin", append(append([]string{"-t"}, strings.Fields(r.switches)...), r.model)...)
	return out, out.name(replayed)
}

// verifier makes pan in dir. store says how it keeps the states that it has seen.
func verifier(ctx context.Context, dir string, r run, store string) error {
	if err := os.CopyFS(dir, os.DirFS(".")); err != nil {
		return err
	}
	if said, err := command(ctx, dir, "spin", append(append([]string{"-a"}, strings.Fields(r.switches)...), r.model)...); err != nil || strings.Contains(said, "Error:") {
		return fmt.Errorf("spin: %w: %s", err, said)
	}
	if err := hashWide(filepath.Join(dir, "pan.c")); err != nil {
		return err
	}
	optimise := "-O0" // what takes a second to search would take ten to compile
	if r.long {
		optimise = "-O1"
	}
	if said, err := command(ctx, dir, "gcc", "-w", optimise, "-DSAFETY", store, "-DMEMLIM=6000", "-o", "pan", "pan.c"); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, said)
	}
	return nil
}

// hashWide has pan tell states apart by 96 bits of hash. For tables of less than 2^32 slots Spin 6.5 takes a hash of 32, and with -DHC4, where nothing else
// is kept of a state, takes some states for others, and misses what follows from them.
func hashWide(file string) error {
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	narrow := []byte("hasher = d_sfh;")
	if bytes.Count(source, narrow) != 1 {
		return fmt.Errorf("%s chooses its hash in another way than Spin 6.5: see that it has 64 bits", file)
	}
	return os.WriteFile(file, bytes.Replace(source, narrow, []byte("hasher = d_hash;"), 1), 0o644)
}

// explore runs pan.
func explore(ctx context.Context, dir string, r run) (outcome, error) {
	slots := 20
	if r.long {
		slots = 27
	}
	said, err := command(ctx, dir, "nice", "-n", "10", "./pan", fmt.Sprintf("-m%d", depthMax), fmt.Sprintf("-w%d", slots))
	if err != nil {
		return outcome{}, fmt.Errorf("pan: %w: %s", err, said)
	}
	return parse(said)
}

func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	said, err := c.CombinedOutput()
	return string(said), err
}

// What pan says at its end. The numbers that it has rounded are written in other ways: 1e+08.
var (
	sayErrors      = regexp.MustCompile(`depth reached (\d+), errors: (\d+)`)
	sayStates      = regexp.MustCompile(`(?m)^\s*([0-9.e+]+) states, stored`)
	sayTransitions = regexp.MustCompile(`(?m)^\s*([0-9.e+]+) transitions`)
	sayMemory      = regexp.MustCompile(`(?m)^\s*([0-9.e+]+)\s+total actual memory usage`)
	sayTime        = regexp.MustCompile(`elapsed time ([0-9.e+]+) seconds`)
	sayLabel       = regexp.MustCompile(`text of failed assertion: assert\(.*\|\|\(([A-Z][0-9])==0\)\)`)
)

// incomplete are the words by which pan says that it has not searched everything.
var incomplete = []string{"max search depth too small", "Search not completed", "out of memory", "hashtable", "VECTORSZ"}

// parse reads what pan printed.
func parse(said string) (o outcome, err error) {
	found := sayErrors.FindStringSubmatch(said)
	if found == nil {
		return o, fmt.Errorf("pan said nothing of errors: %s", said)
	}
	o.depth, o.errors = whole(found[1]), whole(found[2])
	for _, x := range []struct {
		in *regexp.Regexp
		to *float64
	}{{sayMemory, &o.megabytes}, {sayTime, &o.seconds}} {
		if found := x.in.FindStringSubmatch(said); found != nil {
			*x.to, _ = strconv.ParseFloat(found[1], 64)
		}
	}
	for _, x := range []struct {
		in *regexp.Regexp
		to *int64
	}{{sayStates, &o.states}, {sayTransitions, &o.transitions}} {
		if found := x.in.FindStringSubmatch(said); found != nil {
			*x.to = whole(found[1])
		}
	}
	if o.states == 0 || o.transitions == 0 {
		return o, fmt.Errorf("pan said nothing of states: %s", said)
	}
	o.complete = o.errors == 0
	for _, words := range incomplete {
		o.complete = o.complete && !strings.Contains(said, words)
	}
	return o, nil
}

func whole(s string) int64 {
	f, _ := strconv.ParseFloat(s, 64)
	return int64(f)
}

// name finds in the replay of the trail which assertion was violated.
func (o *outcome) name(replayed string) error {
	found := sayLabel.FindStringSubmatch(replayed)
	if found == nil {
		return fmt.Errorf("the error is no assertion with a label: %s", replayed)
	}
	o.label = found[1]
	return nil
}
