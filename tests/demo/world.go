package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/device"
)

const startWithin = 20 * time.Second

// world is the machine of the story: three stores, a server, and the places where the orchestrator mounts.
type world struct {
	binary string
	dir    string
	stores []string
	http   string // address of the metrics
	server *exec.Cmd
	log    *os.File
	co     *orchestrator
	admin  *admin.Client
}

func newWorld(binary, where string) (*world, error) {
	dir, err := os.MkdirTemp(where, "belay-demo-")
	if err != nil {
		return nil, err
	}
	w := &world{binary: binary, dir: dir, admin: admin.NewClient(filepath.Join(dir, "run", "admin.sock"))}
	for _, name := range []string{"a", "b", "c"} {
		store := filepath.Join(dir, "disk-"+name)
		w.stores = append(w.stores, store)
		if err := os.Mkdir(store, 0o700); err != nil {
			return nil, err
		}
	}
	if w.log, err = os.Create(filepath.Join(dir, "serve.log")); err != nil {
		return nil, err
	}
	if w.http, err = freeAddress(); err != nil {
		return nil, err
	}
	w.co, err = newOrchestrator(w.socket(), dir)
	return w, err
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// metrics returns the lines of /metrics that start with one of the names, and want each name once at least.
func (w *world) metrics(names ...string) (lines []string, err error) {
	resp, err := http.Get("http://" + w.http + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		at := strings.Index("\n"+string(text), "\n"+name)
		if at < 0 {
			return lines, fmt.Errorf("no %s among the metrics", name)
		}
		line, _, _ := strings.Cut(string(text)[at:], "\n")
		lines = append(lines, line)
	}
	return lines, nil
}

func (w *world) socket() string { return filepath.Join(w.dir, "run", "csi.sock") }

// start runs `belay serve` and returns when it answers.
func (w *world) start(ctx context.Context) error {
	args := []string{
		"serve", "--endpoint", "unix://" + w.socket(), "--admin-socket", filepath.Join(w.dir, "run", "admin.sock"),
		"--nodeid", node, "--state", filepath.Join(w.dir, "state"), "--http-endpoint", w.http, "-v", "1",
	}
	for _, store := range w.stores {
		args = append(args, "--store", store)
	}
	w.server = exec.Command(w.binary, args...)
	w.server.Stdout, w.server.Stderr = w.log, w.log
	// The terminal's ^C is for the demo, which ends the server in order.
	w.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.server.Start(); err != nil {
		return err
	}
	return w.awaitReady(ctx)
}

func (w *world) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		err := w.co.probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server does not answer: %w; its log ends with:\n%s", err, w.logEnd())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill is SIGKILL: no goodbye.
func (w *world) kill() error {
	if err := w.server.Process.Kill(); err != nil {
		return err
	}
	_ = w.server.Wait()
	w.server = nil
	return nil
}

// stop is SIGTERM: in order.
func (w *world) stop() error {
	if w.server == nil {
		return nil
	}
	err := w.server.Process.Signal(syscall.SIGTERM)
	if err == nil {
		err = w.server.Wait()
	}
	w.server = nil
	return err
}

func (w *world) logEnd() string {
	text, _ := os.ReadFile(w.log.Name())
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// ask runs a verb of the binary against the running server and returns what it printed, its complaints where it printed
// nothing, and its exit code.
func (w *world) ask(ctx context.Context, verb string, args ...string) (out string, code int, err error) {
	args = append([]string{verb, "--socket", filepath.Join(w.dir, "run", "admin.sock")}, args...)
	cmd := exec.CommandContext(ctx, w.binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if stdout.Len() == 0 {
			return stderr.String(), exit.ExitCode(), nil
		}
		return stdout.String(), exit.ExitCode(), nil
	}
	return stdout.String(), 0, err
}

// askJSON decodes what the verb prints with -o json, and wants the exit code.
func (w *world) askJSON(ctx context.Context, into any, want int, verb string, args ...string) error {
	args = append([]string{verb, "--socket", filepath.Join(w.dir, "run", "admin.sock"), "-o", "json"}, args...)
	cmd := exec.CommandContext(ctx, w.binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != want {
		return fmt.Errorf("belay %s: exit code %d, want %d: %s %w", verb, code, want, strings.TrimSpace(stderr.String()), err)
	}
	return json.Unmarshal(stdout.Bytes(), into)
}

// cleanUp ends everything, and returns what was left although it should not be.
func (w *world) cleanUp(keepLog bool) error {
	w.co.letGo()
	err := w.stop()
	left := errors.Join(mountsUnder(w.dir), devicesLeft(), processesOf(w.dir))
	if left != nil {
		left = errors.Join(left, removeRemains(w.dir))
	}
	w.log.Close()
	if keepLog {
		fmt.Println("\nlog:", w.log.Name())
		return errors.Join(err, left)
	}
	return errors.Join(err, left, os.RemoveAll(w.dir))
}

// removeRemains takes away what a story that failed left.
func removeRemains(dir string) error {
	unmountUnder(dir)
	found, err := ours()
	for _, l := range found {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = errors.Join(err, device.Remove(ctx, l.Path))
		cancel()
	}
	return err
}

// unmountUnder takes away what an interrupted story left mounted.
func unmountUnder(dir string) {
	for range 3 { // a target above a staging path
		for _, path := range mountPoints(dir) {
			_ = exec.Command("umount", path).Run()
		}
	}
}

func mountPoints(dir string) (out []string) {
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.SplitSeq(string(text), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

func mountsUnder(dir string) error {
	if left := mountPoints(dir); len(left) > 0 {
		return fmt.Errorf("still mounted: %v", left)
	}
	return nil
}

func devicesLeft() error {
	found, err := ours()
	if len(found) > 0 {
		err = fmt.Errorf("devices left: %v", found)
	}
	return err
}

// ours are the devices of the story's volumes.
func ours() ([]device.Leftover, error) {
	all, err := device.Leftovers()
	return slices.DeleteFunc(all, func(l device.Leftover) bool { return !strings.HasPrefix(l.Volume, volumeMark) }), err
}

// processesOf looks for processes that were given something under dir, and for engines of our volumes.
func processesOf(dir string) error {
	var left []error
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if strings.Contains(line, "--state "+dir) || strings.Contains(line, "engine "+volumeMark) {
			left = append(left, fmt.Errorf("process left: %s: %s", filepath.Base(filepath.Dir(name)), line))
		}
	}
	return errors.Join(left...)
}
