package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/wire"
)

var (
	// ErrKilled is what a dead process gets of whatever it still asks for. It says that a device is lost, so that a dead host gives its
	// devices up instead of waiting for better times; nothing comes of that.
	ErrKilled = fmt.Errorf("the process is dead: %w: %w", fs.ErrClosed, engine.ErrDeviceLost)
	// ErrPowerCut ends the requests of a guest whose machine has lost its power.
	ErrPowerCut = errors.New("power cut")
)

// Process is a process of the machine.
type Process struct {
	machine *Machine
	id      host.Identity
	name    string
	image   *image // what it runs, nil where it was started by Start
	ctx     context.Context
	cancel  context.CancelCauseFunc
	files   func() vfs.FS
	dead    chan struct{} // closed when nothing of it has any effect any more

	// Guarded by machine.mu.
	ending  bool
	lingers time.Duration // how long it takes to die
	stopped chan struct{} // closed when it goes on; nil while it runs
	hooks   []func()      // of OnKill
	ends    []*pipe       // that it holds
	cause   string        // of its end
}

// Start runs a process that nobody on the machine is the parent of. It ends when run returns, or when it is killed: then ctx ends.
func (m *Machine) Start(name string, run func(ctx context.Context, p *Process) error) *Process {
	p := m.newProcess(name, nil)
	p.goes(run)
	return p
}

func (m *Machine) newProcess(name string, i *image) *Process {
	p := &Process{machine: m, name: name, image: i, dead: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancelCause(context.Background())
	p.files = sync.OnceValue(func() vfs.FS { return &files{p, m.config.Files(p)} })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastPID++
	p.id = host.Identity{PID: m.lastPID, Start: strconv.FormatInt(int64(time.Since(m.started)/time.Millisecond), 10)}
	m.processes[p.id.PID] = p
	m.trace("%s starts", p)
	return p
}

func (p *Process) goes(run func(context.Context, *Process) error) {
	p.machine.running.Go(func() {
		cause := "exit status 0"
		if err := run(p.ctx, p); err != nil {
			cause = "exit status 1"
			if !p.gone() { // of several things that a killed process fails of chance says which is told
				p.machine.config.Log.Debug("process ended", "process", p.String(), "error", err)
			}
		}
		p.machine.end([]*Process{p}, cause)
	})
}

// String names the process for people: "engine/104".
func (p *Process) String() string { return fmt.Sprintf("%s/%d", p.name, p.id.PID) }

// ID names the process for other processes.
func (p *Process) ID() host.Identity { return p.id }

// Dead is closed when the process is dead.
func (p *Process) Dead() <-chan struct{} { return p.dead }

// OnKill has f called when the process dies, before anybody is told. Where it is dead already f is called at once. f must not wait.
func (p *Process) OnKill(f func()) {
	p.machine.mu.Lock()
	ending := p.ending
	if !ending {
		p.hooks = append(p.hooks, f)
	}
	p.machine.mu.Unlock()
	if ending {
		f()
	}
}

// Go runs f as a part of the process that Machine.Wait waits for.
func (p *Process) Go(f func()) { p.machine.running.Go(f) }

// Kill ends the process, whatever it does, also where it is stopped or does this itself: at once, unless it lingers.
func (p *Process) Kill() {
	p.machine.mu.Lock()
	lingers := p.lingers
	p.machine.mu.Unlock()
	if lingers == 0 {
		p.machine.end([]*Process{p}, "signal: killed")
		return
	}
	p.Stop()
	p.Go(func() {
		select {
		case <-time.After(lingers):
			p.machine.end([]*Process{p}, "signal: killed")
		case <-p.dead:
		}
	})
}

// Linger has the process take that long to die once it is killed, like one that waits for a disk. It does nothing more meanwhile.
func (p *Process) Linger(d time.Duration) {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	p.lingers = d
}

// end ends processes, all of them before any of them or anybody else notices.
func (m *Machine) end(all []*Process, cause string) {
	var ending []*Process
	m.mu.Lock()
	for _, p := range all {
		if !p.ending {
			p.ending, p.cause = true, cause
			ending = append(ending, p)
			delete(m.processes, p.id.PID)
			m.trace("%s ends: %s", p, cause)
		}
	}
	m.mu.Unlock()
	for _, p := range ending {
		p.die()
	}
}

// die takes away all that the process has.
func (p *Process) die() {
	m := p.machine
	m.mu.Lock()
	hooks := p.hooks
	p.hooks = nil
	m.mu.Unlock()
	for _, f := range hooks {
		f()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closeSockets(p)
	for _, e := range p.ends {
		e.drop(p)
	}
	for _, d := range m.known() {
		d.release(p)
	}
	close(p.dead)
	p.cancel(ErrKilled)
}

// Stop has the process do nothing, like SIGSTOP, until Continue or its death.
func (p *Process) Stop() {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	if p.stopped == nil && !p.ending {
		p.stopped = make(chan struct{})
		p.machine.trace("%s is stopped", p)
	}
}

// Continue ends a Stop.
func (p *Process) Continue() {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	if p.stopped != nil && !p.ending {
		close(p.stopped)
		p.stopped = nil
		p.machine.trace("%s goes on", p)
	}
}

// gate returns as soon as the process runs, with ErrKilled where it never will again.
func (p *Process) gate() error {
	for {
		p.machine.mu.Lock()
		ending, stopped := p.ending, p.stopped
		p.machine.mu.Unlock()
		switch {
		case ending:
			return ErrKilled
		case stopped == nil:
			return nil
		}
		select {
		case <-stopped:
		case <-p.dead:
		}
	}
}

// spend lets the time pass that a call of the process takes.
func (p *Process) spend(call string) error {
	if err := p.gate(); err != nil {
		return err
	}
	time.Sleep(p.machine.takes(p.String() + " " + call))
	return p.gate()
}

// Files is what the process sees of the disks.
func (p *Process) Files() vfs.FS { return p.files() }

// Network is what the process sees of the sockets.
func (p *Process) Network() wire.Network { return network{p} }

// Machine is what the process sees of the machine: for host.Config and mirror.Config.
func (p *Process) Machine() host.Machine { return view{p} }
