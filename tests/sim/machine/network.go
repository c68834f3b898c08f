package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/wire"
)

// network is what a process sees of the sockets.
type network struct{ p *Process }

// socket is a place at which a process listens.
type socket struct {
	machine *Machine
	owner   *Process
	path    string
	served  chan struct{} // closed when it is served
	closed  chan struct{} // closed when it is given up, or its owner is dead
	running sync.WaitGroup

	server *wire.Server    // set before served is closed
	ctx    context.Context // the same; ends what is being answered

	isClosed bool // guarded by machine.mu
}

func (n network) Listen(path string) (wire.Socket, error) {
	if err := n.p.spend("listen"); err != nil {
		return nil, err
	}
	m := n.p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	if n.p.ending {
		return nil, ErrKilled
	}
	if s := m.sockets[path]; s != nil && !s.isClosed {
		return nil, fmt.Errorf("listen at %s: %w: %s answers there", path, wire.ErrInUse, s.owner)
	}
	s := &socket{machine: m, owner: n.p, path: path, served: make(chan struct{}), closed: make(chan struct{})}
	m.sockets[path] = s
	return s, nil
}

func (n network) Client(path string, codes map[string]error) *wire.Client {
	return wire.NewClientOver(func(ctx context.Context, method string, request []byte, more func([]byte) bool) error {
		return n.carry(ctx, path, method, request, more)
	}, path, codes)
}

func (n network) Remove(path string) error {
	if err := n.p.gate(); err != nil {
		return err
	}
	n.p.machine.mu.Lock()
	defer n.p.machine.mu.Unlock()
	if s := n.p.machine.sockets[path]; s != nil && s.isClosed {
		delete(n.p.machine.sockets, path)
	}
	return nil
}

// closeSockets gives up those of a process that dies. The caller holds mu.
func (m *Machine) closeSockets(p *Process) {
	for _, path := range slices.Sorted(maps.Keys(m.sockets)) {
		if s := m.sockets[path]; s.owner == p {
			s.close()
		}
	}
}

// close ends the listening. The caller holds mu.
func (s *socket) close() {
	if !s.isClosed {
		s.isClosed = true
		close(s.closed)
	}
}

func (s *socket) Close() error {
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	s.close()
	if s.machine.sockets[s.path] == s && !s.owner.ending {
		delete(s.machine.sockets, s.path)
	}
	return nil
}

func (s *socket) Serve(ctx context.Context, server *wire.Server) error {
	s.server, s.ctx = server, ctx
	close(s.served)
	select {
	case <-ctx.Done():
	case <-s.closed:
	}
	_ = s.Close()
	s.running.Wait()
	return s.owner.gate()
}

// call is a call on its way. Its lines go from the server's goroutine to the caller's.
type call struct {
	name    string
	lines   chan []byte
	hungUp  context.Context // ended by the caller
	notices time.Duration   // how long the caller takes to notice that the server is dead
}

// carry is a wire.Transport.
func (n network) carry(ctx context.Context, path, method string, request []byte, more func([]byte) bool) error {
	if err := n.p.spend("call " + method); err != nil {
		return err
	}
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	s, c := n.p.machine.connect(path), n.newCall(ctx, method)
	if s == nil {
		return fmt.Errorf("connect %s: %w", path, syscall.ECONNREFUSED)
	}
	go s.answer(c, method, bytes.Clone(request))
	return n.receive(s, c, more)
}

// newCall names the call, so that what becomes of it depends on which one it is, and not on which of several is first at some moment.
func (n network) newCall(ctx context.Context, method string) *call {
	name := n.p.machine.numbered(method + " of " + n.p.String())
	return &call{name: name, lines: make(chan []byte), hungUp: ctx, notices: n.p.machine.takes("lose " + name)}
}

// connect returns the socket at the path, with one more call to answer, nil where nobody listens.
func (m *Machine) connect(path string) *socket {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sockets[path]
	if s == nil || s.isClosed {
		return nil
	}
	s.running.Add(1)
	return s
}

// receive hands over the lines of the answer until it ends, the server or the caller dies, or the caller has enough.
func (n network) receive(s *socket, c *call, more func([]byte) bool) error {
	for {
		if err := n.p.gate(); err != nil {
			return err
		}
		if s.owner.gone() {
			return n.lose(s, c)
		}
		var line []byte
		ok := true
		select {
		case line, ok = <-c.lines:
		case <-c.hungUp.Done():
		case <-n.p.dead:
		case <-s.owner.dead:
		}
		if err := n.p.gate(); err != nil {
			return err
		}
		if line == nil && s.owner.gone() {
			continue
		}
		if err := c.hungUp.Err(); err != nil || !ok {
			return err
		}
		if line != nil && !more(line) {
			return nil
		}
	}
}

// lose ends a call whose server is dead. Not all who waited for that server notice at one moment: what they do next, and the pauses that they
// make, would be in the order of chance then.
func (n network) lose(s *socket, c *call) error {
	time.Sleep(c.notices)
	if err := n.p.gate(); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", s.owner, io.ErrUnexpectedEOF)
}

// answer has the server answer a call once it serves. Where it never does, or dies, the caller gets no last line.
func (s *socket) answer(c *call, method string, request []byte) {
	defer s.running.Done()
	defer close(c.lines)
	select {
	case <-s.served:
	case <-s.closed:
		return
	case <-c.hungUp.Done():
		return
	}
	if s.owner.spend("take "+c.name) != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(c.hungUp, cancel)()
	s.server.Answer(ctx, method, request, func(line []byte) { s.send(c, line) })
}

func (s *socket) send(c *call, line []byte) {
	if s.sends(c, line) != nil {
		return
	}
	select {
	case c.lines <- bytes.Clone(line):
	case <-c.hungUp.Done():
	case <-s.owner.dead:
	}
}

// sends lets the time pass that a line takes: none where it tells progress. What is told twice at one moment is one line or two, as the Go
// scheduler has it, and nothing else may come of that.
func (s *socket) sends(c *call, line []byte) error {
	if bytes.HasPrefix(line, []byte(`{"progress":`)) {
		return s.owner.gate()
	}
	return s.owner.spend("answer " + c.name)
}
