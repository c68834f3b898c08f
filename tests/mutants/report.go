package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

func (v verdict) String() string {
	if !v.killed {
		return fmt.Sprintf("%-26s %-28s %6.1f s %5d  %s", v.mutant.Name, "LIVES", v.took.Seconds(), v.seeds, v.mutant.Does)
	}
	by := v.by.String()
	what := short(v.broken)
	if v.deaths > 0 {
		what += fmt.Sprintf(" (%d processes ended on the way, which counts for nothing)", v.deaths)
	}
	if v.searched {
		by += ", searched"
	}
	return fmt.Sprintf("%-26s %-28s %6.1f s %5d  %s", v.mutant.Name, by, v.took.Seconds(), v.seeds, what)
}

// short is the beginning of a text, on one line.
func short(text string) string {
	const most = 150
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// report prints the table; the error says what was not as it must be.
func report(verdicts []verdict, right verdict, took time.Duration) error {
	var b strings.Builder
	killed, searched := 0, 0
	for _, v := range verdicts {
		if v.killed {
			killed++
			if v.searched {
				searched++
			}
		}
	}
	fmt.Fprintf(&b, "mutants: %d of %d killed in %v\n%-26s %-28s %8s %5s  %s\n", killed, len(verdicts), took.Round(time.Second), "mutant", "killed by", "after", "seeds", "what was violated")
	for _, v := range verdicts {
		fmt.Fprintln(&b, v)
	}
	outcome := "not killed"
	if right.killed {
		outcome = "KILLED by " + right.by.String()
	}
	fmt.Fprintf(&b, "%-26s %-28s %6.1f s %5d  %s\n", "none: the right protocol", outcome, right.took.Seconds(), right.seeds, short(right.broken))
	if searched > 0 && searched < len(verdicts) {
		fmt.Fprintf(&b, "%d had to be searched for, since the seeds in %s do not kill them any more: go run ./tests/mutants -learn\n", searched, killsFile)
	}
	fmt.Print("\n" + b.String())
	if err := keep(b.String()); err != nil {
		return err
	}
	switch {
	case right.killed:
		return fmt.Errorf("the right protocol fails: %s: %s", right.by, right.broken)
	case killed < len(verdicts):
		return fmt.Errorf("%d mutants live", len(verdicts)-killed)
	}
	return nil
}

// keep writes the table into the directory for reports, where there is one.
func keep(text string) error {
	dir := os.Getenv("BELAY_REPORT_DIR")
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "mutants.txt"), []byte(text), 0o644)
}
