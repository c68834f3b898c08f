package machine

import (
	"io"
	"slices"
	"syscall"
)

// pipe has what was written until it is read. Reading waits; writing does not.
type pipe struct {
	machine *Machine

	// Guarded by machine.mu.
	text   []byte
	reader *Process // nil once it has closed its end
	writer *Process
	change chan struct{} // closed when something changes
}

func (m *Machine) newPipe(reader, writer *Process) *pipe {
	p := &pipe{machine: m, reader: reader, writer: writer, change: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, of := range []*Process{reader, writer} {
		of.ends = append(of.ends, p)
		if of.ending { // just now
			p.drop(of)
		}
	}
	return p
}

func (p *pipe) changed() {
	close(p.change)
	p.change = make(chan struct{})
}

// drop closes the ends of a process. The caller holds machine.mu.
func (p *pipe) drop(of *Process) {
	if p.reader == of {
		p.reader = nil
	}
	if p.writer == of {
		p.writer = nil
	}
	p.changed()
}

// readEnd and writeEnd are what the two processes have.
type (
	readEnd  struct{ *pipe }
	writeEnd struct {
		*pipe
		of *Process
	}
)

func (e readEnd) Read(b []byte) (int, error) {
	for {
		e.machine.mu.Lock()
		n := copy(b, e.text)
		e.text = slices.Delete(e.text, 0, n)
		of, over, change := e.reader, e.writer == nil, e.change
		e.machine.mu.Unlock()
		switch {
		case of == nil:
			return 0, ErrKilled
		case n > 0:
			return n, of.gate()
		case over:
			if err := of.gate(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		<-change
	}
}

func (e writeEnd) Write(b []byte) (int, error) {
	if err := e.of.gate(); err != nil {
		return 0, err
	}
	e.machine.mu.Lock()
	defer e.machine.mu.Unlock()
	if e.reader == nil {
		return 0, syscall.EPIPE
	}
	e.text = append(e.text, b...)
	e.changed()
	return len(b), nil
}

func (e writeEnd) Close() error {
	e.machine.mu.Lock()
	defer e.machine.mu.Unlock()
	if e.writer == e.of {
		e.writer = nil
		e.changed()
	}
	return nil
}
