package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const module = `module example.org/belay/x

go 1.26
`

const targets = `package x

import "testing"

func FuzzGood(f *testing.F) {
	f.Add([]byte("a"))
	f.Fuzz(func(t *testing.T, b []byte) {})
}

func FuzzBad(f *testing.F) {
	f.Add([]byte("a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1 {
			t.Error("found")
		}
	})
}

func FuzzUnwanted(f *testing.F) { f.Fuzz(func(t *testing.T, n int) { t.Error("run") }) }
`

// TestWhatAFuzzerFindsFails: targets are found, each is run, and the one that finds something fails and leaves the input.
func TestWhatAFuzzerFindsFails(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("BELAY_REPORT_DIR", filepath.Join(t.TempDir(), "made")) // and not where the figures of this run go
	for name, text := range map[string]string{"go.mod": module, "x_test.go": targets, "x.go": "package x\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	packages, err := find(t.Context(), dir, regexp.MustCompile(`x\.Fuzz(Good|Bad)$`))
	if err != nil || len(packages) != 1 || len(packages[0].targets) != 2 {
		t.Fatalf("%+v, %v", packages, err)
	}
	for _, libraries := range []bool{false, true} {
		r := runner{time: time.Second, workers: 2, dir: t.TempDir(), cache: t.TempDir(), libraries: libraries}
		out := r.run(t.Context(), packages)
		if len(out) != 2 {
			t.Fatalf("%+v", out)
		}
		bad, good := out[0], out[1]
		if good.name != "x.FuzzGood" || good.failed != "" || good.execs == 0 {
			t.Errorf("%+v", good)
		}
		if bad.name != "x.FuzzBad" || !strings.Contains(bad.failed, "found") {
			t.Errorf("%+v", bad)
		}
		if err := report(out, time.Second); err == nil || !strings.Contains(err.Error(), "1 target") {
			t.Errorf("reported as %v", err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "testdata/fuzz/FuzzBad/*")); len(left) == 0 {
		t.Error("nothing is left of what was found")
	}
	if _, err := find(t.Context(), dir, regexp.MustCompile("none")); err == nil {
		t.Error("no target is no error")
	}
}
