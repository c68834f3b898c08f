package mtls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"
)

// shakeWithin bounds a handshake, so that a peer that says nothing holds nothing.
const shakeWithin = 10 * time.Second

// acceptAgain is how long after a shortage the next connection is accepted.
const acceptAgain = 100 * time.Millisecond

// Split accepts connections at l and hands each to the listener of the protocol that it has agreed on: one port, several servers. A connection
// that fails the handshake is told to refused, which may be nil. Closing l ends them all; closing one of them closes l.
func Split(l net.Listener, c *tls.Config, refused func(net.Addr, error), protocols ...string) map[string]net.Listener {
	s := &splitter{Listener: l, ended: make(chan struct{}), refused: refused, to: map[string]chan net.Conn{}}
	out := map[string]net.Listener{}
	for _, p := range protocols {
		s.to[p] = make(chan net.Conn)
		out[p] = &part{splitter: s, arriving: s.to[p]}
	}
	go s.run(c)
	return out
}

type splitter struct {
	net.Listener
	to      map[string]chan net.Conn
	refused func(net.Addr, error)
	ended   chan struct{} // closed when l accepts no more
	once    sync.Once
	err     error
}

type part struct {
	*splitter
	arriving chan net.Conn
}

func (s *splitter) run(c *tls.Config) {
	defer close(s.ended)
	for {
		conn, err := s.Listener.Accept()
		switch {
		case err == nil:
			go s.shake(tls.Server(conn, c))
		case passes(err):
			time.Sleep(acceptAgain)
		default:
			s.err = err
			return
		}
	}
}

// passes says that the listener goes on: it has had no file or no memory for a connection, for instance.
func passes(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && t.Temporary()
}

func (s *splitter) shake(conn *tls.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), shakeWithin)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	if err != nil {
		conn.Close()
		if s.refused != nil {
			s.refused(conn.RemoteAddr(), err)
		}
		return
	}
	to, ok := s.to[conn.ConnectionState().NegotiatedProtocol]
	if !ok {
		conn.Close() // it asked for none
		return
	}
	select {
	case to <- conn:
	case <-s.ended:
		conn.Close()
	}
}

// Accept returns the next connection that agreed on the protocol.
func (p *part) Accept() (net.Conn, error) {
	select {
	case c := <-p.arriving:
		return c, nil
	case <-p.ended:
		return nil, p.err
	}
}

// Close closes the listener of all.
func (s *splitter) Close() (err error) {
	s.once.Do(func() { err = s.Listener.Close() })
	return err
}
