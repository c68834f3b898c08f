package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	"google.golang.org/grpc/status"
)

// stopWait is how long calls that run may take to end once the server stops. What they began goes on or is resumed.
const stopWait = 10 * time.Second

// Serve answers CSI calls on endpoint, "unix:///path/of/socket", until ctx ends. Only the owner may connect. A socket
// that nobody listens on any more is replaced; one that is in use is an error that says so.
func (d *Driver) Serve(ctx context.Context, endpoint string) error {
	listener, err := listen(ctx, endpoint)
	if err != nil {
		return err
	}
	server := d.Server()
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	d.Log.Info("serving CSI", "endpoint", endpoint, "driver", d.Name, "node", d.NodeID)
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop(server)
	return <-done
}

// Server returns a gRPC server with the three services, for a caller with a listener of its own.
func (d *Driver) Server() *grpc.Server {
	s := grpc.NewServer(grpc.UnaryInterceptor(d.intercept))
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	return s
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
func (d *Driver) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			d.Log.Error("call panicked", "method", path.Base(info.FullMethod), "panic", p, "stack", string(debug.Stack()))
			response, err = nil, answer(codes.Internal, "internal error; see the log of the driver")
		}
		err = toStatus(err)
		d.report(ctx, info.FullMethod, request, err, time.Since(start))
	}()
	return handler(ctx, request)
}

func (d *Driver) report(ctx context.Context, method string, request any, err error, took time.Duration) {
	code := codeOf(err)
	d.Observe(method, code.String(), took)
	attributes := []any{"method", path.Base(method), "code", code.String(), "took", took, "request", protosanitizer.StripSecrets(request)}
	if err == nil {
		d.Log.DebugContext(ctx, "call", attributes...)
		return
	}
	d.Log.WarnContext(ctx, "call refused", append(attributes, "error", status.Convert(err).Message())...)
}
