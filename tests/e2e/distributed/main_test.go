// Package distributed runs the whole fencing path on a real API server, attach-detach controller and external-attacher: with the in-memory engine of
// enginetest, which lives on no node, and nodes that are objects only.
//
// It needs the control plane of a lab (`lab control-plane` or `make cluster-up`), and BELAY_LAB, the program that speaks to it: `make e2e-distributed` sees to
// both. Two tests stop parts of the control plane: do not run it beside other users of the lab.
package distributed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Names in the cluster. They are those of the manifests with "memory" in them, so that Belay itself may be installed beside.
const (
	driverName = "memory.csi.belay.storage"
	space      = "belay-memory-system"
	account    = "system:serviceaccount:" + space + ":belay-memory-controller"
)

// patience is how long what must come may take on a machine that has other work too. Nothing is measured by it.
const patience = 90 * time.Second

var (
	lab      = os.Getenv("BELAY_LAB")
	checkout = func() string { d, _ := filepath.Abs("../../.."); return d }()
)

func TestMain(m *testing.M) {
	switch {
	case lab == "":
		fmt.Println("no BELAY_LAB: these tests need the control plane of `lab control-plane`")
		os.Exit(0)
	case os.Getenv("BELAY_IN_LAB") == "":
		os.Exit(again())
	}
	if err := install(); err != nil {
		fmt.Fprintln(os.Stderr, "install:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := audit(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: audit log:", err)
		code = 1
	}
	writeFigures()
	os.Exit(code)
}

// again runs this program in the network of the control plane, where the API server is.
func again() int {
	c := exec.Command(lab, append([]string{"run", os.Args[0]}, os.Args[1:]...)...)
	c.Stdout, c.Stderr, c.Env = os.Stdout, os.Stderr, append(os.Environ(), "BELAY_IN_LAB=1")
	err := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// labRun runs a command of the lab.
func labRun(in string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	c := exec.CommandContext(ctx, lab, args...)
	c.Stdin = strings.NewReader(in)
	out, err := c.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("lab %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// eventually fails the test where f goes on to say what is still missing.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	began := time.Now()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = f(); err == nil {
			if took := time.Since(began); took > 3*time.Second {
				t.Logf("%s after %v", what, took.Round(time.Second/10))
			}
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// meanwhile fails the test where f says that something is wrong at any time within d.
func meanwhile(t *testing.T, d time.Duration, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// figures are what the tests have measured, for people.
var figures struct {
	sync.Mutex
	of map[string][]time.Duration
}

func figure(what string, d time.Duration) {
	figures.Lock()
	defer figures.Unlock()
	if figures.of == nil {
		figures.of = map[string][]time.Duration{}
	}
	figures.of[what] = append(figures.of[what], d)
}

// writeFigures prints them, and adds them to e2e-distributed.txt in BELAY_REPORT_DIR.
func writeFigures() {
	text := ""
	for what, all := range figures.of {
		slices.Sort(all)
		round := func(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
		text += fmt.Sprintf("%s: %d times, least %v, median %v, most %v\n", what, len(all), round(all[0]), round(all[len(all)/2]), round(all[len(all)-1]))
	}
	fmt.Print(text)
	if dir := os.Getenv("BELAY_REPORT_DIR"); dir != "" && text != "" {
		_ = os.WriteFile(filepath.Join(dir, "e2e-distributed.txt"), []byte(text), 0o600)
	}
}
