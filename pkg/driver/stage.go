package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// NodeStageVolume implements csi.NodeServer.
func (d *Driver) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	s, err := d.parseStaging(r)
	if err != nil {
		return nil, err
	}
	release, err := d.nodeLocks.take(s.at.Volume, "NodeStageVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.stage(ctx, s); err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", s.at.Volume, err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// staging is a NodeStageVolumeRequest that was understood.
type staging struct {
	at   volume.Attachment
	path string
	want capability
}

func (d *Driver) parseStaging(r *csi.NodeStageVolumeRequest) (staging, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return staging{}, err
	}
	if err := checkPath("staging path", r.GetStagingTargetPath()); err != nil {
		return staging{}, fmt.Errorf("volume %s: %w", id, err)
	}
	want, err := parseCapability(r.GetVolumeCapability())
	if err != nil {
		return staging{}, fmt.Errorf("volume %s: %w", id, err)
	}
	epoch := epochOf(r.GetPublishContext())
	if epoch == 0 {
		return staging{}, invalid("volume %s: publish context: %s is missing or no number; it comes from ControllerPublishVolume", id, contextEpoch)
	}
	at := volume.Attachment{Volume: id, Node: d.NodeID, Epoch: epoch}
	return staging{at: at, path: r.GetStagingTargetPath(), want: want}, nil
}

// stage writes the intent before it acts, so that a crash at any point is found by the journal and undone by an unstage.
func (d *Driver) stage(ctx context.Context, s staging) error {
	v, err := d.Control.Get(ctx, s.at.Volume)
	if err != nil {
		return err
	}
	if err := admitsStaging(v, s); err != nil {
		return err
	}
	entry := s.entry(v)
	if err := d.clear(entry); err != nil {
		return err
	}
	if err := d.Agent.BeginStage(ctx, entry); err != nil {
		return err
	}
	device, err := d.Engine.Attach(ctx, s.at)
	if errors.Is(err, engine.ErrDeviceLost) {
		return d.lost(ctx, s, err)
	}
	if err != nil {
		return err
	}
	return d.finishStage(ctx, s.at.Volume, device)
}

// finishStage shows the device, from what the journal has of it.
func (d *Driver) finishStage(ctx context.Context, id volume.ID, device engine.Device) error {
	e, known, err := d.Agent.Entry(id)
	switch {
	case err != nil:
		return err
	case !known || e.Phase == detach.Unstaging:
		return fmt.Errorf("%w: it is being taken off this node meanwhile", detach.ErrInProgress)
	}
	if err := d.show(ctx, device, e); err != nil {
		return err
	}
	if e.Phase != detach.Staged {
		d.tellStaged(e, device)
	}
	return d.Agent.FinishStage(ctx, id, device.Path)
}

func (d *Driver) tellStaged(e detach.Entry, device engine.Device) {
	if device.Unclean && e.Access == detach.Block {
		d.tellUnclean(e, device) // what a raw device holds is its workload's to check
	}
	d.Events.Staged(e, device)
}

// admitsStaging says why the volume cannot be staged that way.
func admitsStaging(v engine.Volume, s staging) error {
	switch {
	case v.Attachment == nil:
		return fmt.Errorf("%w: it is published to no node; this attachment was of epoch %d", engine.ErrStaleEpoch, s.at.Epoch)
	case *v.Attachment != s.at:
		return fmt.Errorf("%w: it is published to node %s with epoch %d; this is %s", engine.ErrStaleEpoch, v.Attachment.Node, v.Attachment.Epoch, s.at)
	case v.Options.Mode != s.want.mode.String():
		return answer(codes.AlreadyExists, "it is published with access mode %s and cannot be staged with %s", v.Options.Mode, s.want.mode)
	case s.want.access == detach.Mount && s.want.fsType != "" && s.want.fsType != filesystemOf(v):
		return invalid("it is made for %s and cannot be staged with %s", filesystemOf(v), s.want.fsType)
	}
	return nil
}

// epochOf is what ControllerPublishVolume has put into the publish context; 0 where that says nothing.
func epochOf(publishContext map[string]string) volume.Epoch {
	n, err := strconv.ParseUint(publishContext[contextEpoch], 10, 64)
	if err != nil {
		return 0
	}
	return volume.Epoch(n)
}

func (s staging) entry(v engine.Volume) detach.Entry {
	e := detach.Entry{Attachment: s.at, Staging: s.path, Access: s.want.access, Flags: s.want.flags}
	e.ReadOnly = v.Options.ReadOnly || s.want.readOnly() || slices.Contains(s.want.flags, "ro")
	if e.Access == detach.Mount {
		e.FSType = filesystemOf(v)
	}
	return e
}

// clear says why nothing can be mounted on the staging path. Where the journal has the very same staging, a mount there
// may be its own.
func (d *Driver) clear(e detach.Entry) error {
	known, ok, err := d.Agent.Entry(e.Attachment.Volume)
	if err != nil {
		return err
	}
	on, mounted, err := d.Mounter.At(e.Staging)
	switch {
	case err != nil:
		return refused("staging path %s: %v", e.Staging, err)
	case mounted && ok && known.Staging == e.Staging:
		return nil
	case mounted:
		return refused("staging path %s: %s (%s) is mounted there", e.Staging, on.Source, on.FSType)
	}
	return stagingDirectory(e.Staging, e.Access == detach.Mount)
}

// lost ends the remains of a device that answers nothing but errors, where no workload uses it any more.
func (d *Driver) lost(ctx context.Context, s staging, cause error) error {
	d.Events.Lost(s.at, cause)
	known, _, err := d.Agent.Entry(s.at.Volume)
	if err != nil {
		return errors.Join(cause, err)
	}
	if len(known.Targets) > 0 {
		paths := make([]string, len(known.Targets))
		for i, t := range known.Targets {
			paths[i] = t.Path
		}
		return fmt.Errorf("%w; its workload must be stopped first: it is still published at %s", cause, strings.Join(paths, ", "))
	}
	if err := d.leave(ctx, s.at.Volume, known.Staging); err != nil {
		return fmt.Errorf("%w; ending its remains: %w", cause, err)
	}
	return answer(codes.Aborted, "its device was lost and its remains were ended; stage it again")
}

// show makes the device usable: mounted on the staging path, or as it is.
func (d *Driver) show(ctx context.Context, device engine.Device, e detach.Entry) error {
	// Always: the mark outlives the volume that a loop device had before.
	if err := d.Mounter.SetReadOnly(device.Path, writeProtected(e)); err != nil || e.Access == detach.Block {
		return err
	}
	// Before anybody looks for a mount: a check makes one.
	if err := d.checks.join(ctx, e.Attachment.Volume); err != nil {
		return err
	}
	v, err := d.Control.Get(ctx, e.Attachment.Volume)
	if err != nil {
		return err
	}
	on, mounted, err := d.Mounter.At(e.Staging)
	switch {
	case err != nil:
		return err
	case mounted && !on.Shows(device.Path):
		return refused("staging path %s: %s (%s) is mounted there, not %s", e.Staging, on.Source, on.FSType, device.Path)
	case mounted && !unfinished(v.Format, e):
		return nil // by an earlier call
	case mounted:
		if err := d.Mounter.Unmount(ctx, e.Staging); err != nil {
			return err
		}
	}
	if err := d.prepare(ctx, v, device, e); err != nil {
		return err
	}
	return d.Mounter.Mount(ctx, device.Path, e.Staging, e.FSType, mountOptions(e))
}

// writeProtected says that nobody may write to the device. Kubelet stages again after its restart, with a read-only target in use; a read-only mount still replays
// its journal.
func writeProtected(e detach.Entry) bool {
	return e.Access == detach.Block && (e.ReadOnly || slices.ContainsFunc(e.Targets, func(t detach.Target) bool { return t.ReadOnly }))
}

func mountOptions(e detach.Entry) []string {
	if e.ReadOnly && !slices.Contains(e.Flags, "ro") {
		return append(slices.Clone(e.Flags), "ro")
	}
	return e.Flags
}

// leave takes the volume off this node. A check of its filesystem would hold the device, and is called off.
func (d *Driver) leave(ctx context.Context, id volume.ID, staging string) error {
	if err := d.checks.end(ctx, id); err != nil {
		return err
	}
	return d.Agent.Unstage(ctx, id, staging)
}

// NodeUnstageVolume implements csi.NodeServer: the agent does the work, and answers OK only with a receipt in force.
func (d *Driver) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkPath("staging path", r.GetStagingTargetPath()); err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	release, err := d.nodeLocks.take(id, "NodeUnstageVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.unstage(ctx, id, r.GetStagingTargetPath()); err != nil {
		d.Events.Refused(id, err)
		return nil, fmt.Errorf("unstage volume %s: %w", id, err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// unstage does not take the agent's word for a path that is still mounted: its journal may have been lost.
func (d *Driver) unstage(ctx context.Context, id volume.ID, path string) error {
	if err := d.leave(ctx, id, path); err != nil {
		return err
	}
	on, mounted, err := d.Mounter.At(path)
	if err != nil {
		return err
	}
	if mounted {
		return refused("the journal has nothing to unstage, and %s (%s) is mounted on %s", on.Source, on.FSType, path)
	}
	return nil
}
