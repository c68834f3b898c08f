package driver

import (
	"context"
	"fmt"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
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
	if device.Unclean {
		return d.examine(ctx, device, e)
	}
	return nil
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

// examine lets the kernel replay the journal, as it would at any mount, and then checks the filesystem without changing
// it. What it finds is told, not repaired: a repair would hide what went wrong.
func (d *Driver) examine(ctx context.Context, device engine.Device, e detach.Entry) error {
	if err := d.replay(ctx, device, e); err != nil {
		return fmt.Errorf("replay the journal after an unclean writer: %w", err)
	}
	report, err := d.Mounter.Check(ctx, e.FSType, device.Path)
	if err != nil {
		return fmt.Errorf("check after an unclean writer: %w", err)
	}
	d.tell(e.Attachment.Volume, report)
	return nil
}

func (d *Driver) tell(id volume.ID, report mount.Report) {
	if report.Clean {
		d.Log.Info("filesystem is consistent after an unclean writer", "volume", id, "fsType", report.FSType)
	} else {
		d.Log.Error("filesystem is damaged after an unclean writer", "volume", id, "fsType", report.FSType, "report", report.Output)
	}
	d.Checked(id, report)
}

// replay mounts and unmounts the filesystem. On the staging path: whatever a crash leaves there, the journal knows.
func (d *Driver) replay(ctx context.Context, device engine.Device, e detach.Entry) error {
	if err := d.Mounter.Mount(ctx, device.Path, e.Staging, e.FSType, nil); err != nil {
		return err
	}
	return d.Mounter.Unmount(ctx, e.Staging)
}
