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
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// headerWithin bounds how long a peer may take to say what it wants.
const headerWithin = 10 * time.Second

// Server answers calls. Methods are added with [Handle] before Serve.
type Server struct {
	codes   codebook
	log     *slog.Logger
	methods map[string]method
}

// method answers one request; send puts a line of progress on its way.
type method func(ctx context.Context, request []byte, send func(any)) (any, error)

// NewServer returns a server without methods. codes names the errors that keep their identity across the socket; both
// sides must use the same. log gets the panics of methods and nothing else.
func NewServer(codes map[string]error, log *slog.Logger) *Server {
	return &Server{codes: newCodebook(codes), log: log, methods: map[string]method{}}
}

// Handle makes f answer calls of the method. It panics where the name is taken, and must not be called after Serve.
//
// f runs in its own goroutine, calls of one method concurrently. Its ctx ends when the caller hangs up or the server
// stops. progress never blocks and may be called from several goroutines: a caller that reads slowly gets
// the newest, and after f has returned it does nothing. A panic of f is logged and becomes ErrPanic for its caller.
func Handle[Req, P, Resp any](s *Server, name string, f func(ctx context.Context, req Req, progress func(P)) (Resp, error)) {
	if _, taken := s.methods[name]; taken {
		panic("wire: method " + name + " registered twice")
	}
	s.methods[name] = func(ctx context.Context, request []byte, send func(any)) (any, error) {
		var req Req
		if err := json.Unmarshal(request, &req); err != nil {
			return nil, fmt.Errorf("%w: method %s: %w", ErrBadRequest, name, err)
		}
		return f(ctx, req, func(p P) { send(p) })
	}
}

// Serve answers calls that arrive at l until ctx ends. Then it closes l, ends the ctx of the methods that still run,
// and returns nil when all of them have. Any other end is an error.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	running := &sync.WaitGroup{}
	h := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			running.Add(1)
			defer running.Done()
			s.answer(w, r)
		}),
		ReadHeaderTimeout: headerWithin,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		// The methods' ctx has ended, so this waits only for what they still must do.
		_ = h.Shutdown(context.WithoutCancel(ctx))
	})
	err := h.Serve(l)
	if stop() {
		return fmt.Errorf("serve: %w", err)
	}
	<-stopped
	running.Wait()
	return nil
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(versionHeader, Version)
	w.Header().Set("Content-Type", contentType)
	m, request, status, err := s.accept(w, r)
	w.WriteHeader(status)
	if err != nil {
		linesOn(w).write(message{Error: s.codes.encode(err)})
		return
	}
	flush(w) // the caller knows from here on that its request was taken
	s.perform(r.Context(), m, request, linesOn(w))
}

// accept checks what was asked for before anything is done.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) (m method, request []byte, status int, err error) {
	if theirs := r.Header.Get(versionHeader); theirs != Version {
		return nil, nil, http.StatusUpgradeRequired, versionError(theirs)
	}
	name, ok := strings.CutPrefix(r.URL.Path, pathPrefix)
	if !ok {
		name = r.URL.Path
	}
	if m, err = s.find(name); err != nil {
		return nil, nil, http.StatusNotFound, err
	}
	if r.Method != http.MethodPost {
		return nil, nil, http.StatusMethodNotAllowed, fmt.Errorf("%w: method %s: want POST, got %s", ErrBadRequest, name, r.Method)
	}
	request, err = io.ReadAll(http.MaxBytesReader(w, r.Body, RequestMax))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, nil, http.StatusRequestEntityTooLarge, fmt.Errorf("%w: method %s: request over %d bytes", ErrTooLarge, name, RequestMax)
	}
	if err != nil {
		return nil, nil, http.StatusBadRequest, fmt.Errorf("%w: method %s: %w", ErrBadRequest, name, err)
	}
	return m, request, http.StatusOK, nil
}

func (s *Server) find(name string) (method, error) {
	if m := s.methods[name]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownMethod, clip(name))
}

// perform does what was asked for, and answers.
func (s *Server) perform(ctx context.Context, m method, request []byte, out lineWriter) {
	box := newMailbox(out)
	result, err := s.run(ctx, m, request, box.send)
	box.close()
	out.write(s.last(result, err))
}

func (s *Server) run(ctx context.Context, m method, request []byte, send func(any)) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a method panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			result, err = nil, fmt.Errorf("%w: %v", ErrPanic, p)
		}
	}()
	return m(ctx, request, send)
}

func (s *Server) last(result any, err error) message {
	if err != nil {
		return message{Error: s.codes.encode(err)}
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return message{Error: s.codes.encode(fmt.Errorf("%w: the result cannot be sent: %w", ErrPanic, err))}
	}
	if len(raw) > LineMax-lineOverhead {
		return message{Error: s.codes.encode(fmt.Errorf("%w: result of %d bytes, at most %d", ErrTooLarge, len(raw), LineMax))}
	}
	return message{Result: raw}
}
