package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
)

// Client calls the server at a socket. It may be used concurrently and holds no connection between calls.
type Client struct {
	// Peer says for people who listens there: "belay serve", "the engine of volume x". Set it before the first call.
	Peer      string
	path      string
	codes     codebook
	transport Transport
}

// NewClient returns a client for the socket at path. Nobody needs to listen there yet. codes are the server's.
func NewClient(path string, codes map[string]error) *Client {
	return NewDialClient(func(ctx context.Context) (net.Conn, error) { return connect(ctx, path) }, path, codes)
}

// NewDialClient returns a client that calls dial for a connection to its server, once for each call. path is for people.
func NewDialClient(dial func(context.Context) (net.Conn, error), path string, codes map[string]error) *Client {
	// A connection for each call: hanging up is how a call is cancelled, and none can be half dead from before a restart.
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	l := &line{http: &http.Client{Transport: t}}
	return NewClientOver(l.carry, path, codes)
}

// Call asks the method and returns its result. onProgress, which may be nil, is called in order, from this
// goroutine, before Call returns. Where ctx ends first the server is told by hanging up and the outcome is unknown.
//
// Errors: those of the method, with the sentinels that both sides know; ErrNotRunning; ErrLost; the others of this package.
func Call[Resp, P any](ctx context.Context, c *Client, method string, req any, onProgress func(P)) (Resp, error) {
	var resp Resp
	raw, err := c.call(ctx, method, req, eachProgress(onProgress))
	if err != nil {
		return resp, err
	}
	if err := json.Unmarshal(raw, &resp); err != nil {
		return resp, fmt.Errorf("%w: %s answered %s with something else than a %T: %w", ErrBadRequest, c.Peer, method, resp, err)
	}
	return resp, nil
}

func eachProgress[P any](onProgress func(P)) func(json.RawMessage) error {
	if onProgress == nil {
		return nil
	}
	return func(raw json.RawMessage) error {
		var p P
		if err := json.Unmarshal(raw, &p); err != nil {
			return fmt.Errorf("%w: progress: %w", ErrBadRequest, err)
		}
		onProgress(p)
		return nil
	}
}

func (c *Client) call(ctx context.Context, method string, req any, progress func(json.RawMessage) error) (json.RawMessage, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRequest, method, err)
	}
	if len(body) > RequestMax {
		return nil, fmt.Errorf("%w: %s: request of %d bytes, at most %d", ErrTooLarge, method, len(body), RequestMax)
	}
	a := answer{codes: c.codes, progress: progress}
	if err := c.transport(ctx, method, body, a.more); !a.ended {
		return nil, c.explain(ctx, method, err)
	}
	return a.result, a.err
}

// line is a connection with HTTP on it.
type line struct{ http *http.Client }

// carry is a Transport.
func (l *line) carry(ctx context.Context, method string, request []byte, more func([]byte) bool) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://belay"+pathPrefix+url.PathEscape(method), bytes.NewReader(request))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	r.Header.Set(versionHeader, Version)
	r.Header.Set("Content-Type", "application/json")
	resp, err := l.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if theirs := resp.Header.Get(versionHeader); theirs != Version {
		return versionError(theirs)
	}
	return readLines(resp.Body, more)
}

// explain turns a failure of the connection, nil where the answer just ended, into one of the three outcomes and says who did not answer.
func (c *Client) explain(ctx context.Context, method string, err error) error {
	var urlError *url.Error
	if errors.As(err, &urlError) {
		err = urlError.Err
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: gave up waiting for %s: %w", method, c.Peer, context.Cause(ctx))
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is %w: nobody answers at %s", c.Peer, ErrNotRunning, c.path)
	case errors.Is(err, ErrPeer), errors.Is(err, fs.ErrPermission), errors.Is(err, ErrVersion):
		return fmt.Errorf("%s at %s: %w", c.Peer, c.path, err)
	case errors.Is(err, ErrTooLarge), errors.Is(err, ErrBadRequest):
		return fmt.Errorf("%s: %s at %s: %w", method, c.Peer, c.path, err)
	case err == nil:
		return fmt.Errorf("%s: %s at %s: %w: it ended before its result", method, c.Peer, c.path, ErrLost)
	case errors.Is(err, ErrLost):
		return fmt.Errorf("%s: %s at %s: %w", method, c.Peer, c.path, err)
	}
	return fmt.Errorf("%s: %s at %s: %w: %w", method, c.Peer, c.path, ErrLost, err)
}

// connect reaches the unix socket of a peer that can be trusted.
func connect(ctx context.Context, path string) (net.Conn, error) {
	conn, err := dial(path, func(name string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", name)
	})
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
