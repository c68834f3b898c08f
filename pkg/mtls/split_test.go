package mtls

import (
	"crypto/tls"
	"errors"
	"net"
	"syscall"
	"testing"
)

// short is a listener whose process has no file left for the first connections.
type short struct {
	net.Listener
	fail int
}

func (s *short) Accept() (net.Conn, error) {
	if s.fail > 0 {
		s.fail--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return s.Listener.Accept()
}

// TestSplitOutlivesAShortageOfFiles: the servers at it would ask on and on, of a listener that is none any more.
func TestSplitOutlivesAShortageOfFiles(t *testing.T) {
	a := authority(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	part := Split(&short{l, 2}, files(t, issue(t, a, Node)).Server(Controller, "h2"), nil, "h2")["h2"]
	client := files(t, issue(t, a, Controller)).Client(Node, "h2")
	go func() {
		if c, err := tls.Dial("tcp", l.Addr().String(), client); err == nil {
			c.Close()
		}
	}()
	c, err := part.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	part.Close()
	if _, err := part.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it is closed, and: %v", err)
	}
}
