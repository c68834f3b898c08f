package machine

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/wire"
)

// Image is what an engine's program does. The process ends when it returns; ctx ends when the process is killed.
type Image func(ctx context.Context, p *Process, e host.EngineProcess) error

// image is a program as a file: another one under its name is another file.
type image struct {
	path string
	run  Image // nil: it is no program
}

// Install makes run the program at the path. A nil run cannot be started. Processes, and those who have opened it, keep what
// was there before.
func (m *Machine) Install(path string, run Image) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images[path] = &image{path, run}
}

// view is what a process sees of the machine.
type view struct{ p *Process }

func (v view) Boot() (string, error) { return v.p.machine.boot(), v.p.gate() }
func (v view) Self() host.Identity   { return v.p.id }
func (v view) Files() vfs.FS         { return v.p.Files() }
func (v view) Network() wire.Network { return v.p.Network() }
func (v view) Resend() (bool, error) { return !v.p.machine.config.WithoutResend, v.p.gate() }
func (i *image) Close() error        { return nil }

func (v view) Open(path string) (host.Executable, error) {
	if err := v.p.gate(); err != nil {
		return nil, err
	}
	v.p.machine.mu.Lock()
	defer v.p.machine.mu.Unlock()
	if i := v.p.machine.images[path]; i != nil {
		return i, nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}

func (v view) Start(s host.Start) (host.Child, io.WriteCloser, io.Reader, error) {
	i := s.Program.(*image)
	if err := v.p.spend("start"); err != nil {
		return nil, nil, nil, err
	}
	if i.run == nil {
		return nil, nil, nil, &fs.PathError{Op: "exec", Path: i.path, Err: syscall.ENOEXEC}
	}
	m := v.p.machine
	c := m.newProcess("engine", i)
	dev := s.Device.(*export).dev
	m.mu.Lock()
	dev.hold(c)
	m.mu.Unlock()
	in, out := m.newPipe(c, v.p), m.newPipe(v.p, c)
	e := host.EngineProcess{
		In: readEnd{in}, Out: writeEnd{out, c}, Self: c.id, Files: c.Files(), Network: c.Network(),
		Server: func(b device.Backend, o device.ServeOptions) (host.Server, error) {
			return newServer(c, dev, b, o), nil
		},
	}
	c.goes(func(ctx context.Context, p *Process) error { return i.run(ctx, p, e) })
	return child{v.p, c}, writeEnd{in, v.p}, readEnd{out}, nil
}

func (v view) Find(id host.Identity) (host.Child, error) {
	if err := v.p.gate(); err != nil {
		return nil, err
	}
	if c := v.p.machine.Find(id.PID); c != nil && c.id == id {
		return child{v.p, c}, nil
	}
	return nil, host.ErrGone
}

func (v view) End(ctx context.Context, id host.Identity) error {
	c, err := v.Find(id)
	if err != nil {
		return v.p.gate() // it is gone already
	}
	c.Kill()
	select {
	case <-c.(child).of.dead:
		return v.p.gate()
	case <-ctx.Done():
		return fmt.Errorf("process %d does not die: %w", id.PID, context.Cause(ctx))
	}
}

// child is a process as another one sees it.
type child struct{ by, of *Process }

func (c child) ID() host.Identity { return c.of.id }

func (c child) Program() (host.Executable, error) {
	if err := c.by.gate(); err != nil {
		return nil, err
	}
	if c.of.gone() {
		return nil, host.ErrGone
	}
	return c.of.image, nil
}

func (p *Process) gone() bool {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	return p.ending
}

func (c child) Kill() {
	if c.by.gate() == nil {
		c.of.Kill()
	}
}

func (c child) Wait() error {
	select {
	case <-c.of.dead:
	case <-c.by.dead:
	}
	if err := c.by.gate(); err != nil {
		return err
	}
	c.of.machine.mu.Lock()
	defer c.of.machine.mu.Unlock()
	if c.of.cause == "exit status 0" {
		return nil
	}
	return exitError(c.of.cause)
}

// exitError is how a process ended.
type exitError string

func (e exitError) Error() string { return string(e) }

func (v view) CreateDevice(c device.Config) (host.Export, error) {
	if err := v.p.spend("create device"); err != nil {
		return nil, err
	}
	m := v.p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.newDevice(c)
	d.hold(v.p)
	return &export{v.p, d}, nil
}

func (v view) AdoptDevice(c device.Config, from host.Child, path string) (host.Export, error) {
	if err := v.p.spend("adopt device"); err != nil {
		return nil, err
	}
	m := v.p.machine
	m.mu.Lock()
	defer m.mu.Unlock()
	of := from.(child).of
	d := m.devices[path]
	switch {
	case of.ending:
		return nil, host.ErrGone
	case d == nil || d.name != c.Name:
		return nil, fmt.Errorf("%s: %w", path, device.ErrForeign)
	case !d.heldBy(of):
		return nil, fmt.Errorf("%s does not have the channel of %s: %w", of, path, syscall.EBADF)
	}
	d.hold(v.p)
	m.trace("%s takes %s back from %s", v.p, d, of)
	return &export{v.p, d}, nil
}

func (v view) Leftovers(volume string) (paths []string, err error) {
	if err := v.p.spend("list devices"); err != nil {
		return nil, err
	}
	v.p.machine.mu.Lock()
	defer v.p.machine.mu.Unlock()
	for _, d := range v.p.machine.known() {
		if d.name == volume && d.path != "" {
			paths = append(paths, d.path)
		}
	}
	slices.SortFunc(paths, strings.Compare)
	return paths, nil
}

func (v view) RemoveLeftovers(ctx context.Context, volume string) error {
	paths, err := v.Leftovers(volume)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := v.remove(ctx, path); err != nil {
			return err
		}
	}
	return nil
}
