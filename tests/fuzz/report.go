package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// report prints the table, and what failed in full; the error says how many did.
func report(outcomes []outcome, took time.Duration) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-52s %10s %12s %8s\n", "fuzz target", "execs", "interesting", "seconds")
	total, failed := outcome{}, 0
	for _, o := range outcomes {
		mark := ""
		if o.failed != "" {
			failed++
			mark = "  FAILED"
		}
		fmt.Fprintf(&b, "%-52s %10d %12d %8.1f%s\n", o.name, o.execs, o.interesting, o.took.Seconds(), mark)
		total.execs, total.interesting = total.execs+o.execs, total.interesting+o.interesting
	}
	fmt.Fprintf(&b, "%-52s %10d %12d %8.1f\n", fmt.Sprintf("%d targets, %d failed", len(outcomes), failed), total.execs, total.interesting, took.Seconds())
	fmt.Print(b.String())
	for _, o := range outcomes {
		if o.failed != "" {
			fmt.Printf("\n%s: %s\n", o.name, o.failed)
		}
	}
	if err := keep(b.String()); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d targets failed", failed)
	}
	return nil
}

// keep adds the table to the directory for reports, where there is one.
func keep(text string) error {
	dir := os.Getenv("BELAY_REPORT_DIR")
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "fuzz.txt"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
