package machine

import (
	"context"
	"fmt"
	"syscall"

	"github.com/belay-storage/belay/pkg/device"
)

// export is a device as its host has it.
type export struct {
	p   *Process
	dev *blockDevice
}

// sizeOf asks the server for the device's size, once there is one, and has the kernel take it.
func (e *export) sizeOf(ctx context.Context, take func(size int64)) error {
	if err := e.p.spend("ask for the size"); err != nil {
		return err
	}
	d, r := e.dev, &request{op: opSize}
	d.machine.mu.Lock()
	d.ask(r)
	d.machine.mu.Unlock()
	select {
	case <-r.done:
	case <-e.p.dead:
	case <-ctx.Done():
		return fmt.Errorf("device of volume %s waits for a server: %w", d.name, context.Cause(ctx))
	}
	if err := e.p.gate(); err != nil {
		return err
	}
	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	switch {
	case r.err != nil:
		return fmt.Errorf("device of volume %s: %w", d.name, r.err)
	case d.over != nil:
		return fmt.Errorf("device of volume %s: %w", d.name, device.ErrClosed)
	}
	take(r.size)
	return nil
}

func (e *export) Attach(ctx context.Context) (string, error) {
	if path := e.Path(); path != "" {
		return path, nil
	}
	err := e.sizeOf(ctx, func(size int64) {
		if e.dev.path == "" {
			e.dev.appear(size)
		}
	})
	return e.Path(), err
}

func (e *export) Path() string {
	e.dev.machine.mu.Lock()
	defer e.dev.machine.mu.Unlock()
	return e.dev.path
}

func (e *export) Resize(ctx context.Context) (size int64, err error) {
	err = e.sizeOf(ctx, func(n int64) { e.dev.size, size = n, n })
	return size, err
}

func (e *export) Resend() bool { return !e.dev.machine.config.WithoutResend }

func (e *export) Close(context.Context) error {
	if err := e.p.spend("close device"); err != nil {
		return err
	}
	d := e.dev
	d.machine.mu.Lock()
	defer d.machine.mu.Unlock()
	if d.opens > 0 {
		return fmt.Errorf("device of volume %s: close: %w", d.name, device.ErrInUse)
	}
	d.machine.trace("%s is taken away", d)
	d.end(syscall.ENXIO)
	d.vanish()
	return nil
}

func (e *export) Abandon() {
	if e.p.gate() != nil {
		return
	}
	e.dev.machine.mu.Lock()
	defer e.dev.machine.mu.Unlock()
	e.dev.letGo(e.p)
}

// remove takes away a device that is dead, or dies before ctx ends.
func (v view) remove(ctx context.Context, path string) error {
	m := v.p.machine
	for {
		if err := v.p.spend("remove device"); err != nil {
			return err
		}
		m.mu.Lock()
		d := m.devices[path]
		change, err := d.removable()
		m.mu.Unlock()
		if change == nil {
			return err
		}
		select {
		case <-change:
		case <-v.p.dead:
		case <-ctx.Done():
			return fmt.Errorf("remove %s: it waits: %w", path, device.ErrServed)
		}
	}
}

// removable takes the device away where it is dead. Where nobody can tell yet it returns what changes then. The caller holds machine.mu.
func (d *blockDevice) removable() (change <-chan struct{}, err error) {
	switch {
	case d == nil:
		return nil, nil
	case d.over == nil && len(d.servers) > 0:
		return nil, fmt.Errorf("remove %s: it answers: %w", d.path, device.ErrServed)
	case d.over == nil:
		return d.change, nil
	case d.opens > 0:
		return nil, fmt.Errorf("remove %s: %w", d.path, device.ErrInUse)
	}
	d.machine.trace("%s is taken away", d)
	d.vanish()
	return nil, nil
}
