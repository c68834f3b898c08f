package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// stopWait is how long calls that run may take to end once the server stops. What they began goes on or is resumed.
const stopWait = 10 * time.Second

// Services are CSI services and how they are served: by a Driver, or by a Router.
type Services struct {
	Identity   csi.IdentityServer
	Controller csi.ControllerServer // optional
	Node       csi.NodeServer       // optional
	Log        *slog.Logger
	// Observe is told of every finished call: see Config.
	Observe func(method, code string, took time.Duration)
}

// Services are what the driver serves.
func (d *Driver) Services() Services {
	s := Services{Identity: d, Controller: d, Log: d.Log, Observe: d.Observe}
	if !d.controllerOnly() {
		s.Node = d
	}
	return s
}

// Serve answers CSI calls on endpoint: see Services.Serve.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	return d.Services().Serve(ctx, endpoint)
}

// Serve answers CSI calls on endpoint, "unix:///path/of/socket", until ctx ends. Only the owner may connect. A socket
// that nobody listens on any more is replaced; one that is in use is an error that says so.
func (s Services) Serve(ctx context.Context, endpoint string) error {
	listener, err := listen(ctx, endpoint)
	if err != nil {
		return err
	}
	s.Log.Info("serving CSI", "endpoint", endpoint)
	return s.ServeOn(ctx, listener)
}

// ServeOn answers CSI calls that arrive at l until ctx ends, and closes l.
func (s Services) ServeOn(ctx context.Context, l net.Listener) error {
	server := s.Server()
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
	}
	if ctx.Err() == nil {
		return err
	}
	stop(server) // what Serve says then is no news: a shared listener may have been closed by others first
	return nil
}

// Server returns a gRPC server with the services, for a caller with a listener of its own.
func (s Services) Server() *grpc.Server {
	server := grpc.NewServer(grpc.UnaryInterceptor(s.intercept), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: silentAfter / 2, PermitWithoutStream: true}))
	csi.RegisterIdentityServer(server, s.Identity)
	if s.Controller != nil {
		csi.RegisterControllerServer(server, s.Controller)
	}
	if s.Node != nil {
		csi.RegisterNodeServer(server, s.Node)
	}
	return server
}

func stop(s *grpc.Server) {
	ended := make(chan struct{})
	go func() { s.GracefulStop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(stopWait):
		s.Stop() // ends the contexts of what still runs
	}
}

// listen makes the socket under another name and renames it once only its owner may connect.
func listen(ctx context.Context, endpoint string) (net.Listener, error) {
	file, ok := strings.CutPrefix(endpoint, "unix://")
	if !ok || !filepath.IsAbs(file) {
		return nil, fmt.Errorf("endpoint %q: want unix:///path/of/socket", endpoint)
	}
	if err := vacant(ctx, file); err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	early := fmt.Sprintf("%s.%d", file, os.Getpid())
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: early, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", endpoint, err)
	}
	l.SetUnlinkOnClose(false) // it would remove the early name
	if err := errors.Join(os.Chmod(early, 0o600), os.Rename(early, file)); err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(early))
	}
	return &socket{UnixListener: l, file: file}, nil
}

// socket removes its file when it is closed.
type socket struct {
	*net.UnixListener
	file string
}

func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if err == nil {
		_ = os.Remove(s.file) // the next start replaces one that is left
	}
	return err
}

// vacant makes room for the socket.
func vacant(ctx context.Context, file string) error {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is not a socket (%s)", file, info.Mode())
	}
	dialer := net.Dialer{Timeout: time.Second}
	if c, err := dialer.DialContext(ctx, "unix", file); err == nil {
		_ = c.Close()
		return errors.New("another process is listening there")
	}
	return os.Remove(file)
}

// intercept turns errors into statuses, logs, and tells Config.Observe. A panic ends the call, not the process: one
// volume's broken invariant must not take the others away.
func (s Services) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	start := time.Now()
	_ = grpc.SetTrailer(ctx, metadata.Pairs(answeredKey, "")) // fails outside of a call only
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("call panicked", "method", path.Base(info.FullMethod), "panic", p, "stack", string(debug.Stack()))
			response, err = nil, answer(codes.Internal, "internal error; see the log of the driver")
		}
		err = toStatus(err)
		s.report(ctx, info.FullMethod, request, err, time.Since(start))
	}()
	return handler(ctx, request)
}

func (s Services) report(ctx context.Context, method string, request any, err error, took time.Duration) {
	code := codeOf(err)
	s.Observe(method, code.String(), took)
	attributes := []any{"method", path.Base(method), "code", code.String(), "took", took, "request", protosanitizer.StripSecrets(request).String()}
	if err == nil {
		s.Log.DebugContext(ctx, "call", attributes...)
		return
	}
	s.Log.WarnContext(ctx, "call refused", append(attributes, "error", status.Convert(err).Message())...)
}
