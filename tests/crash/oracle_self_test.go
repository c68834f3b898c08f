package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/belay-storage/belay/tests/orchestrator"
)

// TestOracleSees: the oracle believes a directory that has what was synced, and no directory that has not.
func TestOracleSees(t *testing.T) {
	for name, spoil := range map[string]func(dir, before string) error{
		"the state before":         func(dir, before string) error { return replace(dir, before, "buffered", "direct", "churned") },
		"a file of the one before": func(dir, before string) error { return replace(dir, before, "direct") },
		"files of the one before":  func(dir, before string) error { return replace(dir, before, "churned") },
		"one byte":                 func(dir, _ string) error { return flip(filepath.Join(dir, "buffered")) },
		"nothing":                  func(dir, _ string) error { return os.Truncate(filepath.Join(dir, "direct"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, before := t.TempDir(), t.TempDir()
			o := newOracle(1)
			runFor(t, o, dir, 30)
			if err := replace(before, dir, "buffered", "direct", "churned"); err != nil {
				t.Fatal(err)
			}
			runFor(t, o, dir, 60)
			if err := o.check(dir); err != nil {
				t.Fatalf("nothing was lost: %v", err)
			}
			if err := spoil(dir, before); err != nil {
				t.Fatal(err)
			}
			if o.check(dir) == nil {
				t.Error("lost, and not seen")
			}
		})
	}
}

// runFor runs the oracle until so many records more are synced.
func runFor(t *testing.T, o *oracle, dir string, records int64) {
	t.Helper()
	stop, ended := make(chan struct{}), make(chan error, 1)
	until := o.synced.Load() + records
	go func() { ended <- o.run(dir, stop) }()
	err := orchestrator.Until(t.Context(), "records", func() (bool, error) {
		select {
		case err := <-ended:
			return false, fmt.Errorf("ended by itself: %w", err)
		default:
			return o.synced.Load() >= until, nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// replace puts copies of the named files and directories of from into to.
func replace(to, from string, names ...string) error {
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(to, name)); err != nil {
			return err
		}
		if info, err := os.Stat(filepath.Join(from, name)); err != nil {
			return err
		} else if info.IsDir() {
			if err := os.CopyFS(filepath.Join(to, name), os.DirFS(filepath.Join(from, name))); err != nil {
				return err
			}
			continue
		}
		text, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), text, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// flip changes one byte of the first block that holds anything.
func flip(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for i := range text {
		if text[i] != 0 {
			text[i] ^= 0xFF
			break
		}
	}
	return os.WriteFile(path, text, 0o600)
}
