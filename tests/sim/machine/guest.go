package machine

import (
	"bytes"
	"io/fs"
	"sync/atomic"
	"syscall"
)

// Guest is a block device that a workload has open. Calls run concurrently and wait for as long as nobody answers. Errors are the kernel's:
// EIO of a dead device, EINVAL, ENOSPC; ErrPowerCut where the machine has lost its power.
type Guest struct {
	dev    *blockDevice
	closed atomic.Bool
}

// OpenDevice opens the device at the path. Until Close it is in use.
func (m *Machine) OpenDevice(path string) (*Guest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := m.devices[path]
	if d == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENXIO}
	}
	d.opens++
	return &Guest{dev: d}, nil
}

// Close ends the use of the device. Calls under way go on.
func (g *Guest) Close() {
	if g.closed.Swap(true) {
		return
	}
	g.dev.machine.mu.Lock()
	defer g.dev.machine.mu.Unlock()
	g.dev.opens--
}

// Dead says that the device answers nothing but errors any more.
func (g *Guest) Dead() bool {
	g.dev.machine.mu.Lock()
	defer g.dev.machine.mu.Unlock()
	return g.dev.over != nil
}

// Used says that the device is open.
func (g *Guest) Used() bool { return !g.closed.Load() }

// Size is the device's, as the kernel knows it.
func (g *Guest) Size() int64 {
	g.dev.machine.mu.Lock()
	defer g.dev.machine.mu.Unlock()
	return g.dev.size
}

// ReadAt fills p from off.
func (g *Guest) ReadAt(p []byte, off int64) error {
	r := &request{op: opRead, offset: off, length: int64(len(p))}
	if err := g.ask(r); err != nil {
		return err
	}
	copy(p, r.read)
	return nil
}

// WriteAt writes p at off.
func (g *Guest) WriteAt(p []byte, off int64) error {
	return g.ask(&request{op: opWrite, offset: off, length: int64(len(p)), data: bytes.Clone(p)})
}

// Flush returns when everything that was answered before is on stable media.
func (g *Guest) Flush() error { return g.ask(&request{op: opFlush}) }

// Discard gives the range back.
func (g *Guest) Discard(off, n int64) error {
	return g.ask(&request{op: opDiscard, offset: off, length: n})
}

// Zero makes the range read as zeros.
func (g *Guest) Zero(off, n int64) error { return g.ask(&request{op: opZero, offset: off, length: n}) }

func (g *Guest) ask(r *request) error {
	if g.closed.Load() {
		return fs.ErrClosed
	}
	m := g.dev.machine
	m.mu.Lock()
	g.dev.ask(r)
	m.mu.Unlock()
	<-r.done
	m.mu.Lock()
	defer m.mu.Unlock()
	return r.err
}
