// Package kubetest is a small true API server for tests of pkg/kube: real HTTP, lists and watches, resourceVersions, preconditions, merge
// patches and subresources, over connections in memory, so that it runs within a synctest bubble.
//
// It records every request, and fails the test where one deletes a VolumeAttachment or takes a finalizer away.
package kubetest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// Server is the API server. Safe for concurrent use.
type Server struct {
	t    testing.TB
	http *http.Server
	line *line

	mu       sync.Mutex
	away     bool
	version  uint64
	uids     int
	objects  map[key]object
	log      []change // all of them, oldest first
	changed  chan struct{}
	requests []Request
	before   func(Request)
}

// Request is a request that was made of the server.
type Request struct {
	Method   string
	Path     string // "/apis/storage.k8s.io/v1/volumeattachments/csi-1"
	Resource string // "volumeattachments", with its subresource
	Query    string
	Type     string // content type
	Body     string
	Code     int // of the answer; 0 while there is none
}

// Writes says that the request is not a mere look.
func (r Request) Writes() bool { return r.Method != http.MethodGet }

// New returns a server that serves until the test ends.
func New(t testing.TB) *Server {
	s := &Server{t: t, line: newLine(), objects: map[key]object{}, changed: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	s.http = &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.http.Serve(s.line); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("kubetest: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		if err := s.http.Close(); err != nil {
			t.Errorf("kubetest: %v", err)
		}
		<-done
		s.judge()
	})
	return s
}

// Config is how a client reaches the server.
func (s *Server) Config() *rest.Config {
	return &rest.Config{Host: "http://kube.test", Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		if s.isAway() {
			return nil, errors.New("connection refused: the API server is away")
		}
		return s.line.dial(ctx)
	}}
}

// SetAway takes the server away, with all connections and watches, or brings it back.
func (s *Server) SetAway(away bool) {
	s.mu.Lock()
	s.away = away
	s.mu.Unlock()
	if away {
		s.line.cut()
	}
}

func (s *Server) isAway() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// Before has f called before each request is served. It may change the server's objects.
func (s *Server) Before(f func(Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// Requests are those made so far that the filter, nil for all, takes.
func (s *Server) Requests(filter func(Request) bool) (out []Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if filter == nil || filter(r) {
			out = append(out, r)
		}
	}
	return out
}

// Writes are the requests that were no mere look, but for Events and Leases.
func (s *Server) Writes() []Request {
	return s.Requests(func(r Request) bool { return r.Writes() && r.Resource != "events" && r.Resource != "leases" })
}

// judge fails the test where a client did what none may.
func (s *Server) judge() {
	for _, r := range s.Requests(Request.Writes) {
		switch {
		case r.Resource == "volumeattachments" && (r.Method == http.MethodDelete || r.Method == http.MethodPut || r.Method == http.MethodPost):
			s.t.Errorf("%s %s: only Kubernetes makes and deletes attachments", r.Method, r.Path)
		case strings.HasPrefix(r.Resource, "volumeattachments/"), strings.Contains(r.Body, "finalizers"):
			s.t.Errorf("%s %s %s: status and finalizers are not ours", r.Method, r.Path, r.Body)
		case r.Method == http.MethodDelete && r.Resource != "pods":
			s.t.Errorf("%s %s: only pods are ever deleted", r.Method, r.Path)
		}
	}
}

// line is a listener whose connections are in memory.
type line struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	mu     sync.Mutex
	open   []net.Conn
}

func newLine() *line { return &line{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (l *line) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		l.mu.Lock()
		l.open = append(l.open, there)
		l.mu.Unlock()
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cut closes every connection.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		_ = c.Close()
	}
	l.open = nil
}

// Accept implements net.Listener.
func (l *line) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *line) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *line) Addr() net.Addr { return &net.UnixAddr{Name: "kubetest", Net: "pipe"} }

func now() string { return time.Now().UTC().Format(time.RFC3339) }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only what JSON made is encoded
	}
	return b
}
