// Package model checks the protocol itself with Spin: as it is, exhaustively within bounds, and in wrong variants, each of which must be
// found. What is modelled, and what in the code it stands for, is in DESIGN.md.
package model

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestModel makes every run; with -short only those that are quick. Its figures are printed, and written to model.txt in the directory that
// BELAY_REPORT_DIR names, where it names one.
func TestModel(t *testing.T) {
	needTools(t)
	began := time.Now()
	table := &strings.Builder{}
	fmt.Fprintf(table, "%-12s %-56s %-7s %12s %12s %6s %8s %8s\n", "model", "run", "found", "states", "transitions", "depth", "seconds", "MiB")
	for _, r := range runs {
		if r.long && testing.Short() {
			continue
		}
		t.Run(strings.TrimSuffix(r.model, ".pml")+"/"+r.name, func(t *testing.T) {
			o, err := search(t.Context(), t.TempDir(), r)
			if err != nil {
				t.Fatalf("%s %s: %v", r.model, r.switches, err)
			}
			judge(t, r, o)
			fmt.Fprintf(table, "%-12s %-56s %-7s %12d %12d %6d %8.1f %8.0f\n", r.model, r.name, o.label, o.states, o.transitions, o.depth, o.seconds, o.megabytes)
		})
	}
	fmt.Fprintf(table, "%s altogether; every search was whole, or found what it had to\n", time.Since(began).Round(time.Second))
	if t.Failed() {
		return
	}
	t.Log("\n" + table.String())
	report(t, table.String())
}

// judge fails the test where a search did not come to what it must.
func judge(t *testing.T, r run, o outcome) {
	t.Helper()
	switch {
	case r.violates == "" && o.errors > 0:
		t.Errorf("%s %s: %s is violated, depth %d", r.model, r.switches, o.label, o.depth)
	case r.violates == "" && !o.complete:
		t.Errorf("%s %s: the search was not whole: %d states", r.model, r.switches, o.states)
	case r.violates != "" && o.errors == 0:
		t.Errorf("%s %s: not found in %d states (whole: %v)", r.model, r.switches, o.states, o.complete)
	case r.violates != o.label:
		t.Errorf("%s %s: %s is violated, not %s", r.model, r.switches, o.label, r.violates)
	}
}

func report(t *testing.T, table string) {
	t.Helper()
	dir := os.Getenv("BELAY_REPORT_DIR")
	if dir == "" {
		return
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "model.txt"), []byte(table), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEveryVariantIsChecked: a wrong variant that a model names is in a run that must find it.
func TestEveryVariantIsChecked(t *testing.T) {
	for _, name := range []string{"detach.pml", "upgrade.pml", "repair.pml"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, after, ok := strings.Cut(string(text), " *   wrong  : ")
		variants, _, end := strings.Cut(after, " */")
		if !ok || !end {
			t.Fatalf("%s names no wrong variants", name)
		}
		for _, v := range strings.Fields(strings.ReplaceAll(variants, "*", "")) {
			if !checked(name, v) {
				t.Errorf("%s: no run must find %s", name, v)
			}
		}
	}
}

func checked(model, variant string) bool {
	for _, r := range runs {
		if r.model == model && r.violates != "" && !r.long && strings.Contains(r.switches+" ", "-D"+variant+" ") {
			return true
		}
	}
	return false
}

// TestNoStateIsTakenForAnother: a search that keeps hashes of the states finds as many as one that keeps the states.
func TestNoStateIsTakenForAnother(t *testing.T) {
	needTools(t)
	r := run{model: "repair.pml", switches: "-DROTS=1 -DCUTS=1"}
	var states []int64
	for _, store := range []string{"-DHC4", "-DCOLLAPSE"} {
		dir := t.TempDir()
		if err := verifier(t.Context(), dir, r, store); err != nil {
			t.Fatal(err)
		}
		o, err := explore(t.Context(), dir, r)
		if err != nil || !o.complete {
			t.Fatalf("%s: %+v, %v", store, o, err)
		}
		states = append(states, o.states)
	}
	if states[0] != states[1] || states[0] == 0 {
		t.Errorf("%d states are told apart by their hashes, and there are %d", states[0], states[1])
	}
}

// TestWhatPanSays: a search that was cut short is none, however it ends.
func TestWhatPanSays(t *testing.T) {
	const whole = "State-vector 100 byte, depth reached 208, errors: 0\n   457339 states, stored\n 1.2e+08 transitions (= stored+matched)\n"
	for _, c := range []struct {
		said     string
		complete bool
		bad      bool
	}{
		{whole, true, false},
		{"error: max search depth too small\n" + whole, false, false},
		{"pan: reached -DMEMLIM bound\nWarning: Search not completed\n" + whole, false, false},
		{strings.ReplaceAll(whole, "errors: 0", "errors: 1"), false, false},
		{"Segmentation fault", false, true},
		{"depth reached 0, errors: 0\n", false, true},
	} {
		o, err := parse(c.said)
		if o.complete != c.complete || (err != nil) != c.bad {
			t.Errorf("%q: %+v, %v", c.said, o, err)
		}
	}
	if o, _ := parse(whole); o.states != 457339 || o.transitions != 120_000_000 || o.depth != 208 {
		t.Errorf("%+v", o)
	}
}
