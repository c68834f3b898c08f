package driver

import (
	"context"
	"fmt"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
)

// prepare sees to it that the device carries the volume's filesystem, and nothing but it. mkfs runs only where the
// volume's record says that it was never formatted or that a format was cut off; what is on the device never decides that
// it may be formatted, only that it may not.
func (d *Driver) prepare(ctx context.Context, v engine.Volume, device engine.Device, e detach.Entry) error {
	found, err := d.Mounter.Signature(ctx, device.Path)
	if err != nil {
		return err
	}
	if v.Format.Stage != engine.Unformatted && v.Format.FSType != e.FSType {
		return invalid("it carries %s (%s) and cannot be staged with %s", v.Format.FSType, v.Format.Stage, e.FSType)
	}
	switch v.Format.Stage {
	case engine.Unformatted:
		return d.formatNew(ctx, device, found, e)
	case engine.Formatting:
		return d.format(ctx, device, e, true)
	}
	if found.FSType != e.FSType {
		return refused("it was formatted with %s, and the device %s carries %s; never formatted again: restore it, or delete the volume", e.FSType, device.Path, found)
	}
	return d.trust(ctx, v.Format, device, e)
}

func (d *Driver) formatNew(ctx context.Context, device engine.Device, found mount.Signature, e detach.Entry) error {
	switch {
	case !found.Empty():
		return refused("the device %s already carries %s; never formatted: use it as a raw block volume, or delete the volume", device.Path, found)
	case !device.Blank:
		return refused("the device %s already carries data; never formatted: use it as a raw block volume, or delete the volume", device.Path)
	case e.ReadOnly:
		return refused("it was never formatted and is published read-only; publish it for writing once")
	}
	return d.format(ctx, device, e, false)
}

// format records at a majority that mkfs is about to run, and that it is done before anything can be mounted: so no
// crash leaves a volume that may be formatted and holds somebody's data.
func (d *Driver) format(ctx context.Context, device engine.Device, e detach.Entry, again bool) error {
	record := func(stage engine.FormatStage) error {
		return d.Control.SetFormat(ctx, e.Attachment.Volume, engine.Format{Stage: stage, FSType: e.FSType})
	}
	if err := record(engine.Formatting); err != nil {
		return fmt.Errorf("record that it is being formatted: %w", err)
	}
	if err := d.Mounter.Format(ctx, e.FSType, device.Path, again); err != nil {
		return err
	}
	if err := record(engine.Formatted); err != nil {
		return fmt.Errorf("record that it is formatted: %w", err)
	}
	d.Log.Info("volume formatted", "volume", e.Attachment.Volume, "fsType", e.FSType, "again", again)
	return nil
}
