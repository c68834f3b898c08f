package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/tests/sim/machine"
)

// errDeviceDead: the device answers nothing but errors.
var errDeviceDead = errors.New("the device is dead")

// attached is a device that the guest has open.
type attached struct {
	w     *world
	guest *machine.Guest
	path  string
}

// open has the guest open a device that was attached just now.
func (w *world) open(d engine.Device) (*attached, error) {
	g, err := w.programs.machine.OpenDevice(d.Path)
	if err != nil {
		return nil, err
	}
	w.kernel.mount(target)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.device = &attached{w: w, guest: g, path: d.Path}
	w.alive, w.excused, w.newest = true, w.lostReason != "", nil
	return w.device, nil
}

// close ends the use of the device.
func (a *attached) close() { a.guest.Close() }

// told turns the kernel's answer into the guest's: EIO of a device that has died is not the volume's fault.
func (a *attached) told(err error) error {
	switch {
	case err == nil, errors.Is(err, syscall.ENOSPC):
		return err
	case errors.Is(err, machine.ErrPowerCut), errors.Is(err, syscall.EIO) && a.guest.Dead():
		a.w.deviceDied()
		return fmt.Errorf("%w: %w", errDeviceDead, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", errDetaching, err)
	}
	return err
}

// errDetaching: a barrier has stopped the writer.
var errDetaching = errors.New("the volume is being detached")

func (a *attached) ReadAt(p []byte, off int64) error { return a.told(a.guest.ReadAt(p, off)) }
func (a *attached) Zero(off, n int64) error          { return a.told(a.guest.Zero(off, n)) }
func (a *attached) Flush() error                     { return a.told(a.guest.Flush()) }

// WriteAt writes. I6: nothing is confirmed that was written behind a receipt. (To make zeros of zeros is no write.)
func (a *attached) WriteAt(p []byte, off int64) error {
	behind := a.w.covered()
	err := a.told(a.guest.WriteAt(p, off))
	if behind && err == nil {
		a.w.fail("I6: a write was confirmed that was made behind the receipt")
	}
	return err
}

// covered says that a receipt of the present attachment is in force.
func (w *world) covered() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.newest != nil
}

// deviceDied notes that what was not stable may be gone.
func (w *world) deviceDied() {
	w.mu.Lock()
	w.alive = false
	w.mu.Unlock()
}

// excuse notes that the device may be gone from now on without anybody having done wrong.
func (w *world) excuse() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.excused = true
}

// inUse says that the guest has a device, which nothing excuses to be taken away.
func (w *world) inUse() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.device != nil && !w.excused
}

// receipt looks at a receipt that has just come into force.
func (w *world) receipt(r receipt.Receipt) {
	w.trace.add(func() string {
		text, err := json.Marshal(r)
		return fmt.Sprintf("receipt: %s %v", text, err)
	})
	w.mu.Lock()
	w.newest = &r
	w.mu.Unlock()
	w.invariants.attested(r)
}

// fenced looks at a fence: nobody shuts out a writer that lives without a reason to.
func (w *world) fenced(_ volume.Attachment, _ engine.FenceProof, reason string) {
	w.trace.add(func() string { return "fenced: " + reason })
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.device != nil && w.device.guest.Used() && !w.excused && w.failure == nil {
		w.failure = fmt.Errorf("a writer whose guest lives was fenced: %s", reason)
	}
}

// detached: the volume is. What the newest receipt says of the guest's writes must be true.
func (w *world) detached() {
	w.mu.Lock()
	r, had := w.newest, w.device != nil
	w.newest, w.device, w.alive = nil, nil, false
	w.mu.Unlock()
	switch {
	case !had:
		return
	case r != nil && r.Clean:
		w.guest.detached()
	default:
		w.guest.lost()
		w.guest.attached()
	}
	w.guest.prove()
}

// cutPower ends everything on the machine at once. The disks keep what was synced, and of the rest what the dice say.
func (w *world) cutPower() {
	w.excuse()
	w.programs.machine.PowerCut()
	for _, d := range append([]*disk{w.root}, w.disks...) {
		r := w.dice.roll("power " + d.name)
		d.mu.Lock()
		if w.plan.liar >= 0 {
			d.mem = d.mem.CrashClone(nil) // a torn block and a rotten copy of it are more than anybody can mend
		} else {
			d.mem = d.mem.CrashClone(r)
		}
		d.mu.Unlock()
	}
	w.kernel.unmount(target)
	w.deviceDied()
}
