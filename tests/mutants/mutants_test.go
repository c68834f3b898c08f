package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/mutant"
)

// TestEveryMutantIsSomewhere: each constant of pkg/mutant changes something in the product, and each has its name in both builds.
func TestEveryMutantIsSomewhere(t *testing.T) {
	off, on := read(t, "../../pkg/mutant/off.go"), read(t, "../../pkg/mutant/on.go")
	constants := regexp.MustCompile(`(?m)^\t(\w+) += false$`).FindAllStringSubmatch(off, -1)
	if len(constants) != len(mutant.All) {
		t.Errorf("%d constants, %d mutants", len(constants), len(mutant.All))
	}
	code := product(t)
	for _, c := range constants {
		is := regexp.MustCompile(`(?m)^\t` + c[1] + ` += is\("([a-z-]+)"\)$`).FindStringSubmatch(on)
		if is == nil || !isMutant(is[1]) {
			t.Errorf("%s is no mutant of the other build", c[1])
		}
		if !strings.Contains(code, "mutant."+c[1]) {
			t.Errorf("%s changes nothing", c[1])
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// product is all code of the product but the list of mutants.
func product(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir("../../pkg", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") && filepath.Base(filepath.Dir(path)) != "mutant" {
			b.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestKillsAreKnown: the file of seeds reads, and every mutant has some.
func TestKillsAreKnown(t *testing.T) {
	known, err := readKills("kills.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutant.All {
		if len(known[m.Name]) == 0 {
			t.Errorf("no seed is known to kill %s: go run ./tests/mutants -learn", m.Name)
		}
	}
}

func TestKillsThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"no-flush", "no-flush x", "unheard-of 1", "no-flush 1 lies 2"} {
		name := filepath.Join(t.TempDir(), "kills.txt")
		if err := os.WriteFile(name, []byte("# first\n"+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if known, err := readKills(name); err == nil || !strings.Contains(err.Error(), "kills.txt:2") {
			t.Errorf("%q is read as %v, %v", text, known, err)
		}
	}
}

// TestLearnedIsRead: what is learned is what is tried first the next time.
func TestLearnedIsRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kills.txt")
	m := mutant.All[0]
	first, other := kill{7, "lies"}, kill{seed: 9}
	if err := writeKills(name, []verdict{{mutant: m, killed: true, by: first, others: []kill{other}}, {mutant: mutant.All[1]}}); err != nil {
		t.Fatal(err)
	}
	known, err := readKills(name)
	if err != nil || len(known) != 1 || !slices.Equal(known[m.Name], []kill{first, other}) {
		t.Errorf("%v, %v", known, err)
	}
}

// TestVerdicts: a mutant that lives fails the run, and so does the right protocol where it does not.
func TestVerdicts(t *testing.T) {
	t.Setenv("BELAY_REPORT_DIR", t.TempDir())
	killed := verdict{mutant: mutant.All[0], killed: true, by: kill{seed: 1}}
	lives := verdict{mutant: mutant.All[1]}
	right := verdict{seeds: 1}
	for _, c := range []struct {
		verdicts []verdict
		right    verdict
		ok       bool
	}{{[]verdict{killed}, right, true}, {[]verdict{killed, lives}, right, false}, {[]verdict{killed}, killed, false}} {
		if err := report(c.verdicts, c.right, time.Second); (err == nil) != c.ok {
			t.Errorf("%v, right %v: %v", c.verdicts, c.right, err)
		}
	}
	if text := read(t, filepath.Join(os.Getenv("BELAY_REPORT_DIR"), "mutants.txt")); !strings.Contains(text, mutant.All[0].Name) {
		t.Errorf("the report is %q", text)
	}
}

// simulation makes a program that is asked as the simulation is: seed 5 ends the process, seed 8 fails.
func simulation(t *testing.T) lab {
	t.Helper()
	program := filepath.Join(t.TempDir(), "sim.test")
	text := `#!/bin/bash
for a in "$@"; do case $a in -sim.ration=*) IFS=, read -r first step n <<<"${a#*=}";; esac; done
for ((i = 0, seed = first; i < n && seed < 100; i++, seed += step)); do
  echo "{\"seed\":$seed}" >&3
  if ((seed == 5)); then echo "panic: five" >&2; exit 2; fi
  failure=; if ((seed == 8)) && [ -n "$BELAY_MUTANT" ]; then failure=eight; fi
  echo "{\"seed\":$seed,\"simulated\":1,\"failure\":\"$failure\"}" >&3
done
`
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return lab{program: program, within: time.Minute, workers: 1, kills: 1}
}

// TestDeathIsNoKill: a seed that ends its process kills no mutant, and the seeds after it are run; the right protocol must not die.
func TestDeathIsNoKill(t *testing.T) {
	l := simulation(t)
	run := func(name string, first uint64) *trial {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tr := &trial{lab: l, mutant: name, end: cancel}
		tr.run(ctx, ration{kill: kill{seed: first}, step: 1, n: 90})
		return tr
	}
	if tr := run("no-flush", 3); len(tr.found) != 1 || tr.found[0].by.seed != 8 || tr.deaths != 1 || tr.seeds != 6 {
		t.Errorf("the mutant: %+v, %d deaths, %d seeds", tr.found, tr.deaths, tr.seeds)
	}
	if tr := run("", 3); len(tr.found) != 1 || tr.found[0].by.seed != 5 || !strings.Contains(tr.found[0].what, "panic: five") {
		t.Errorf("the right protocol dies: %+v", tr.found)
	}
	if tr := run("", 6); len(tr.found) != 0 || tr.seeds != 90 {
		t.Errorf("the right protocol: %+v, %d seeds", tr.found, tr.seeds)
	}
}
