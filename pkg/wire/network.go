package wire

import (
	"context"
	"errors"
	"io/fs"
	"os"
)

// Network is where the sockets of a machine are. Unix is that of the machine on which this process runs; a simulated machine
// brings its own, which fails in the same ways.
type Network interface {
	// Listen takes the socket at path: see the function of that name.
	Listen(path string) (Socket, error)
	// Client returns a client for the socket at path: see NewClient.
	Client(path string, codes map[string]error) *Client
	// Remove removes the socket that a dead process left behind. None is no error.
	Remove(path string) error
}

// Socket is a place at which calls arrive.
type Socket interface {
	// Serve has s answer them: see Server.Serve.
	Serve(ctx context.Context, s *Server) error
	// Close gives the place up. Calling it twice is harmless.
	Close() error
}

// Unix is the network of unix sockets.
type Unix struct{}

// Listen implements Network.
func (Unix) Listen(path string) (Socket, error) {
	l, err := Listen(path)
	if err != nil {
		return nil, err // and not a socket that is a nil *Listener
	}
	return l, nil
}

// Client implements Network.
func (Unix) Client(path string, codes map[string]error) *Client { return NewClient(path, codes) }

// Remove implements Network.
func (Unix) Remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Serve implements Socket.
func (l *Listener) Serve(ctx context.Context, s *Server) error { return s.Serve(ctx, l) }

// Transport carries one call to a server and hands over the lines of its answer as they come, until more returns false. Where
// the answer ends before that, or the server cannot be reached, it returns why, or nil: the outcome is ErrLost then, and
// ErrNotRunning where the error wraps ECONNREFUSED or fs.ErrNotExist.
type Transport func(ctx context.Context, method string, request []byte, more func(line []byte) bool) error

// NewClientOver returns a client that reaches its server by other means than a unix socket. path is for people.
func NewClientOver(t Transport, path string, codes map[string]error) *Client {
	return &Client{Peer: "the server", path: path, codes: newCodebook(codes), transport: t}
}

// Answer does what a caller asks for and hands over the answer line by line, the last one before it returns: all that a server
// does but for the connection, for a Transport's other end. line is called by one goroutine at a time and may wait.
func (s *Server) Answer(ctx context.Context, method string, request []byte, line func([]byte)) {
	m, err := s.find(method)
	if err != nil {
		lineWriter(line).write(message{Error: s.codes.encode(err)})
		return
	}
	s.perform(ctx, m, request, line)
}
