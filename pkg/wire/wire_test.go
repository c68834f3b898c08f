package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var (
	errGone  = errors.New("gone")
	errOther = errors.New("other")
	codes    = map[string]error{"gone": errGone, "other": errOther}
)

type ask struct{ N int }
type step struct{ Done int }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start serves s at a socket of its own until the test ends.
func start(t *testing.T, s *Server) (c *Client, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	var stopped atomic.Bool
	stop = func() {
		cancel()
		if stopped.Swap(true) {
			return
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return NewClient(path, codes), stop
}

func TestCallReturnsTheResultAfterItsProgress(t *testing.T) {
	s := NewServer(codes, quiet())
	told := make(chan struct{})
	Handle(s, "count", func(_ context.Context, a ask, progress func(step)) (int, error) {
		for i := 1; i <= a.N; i++ {
			progress(step{i})
			<-told
		}
		return a.N * 10, nil
	})
	c, _ := start(t, s)
	var seen []int
	got, err := Call[int](t.Context(), c, "count", ask{3}, func(p step) { seen = append(seen, p.Done); told <- struct{}{} })
	check(t, got, err)
	if got != 30 || fmt.Sprint(seen) != "[1 2 3]" {
		t.Errorf("got %d after %v", got, seen)
	}
}

func check[T any](t *testing.T, _ T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestNewestProgressArrivesThoughNobodyReadMeanwhile(t *testing.T) {
	s := NewServer(codes, quiet())
	Handle(s, "burst", func(_ context.Context, _ ask, progress func(step)) (bool, error) {
		for i := range 100_000 { // far more than the socket holds: a send that waited would never end
			progress(step{i})
		}
		return true, nil
	})
	c, _ := start(t, s)
	last, gate := -1, make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(gate) })
	got, err := Call[bool](t.Context(), c, "burst", ask{}, func(p step) { <-gate; last = p.Done })
	check(t, got, err)
	if last != 99_999 {
		t.Errorf("the last progress was %d", last)
	}
}

func TestErrorsKeepTheirIdentityAndMessage(t *testing.T) {
	s := NewServer(codes, quiet())
	Handle(s, "fail", func(_ context.Context, a ask, _ func(step)) (int, error) {
		switch a.N {
		case 1:
			return 0, fmt.Errorf("volume x: %w: ask again", errGone)
		case 2:
			return 0, errors.Join(errGone, errOther)
		case 3:
			return 0, context.DeadlineExceeded
		}
		return 0, errors.New("plain")
	})
	c, _ := start(t, s)
	for n, want := range map[int][]error{0: nil, 1: {errGone}, 2: {errGone, errOther}, 3: {context.DeadlineExceeded}} {
		_, err := Call[int, step](t.Context(), c, "fail", ask{n}, nil)
		for _, sentinel := range []error{errGone, errOther, context.DeadlineExceeded, ErrLost} {
			wanted := false
			for _, w := range want {
				wanted = wanted || errors.Is(w, sentinel)
			}
			if errors.Is(err, sentinel) != wanted {
				t.Errorf("%d: errors.Is(%v, %v) = %v", n, err, sentinel, !wanted)
			}
		}
		if n == 1 && err.Error() != "volume x: gone: ask again" {
			t.Errorf("message %q", err)
		}
	}
}

func TestRefusalsOfTheTransport(t *testing.T) {
	s := NewServer(codes, quiet())
	Handle(s, "echo", func(_ context.Context, a ask, _ func(step)) (ask, error) { return a, nil })
	Handle(s, "panic", func(context.Context, ask, func(step)) (ask, error) { panic("broken") })
	Handle(s, "unsendable", func(context.Context, ask, func(step)) (any, error) { return func() {}, nil })
	c, _ := start(t, s)
	for _, tc := range []struct {
		method string
		req    any
		want   error
		says   string
	}{
		{"nothing", ask{}, ErrUnknownMethod, "nothing"},
		{"a/b c", ask{}, ErrUnknownMethod, "a/b c"},
		{"echo", "text", ErrBadRequest, "echo"},
		{"echo", strings.Repeat("x", RequestMax), ErrTooLarge, "echo"},
		{"panic", ask{}, ErrPanic, "broken"},
		{"unsendable", ask{}, ErrPanic, "cannot be sent"},
	} {
		_, err := Call[ask, step](t.Context(), c, tc.method, tc.req, nil)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", tc.method, err)
		}
	}
}

func TestServerRefusesWhatNoClientOfOursSends(t *testing.T) {
	s := NewServer(codes, quiet())
	Handle(s, "echo", func(_ context.Context, a ask, _ func(step)) (ask, error) { return a, nil })
	for _, tc := range []struct {
		verb, path, version, body string
		status                    int
		want                      error
	}{
		{"POST", "/v1/echo", "0", "{}", http.StatusUpgradeRequired, ErrVersion},
		{"POST", "/v1/echo", "", "{}", http.StatusUpgradeRequired, ErrVersion},
		{"GET", "/v1/echo", Version, "", http.StatusMethodNotAllowed, ErrBadRequest},
		{"POST", "/v2/echo", Version, "{}", http.StatusNotFound, ErrUnknownMethod},
		{"POST", "/v1/echo", Version, `"` + strings.Repeat("x", RequestMax) + `"`, http.StatusRequestEntityTooLarge, ErrTooLarge},
		{"POST", "/v1/echo", Version, "{", http.StatusOK, ErrBadRequest},
		{"POST", "/v1/echo", Version, "", http.StatusOK, ErrBadRequest},
	} {
		r := httptest.NewRequest(tc.verb, tc.path, strings.NewReader(tc.body))
		r.Header.Set(versionHeader, tc.version)
		w := httptest.NewRecorder()
		s.answer(w, r)
		_, err := read(w.Body, newCodebook(nil), nil)
		if w.Code != tc.status || !errors.Is(err, tc.want) {
			t.Errorf("%s %s: %d %v", tc.verb, tc.path, w.Code, err)
		}
	}
}

func TestClientRefusesAnotherVersion(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(versionHeader, "2")
		_, _ = io.WriteString(w, "something new")
	})}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
	if _, err := Call[int, step](t.Context(), NewClient(path, nil), "x", 0, nil); !errors.Is(err, ErrVersion) {
		t.Errorf("got %v", err)
	}
}

func TestCancelReachesTheMethod(t *testing.T) {
	s := NewServer(codes, quiet())
	running, ended := make(chan struct{}), make(chan error, 1)
	Handle(s, "wait", func(ctx context.Context, _ ask, _ func(step)) (int, error) {
		close(running)
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	})
	c, _ := start(t, s)
	c.Peer = "the waiter"
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-running; cancel() }()
	_, err := Call[int, step](ctx, c, "wait", ask{}, nil)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the waiter") {
		t.Errorf("caller got %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("method got %v", err)
	}
}

func TestStopEndsRunningMethodsAndWaitsForThem(t *testing.T) {
	s := NewServer(codes, quiet())
	running := make(chan struct{})
	var finished atomic.Bool
	Handle(s, "wait", func(ctx context.Context, _ ask, _ func(step)) (int, error) {
		close(running)
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // stands for the work of ending well
		finished.Store(true)
		return 7, nil
	})
	c, stop := start(t, s)
	got := make(chan error, 1)
	go func() { _, err := Call[int, step](context.Background(), c, "wait", ask{}, nil); got <- err }()
	<-running
	stop()
	if !finished.Load() {
		t.Error("Serve returned before its method")
	}
	if err := <-got; err != nil {
		t.Errorf("the caller of a method that ended well got %v", err)
	}
}

func TestAnswerCutShortIsLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.CopyN(io.Discard, conn, 1)
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+versionHeader+": "+Version+"\r\n\r\n{\"progress\":1}\n")
			conn.Close()
		}
	}()
	seen := 0
	_, err = Call[int](t.Context(), NewClient(path, nil), "x", 0, func(int) { seen++ })
	if !errors.Is(err, ErrLost) || errors.Is(err, ErrNotRunning) || seen > 1 {
		t.Errorf("got %v after %d", err, seen)
	}
}

func TestNotRunningSaysWho(t *testing.T) {
	dir := t.TempDir()
	c := NewClient(filepath.Join(dir, "none.sock"), nil)
	c.Peer = "belay serve"
	_, err := Call[int, step](t.Context(), c, "x", 0, nil)
	if !errors.Is(err, ErrNotRunning) || err.Error() != "belay serve is not running: nobody answers at "+c.path {
		t.Errorf("no socket: %v", err)
	}
	c = NewClient(stale(t, dir), nil)
	if _, err := Call[int, step](t.Context(), c, "x", 0, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale socket: %v", err)
	}
}

// stale leaves a socket that nobody listens at, as a killed process does.
func stale(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	return path
}

func TestListenReplacesOnlyWhatNobodyAnswers(t *testing.T) {
	dir := t.TempDir()
	path := stale(t, dir)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", info, err)
	}
	if _, err := Listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Close left the socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !errors.Is(err, ErrInUse) {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("Listen touched a file")
	}
}

func TestListenRefusesADirectoryOthersCanWriteTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(filepath.Join(dir, "s.sock")); err == nil {
		l.Close()
		t.Error("accepted")
	}
}

func TestListenMakesAPrivateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "belay")
	l, err := Listen(filepath.Join(dir, "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info, err)
	}
}

func TestPathLongerThanASocketAddress(t *testing.T) {
	s := NewServer(codes, quiet())
	Handle(s, "echo", func(_ context.Context, n int, _ func(step)) (int, error) { return n, nil })
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 60), "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	got, err := Call[int, step](t.Context(), NewClient(path, nil), "echo", 5, nil)
	if got != 5 || err != nil {
		t.Errorf("got %d, %v", got, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestTrust(t *testing.T) {
	for _, tc := range []struct {
		peer uint32
		own  int
		ok   bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}} {
		if err := trust(tc.peer, tc.own); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrPeer) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestOwnPeerIsTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() { conn, err := l.Accept(); accepted <- err; conn.Close() }()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	if err := checkPeer(conn.(*net.UnixConn)); err != nil {
		t.Error(err)
	}
}

func TestHandleTwicePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	s := NewServer(nil, quiet())
	for range 2 {
		Handle(s, "x", func(context.Context, int, func(int)) (int, error) { return 0, nil })
	}
}

// read returns the outcome of an answer.
func read(r io.Reader, codes codebook, progress func(json.RawMessage) error) (json.RawMessage, error) {
	a := answer{codes: codes, progress: progress}
	if err := readLines(r, a.more); !a.ended {
		return nil, errors.Join(ErrLost, err)
	}
	return a.result, a.err
}
