package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
)

// Releaser takes a volume's mounts away and proves that nothing holds its device. It is the detach.Releaser of a node.
type Releaser struct{ m *Mounter }

var _ detach.Releaser = Releaser{}

// NewReleaser returns a Releaser that works with m.
func NewReleaser(m *Mounter) Releaser { return Releaser{m} }

// settleWait is how long the kernel may take to let go of a superblock after the last unmount.
const settleWait = 5 * time.Second

// Release implements detach.Releaser. Where somebody uses the volume nothing is touched.
func (r Releaser) Release(ctx context.Context, e detach.Entry, state detach.DeviceState) error {
	x := r.examine(e, state)
	if err := x.refuseMounts(); err != nil {
		return err
	}
	if err := x.refuseUsers(); err != nil {
		return err
	}
	if err := x.writeBack(ctx); err != nil {
		return err
	}
	closed, err := x.unmountStaging(ctx)
	if err != nil {
		return err
	}
	if err := x.verifyClosed(ctx, closed); err != nil {
		return err
	}
	return x.proveUnheld(ctx)
}

// Holders implements detach.Releaser.
func (r Releaser) Holders(ctx context.Context, e detach.Entry) []string {
	if e.Device == "" {
		return nil
	}
	held, err := r.m.Held(ctx, e.Device)
	if err != nil {
		return []string{"could not be told: " + err.Error()}
	}
	names := make([]string, len(held))
	for i, h := range held {
		names[i] = h.String()
	}
	return names
}

// exit is one release under way.
type exit struct {
	*Mounter
	e      detach.Entry
	device string // "" where no device can be there; its number may belong to another volume by now
	alive  bool
}

func (r Releaser) examine(e detach.Entry, state detach.DeviceState) exit {
	x := exit{Mounter: r.m, e: e, device: e.Device, alive: state == detach.DeviceAlive || state == detach.DeviceUnknown}
	if on, mounted, err := r.m.At(e.Staging); x.device == "" && err == nil && mounted && IsBlock(on.Source) {
		x.device = on.Source // a crash between the mount and its note in the journal
	}
	if state == detach.DeviceNone {
		x.device = ""
	}
	return x
}

// refuseMounts is ErrHeld where the volume is published still, since a mount without an open file has a workload all the
// same, and where something else is mounted on the staging path.
func (x exit) refuseMounts() error {
	for _, t := range x.e.Targets {
		on, mounted, err := x.At(t.Path)
		if err != nil {
			return err
		}
		if mounted {
			return fmt.Errorf("%w: it is published at %s (%s is mounted there); unpublish it first", detach.ErrHeld, t.Path, on.Source)
		}
	}
	on, mounted, err := x.At(x.e.Staging)
	if err != nil || !mounted {
		return err
	}
	return x.refuseForeign(on)
}

func (x exit) refuseForeign(on Entry) error {
	if x.device == "" || on.Shows(x.device) {
		return nil
	}
	return fmt.Errorf("%w: %s (%s) is mounted on %s and is not %s", detach.ErrHeld, on.Source, on.FSType, on.Path, x.device)
}

// refuseUsers is ErrHeld where the device is mounted anywhere but on the staging path, in whatever mount namespace; what the kernel takes away
// together with that mount does not count. Processes are not looked for yet: an unmount that they are in the way of touches nothing.
func (x exit) refuseUsers() error {
	if x.device == "" {
		return nil
	}
	staging, err := realPath(x.e.Staging)
	if err != nil {
		return err
	}
	mounts, err := x.MountedAt(x.device)
	if err != nil {
		return x.gone(err)
	}
	copies, err := x.copies(staging)
	if err != nil {
		return err
	}
	return x.held(slices.DeleteFunc(mounts, func(h Holder) bool { return h.PID == 0 && h.Name == staging || h.PID != 0 && copies[h.mount] }))
}

func (x exit) held(by []Holder) error {
	if len(by) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w; end it, then ask again", detach.ErrHeld, &BusyError{Path: x.device, Holders: by})
}

// gone takes a device that is not there any more for lost.
func (x exit) gone(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: %w", engine.ErrDeviceLost, err)
	}
	return err
}

// writeBack makes the filesystem durable while errors can still be heard of.
func (x exit) writeBack(ctx context.Context) error {
	on, mounted, err := x.At(x.e.Staging)
	if err != nil || !mounted || !x.alive || on.ReadOnly() && x.e.ReadOnly {
		return err
	}
	if err := x.Sync(ctx, x.e.Staging); err != nil {
		if ctx.Err() != nil {
			return err
		}
		return x.unflushed(err)
	}
	faults, err := x.Faults(x.e.Staging, !x.e.ReadOnly)
	if err == nil && len(faults) > 0 {
		err = x.unflushed(fmt.Errorf("%w: %v", ErrDamaged, faults))
	}
	return err
}

// unflushed is ErrWriteback the first time; the agent has noted it from then on.
func (x exit) unflushed(cause error) error {
	if x.e.Unflushed != "" {
		x.log.Warn("released all the same", "volume", x.e.Attachment.Volume, "error", cause)
		return nil
	}
	return fmt.Errorf("%w: %w", detach.ErrWriteback, cause)
}

// unmountStaging returns the type of the filesystem that it took away, "" for none. It unmounts as often as something of
// the volume is mounted there. Something else is left alone.
func (x exit) unmountStaging(ctx context.Context) (fsType string, err error) {
	for {
		on, mounted, err := x.At(x.e.Staging)
		if err != nil || !mounted {
			return fsType, err
		}
		if err := x.refuseForeign(on); err != nil {
			return fsType, err
		}
		fsType = on.FSType
		if err := x.Unmount(ctx, x.e.Staging); err != nil {
			if errors.Is(err, ErrBusy) {
				err = fmt.Errorf("%w: %w; end it, then ask again", detach.ErrHeld, err)
			}
			return fsType, err
		}
	}
}

// verifyClosed looks at what the unmount left on the device: it reports success though its last writes failed.
func (x exit) verifyClosed(ctx context.Context, unmounted string) error {
	if !x.alive || x.device == "" {
		return nil
	}
	fsType := x.e.FSType
	if fsType == "" {
		fsType = unmounted
	}
	// Without a device in the journal it may never have been formatted.
	wrote := x.e.Access == detach.Mount && !x.e.ReadOnly && x.e.Device != "" && slices.Contains(Filesystems, fsType)
	if wrote {
		if err := x.faulty(x.Closed(ctx, fsType, x.device)); err != nil {
			return err
		}
	}
	return x.faulty(x.SyncDevice(ctx, x.device))
}

func (x exit) faulty(err error) error {
	if err == nil {
		return nil
	}
	if lost := x.gone(err); errors.Is(lost, engine.ErrDeviceLost) {
		return lost
	}
	return x.unflushed(err)
}

// proveUnheld waits for the kernel to let go, which takes a moment after an unmount, and names whoever does not.
func (x exit) proveUnheld(ctx context.Context) error {
	if x.device == "" {
		return nil
	}
	for deadline := time.Now().Add(settleWait); ; {
		held, err := x.Held(ctx, x.device)
		if err != nil {
			return x.gone(err)
		}
		if len(held) == 0 || time.Now().After(deadline) {
			return x.held(held)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
