package driver

import (
	"context"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// trust returns nil where the filesystem may be mounted: nothing is held against it, or it has just been found consistent. Otherwise it
// is examined by a job that outlives the call: ABORTED with how far it is, and mount.ErrDamaged where it may not be mounted.
func (d *Driver) trust(ctx context.Context, f engine.Format, device engine.Device, e detach.Entry) error {
	id := e.Attachment.Volume
	if f.Doubt == engine.NoDoubt {
		mark, err := d.Mounter.Marked(e.FSType, device.Path)
		if err != nil || mark == "" {
			return err
		}
		d.Log.Warn("filesystem has noted errors", "volume", id, "fsType", e.FSType, "errors", mark)
		f.Doubt = engine.Unchecked
		if err := d.Control.SetFormat(ctx, id, f); err != nil {
			return fmt.Errorf("record that its filesystem is in doubt: %w", err)
		}
	}
	return d.checks.do(ctx, id, func(ctx context.Context, progress func(string)) error { return d.check(ctx, f, device, e, progress) })
}

// check examines the filesystem and records what it found before it tells it.
func (d *Driver) check(ctx context.Context, f engine.Format, device engine.Device, e detach.Entry, progress func(string)) error {
	if device.Unclean && f.Doubt == engine.Unchecked {
		d.tellUnclean(e, device)
	}
	c := Check{Writer: device.Writer, Doubt: f.Doubt}
	c.Report, c.Err = d.Mounter.Examine(ctx, e.FSType, device.Path, e.Staging, progress)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.Err == nil {
		f.Doubt = engine.NoDoubt
		if !c.Report.Clean {
			f.Doubt = engine.Damaged
		}
		c.Err = d.record(ctx, e.Attachment.Volume, f)
	}
	d.tellChecked(e, c)
	switch {
	case c.Err != nil:
		return fmt.Errorf("its filesystem is in doubt (%s) and could not be checked, so it is not mounted: %w", c.Doubt, c.Err)
	case !c.Report.Clean:
		return d.damaged(device, e, c.Report)
	}
	return nil
}

func (d *Driver) record(ctx context.Context, id volume.ID, f engine.Format) error {
	if err := d.Control.SetFormat(ctx, id, f); err != nil {
		return fmt.Errorf("record what the check found: %w", err)
	}
	return nil
}

func (d *Driver) tellUnclean(e detach.Entry, device engine.Device) {
	d.Log.Warn("the last writer died or was shut out before it had flushed", "volume", e.Attachment.Volume, "node", e.Attachment.Node,
		"epoch", e.Attachment.Epoch, "writer", device.Writer, "device", device.Path, "access", e.Access, "fsType", e.FSType)
	d.Events.Unclean(e, device)
}

// tellChecked says what came out. What is known already is said again to the callbacks only.
func (d *Driver) tellChecked(e detach.Entry, c Check) {
	log := d.Log.With("volume", e.Attachment.Volume, "node", e.Attachment.Node, "epoch", e.Attachment.Epoch, "writer", c.Writer,
		"fsType", e.FSType, "took", c.Report.Took, "left", c.Report.Left)
	switch {
	case c.Err != nil:
		log.Error("filesystem in doubt could not be checked", "error", c.Err)
	case c.Report.Clean:
		log.Info("filesystem in doubt is consistent")
	case c.Doubt != engine.Damaged:
		log.Error("filesystem is damaged", "report", c.Report.Output)
	}
	d.Events.Checked(e, c)
}

// damaged is the refusal to mount, and what a person can do about it. The device stays, so that it can be repaired through it.
func (d *Driver) damaged(device engine.Device, e detach.Entry, r mount.Report) error {
	id, look, repair := e.Attachment.Volume, "", ""
	if hands, ok := byHand[e.FSType]; ok {
		look, repair = fmt.Sprintf(hands.look, device.Path), fmt.Sprintf(hands.repair, device.Path)
	}
	return fmt.Errorf("%w: the %s on %s is not mounted, and was not repaired: %s; next: on node %s look at it (%s; `belay history %s`), save what is needed, "+
		"and repair it by hand (%s) or restore the volume; then stage it again, and it is checked anew",
		mount.ErrDamaged, e.FSType, device.Path, shortened(r.Output), e.Attachment.Node, look, id, repair)
}

// byHand are the tools that a person uses.
var byHand = map[string]struct{ look, repair string }{
	"ext4":  {"e2fsck -f -n %s", "e2fsck -f %s"},
	"xfs":   {"xfs_repair -n %s", "xfs_repair %s"},
	"btrfs": {"btrfs check --readonly %s", "see btrfs-rescue(8), then btrfs check --repair %s"},
}

func shortened(s string) string {
	const most = 400
	if s = strings.Join(strings.Fields(s), " "); len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Checking says how far the check of the volume's filesystem is, "" where none runs.
func (d *Driver) Checking(id volume.ID) string { return d.checks.status(id) }

// Close calls off the checks that run; the next stage begins them anew. Call it when no call runs any more.
func (d *Driver) Close(ctx context.Context) error { return d.checks.close(ctx) }

// unfinished says whether a mount on the staging path is one that a check had made to replay the journal when its process was killed: nothing
// else mounts a filesystem that is in doubt.
func unfinished(f engine.Format, e detach.Entry) bool {
	return f.Stage == engine.Formatted && f.Doubt != engine.NoDoubt && e.Phase == detach.Staging
}
