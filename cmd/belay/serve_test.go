package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
)

// site is a machine of its own under a temporary directory.
type site struct {
	dir    string
	stores []string
	http   string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	for _, name := range []string{"a", "b", "c"} {
		s.stores = append(s.stores, filepath.Join(s.dir, name))
	}
	for _, dir := range s.stores {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.http = l.Addr().String()
	l.Close()
	return s
}

// args are those of a server whose sockets and state are in run, so that two of them share only the stores.
func (s *site) args(run string) []string {
	args := []string{
		"serve", "--nodeid", "n1", "--endpoint", "unix://" + filepath.Join(s.dir, run, "csi.sock"),
		"--admin-socket", s.socket(run), "--state", filepath.Join(s.dir, run+"-state"),
	}
	for _, dir := range s.stores {
		args = append(args, "--store", dir)
	}
	return args
}

func (s *site) socket(run string) string { return filepath.Join(s.dir, run, "admin.sock") }

// syncBuffer is a log that two goroutines may use.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// startServe runs a server until the returned function is called, which gives its exit code.
func startServe(t *testing.T, s *site, log *syncBuffer, more ...string) (stop func() int) {
	t.Helper()
	return startRole(t, s, log, "serve", more...)
}

// startRole is startServe for another role with the same flags.
func startRole(t *testing.T, s *site, log *syncBuffer, role string, more ...string) (stop func() int) {
	t.Helper()
	args := append(s.args("one"), more...)
	args[0] = role
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, args, strings.NewReader(""), log, log) }()
	stop = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() { stop() })
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := admin.NewClient(s.socket("one")).About(ctx); err == nil {
			return stop
		}
		if time.Since(began) > 20*time.Second {
			t.Fatalf("no server:\n%s", log)
		}
	}
}

func TestServeAnswersAndStopsInOrder(t *testing.T) {
	s, log := newSite(t), &syncBuffer{}
	stop := startServe(t, s, log, "--http-endpoint", s.http)
	if code, out, errOut := belay(t, "volumes", "--socket", s.socket("one")); code != exitOK || out != "no volumes\n" {
		t.Errorf("volumes: exit %d %s %s", code, out, errOut)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/metrics": "belay_build_info"} {
		resp, err := http.Get("http://" + s.http + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %.200s", path, resp.StatusCode, body)
		}
	}
	if code := stop(); code != exitOK {
		t.Errorf("exit %d\n%s", code, log)
	}
	for _, socket := range []string{"admin.sock", "csi.sock"} {
		if _, err := os.Stat(filepath.Join(s.dir, "one", socket)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", socket, err)
		}
	}
	if !strings.Contains(log.String(), "config.nodeid=n1") {
		t.Errorf("the log does not say what was in force:\n%s", log)
	}
	startServe(t, s, log) // and again on the same stores and state
}

func TestSecondServeOnTheSameStoresIsRefused(t *testing.T) {
	s, log := newSite(t), &syncBuffer{}
	startServe(t, s, log)
	twin := append(s.args("two"), "--state", filepath.Join(s.dir, "one-state"))
	code, _, errOut := belay(t, twin...)
	if who := fmt.Sprintf("pid=%d", os.Getpid()); code != exitFailed || !strings.Contains(errOut, s.stores[0]) || !strings.Contains(errOut, who) {
		t.Errorf("other sockets: exit %d, want it to name %s: %s", code, who, errOut)
	}
	if code, _, errOut = belay(t, s.args("two")...); code != exitFailed || !strings.Contains(errOut, "another installation") {
		t.Errorf("other state: exit %d %s", code, errOut)
	}
	if code, _, errOut = belay(t, s.args("one")...); code != exitFailed {
		t.Errorf("same sockets: exit %d %s", code, errOut)
	}
	if code, out, _ := belay(t, "version", "--socket", s.socket("one")); code != exitOK || strings.Contains(out, "not running") {
		t.Errorf("the first one does not answer any more: %s", out)
	}
}

func TestServeRefusesABadStore(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(s.stores[1], "somebody's file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errOut := belay(t, s.args("one")...)
	if code != exitFailed || !strings.Contains(errOut, s.stores[1]) {
		t.Errorf("exit %d %s", code, errOut)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("touched: %q %v", text, err)
	}
}
