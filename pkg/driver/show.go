package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// NodePublishVolume implements csi.NodeServer.
func (d *Driver) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	p, err := d.parsePublication(r)
	if err != nil {
		return nil, err
	}
	release, err := d.nodeLocks.take(p.id, "NodePublishVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.nodePublish(ctx, p); err != nil {
		return nil, fmt.Errorf("publish volume %s at %s: %w", p.id, p.target.Path, err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// publication is a NodePublishVolumeRequest that was understood.
type publication struct {
	id      volume.ID
	staging string
	target  detach.Target
	want    capability
	epoch   volume.Epoch // of the attachment; 0: not told
}

func (d *Driver) parsePublication(r *csi.NodePublishVolumeRequest) (publication, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return publication{}, err
	}
	if err := checkPath("target path", r.GetTargetPath()); err != nil {
		return publication{}, fmt.Errorf("volume %s: %w", id, err)
	}
	want, err := parseCapability(r.GetVolumeCapability())
	if err != nil {
		return publication{}, fmt.Errorf("volume %s: %w", id, err)
	}
	if err := checkPath("staging path", r.GetStagingTargetPath()); err != nil {
		return publication{}, fmt.Errorf("volume %s: %w", id, err)
	}
	p := publication{id: id, staging: r.GetStagingTargetPath(), want: want, epoch: epochOf(r.GetPublishContext())}
	p.target = detach.Target{Path: r.GetTargetPath(), ReadOnly: r.GetReadonly() || want.readOnly() || slices.Contains(want.flags, "ro")}
	return p, nil
}

func (d *Driver) nodePublish(ctx context.Context, p publication) error {
	e, err := d.staged(ctx, p)
	if s, anew := d.restageable(ctx, p, err); anew {
		if err := d.stage(ctx, s); err != nil {
			return err
		}
		e, err = d.staged(ctx, p)
	}
	if err != nil {
		return err
	}
	p.target.ReadOnly = p.target.ReadOnly || e.ReadOnly
	if err := admitsTarget(e, p); err != nil {
		return err
	}
	on, mounted, err := d.Mounter.At(p.target.Path)
	switch {
	case err != nil:
		return refused("target path: %v", err)
	case mounted && on.Shows(e.Device) && slices.Contains(e.Targets, p.target):
		return nil // by an earlier call
	case mounted:
		return refused("%s (%s) is mounted there already", on.Source, on.FSType)
	}
	return d.bindTarget(ctx, e, p)
}

// staged returns the journal's entry of a volume that is staged as the request has it, on a device that is alive.
func (d *Driver) staged(ctx context.Context, p publication) (detach.Entry, error) {
	e, ok, err := d.Agent.Entry(p.id)
	switch {
	case err != nil:
		return e, err
	case !ok:
		if err := d.exists(ctx, p.id); err != nil {
			return e, err
		}
		return e, refused("it is not staged on this node")
	case e.Phase == detach.Unstaging:
		return e, fmt.Errorf("%w: it is on its way off this node", detach.ErrInProgress)
	case e.Phase != detach.Staged:
		return e, refused("it is not staged on this node: it is %s", e.Phase)
	case e.Staging != p.staging:
		return e, refused("it is staged at %s, not at %s", e.Staging, p.staging)
	case e.Access != p.want.access:
		return e, answer(codes.AlreadyExists, "it is staged as %s and cannot be published as %s", e.Access, p.want.access)
	case p.want.fsType != "" && e.FSType != p.want.fsType:
		return e, answer(codes.AlreadyExists, "it is staged with %s and cannot be published with %s", e.FSType, p.want.fsType)
	}
	if _, err := d.Engine.Attached(ctx, p.id); err != nil {
		return e, deviceGone(err)
	}
	return e, d.carries(e.Staging, e)
}

// carries answers FAILED_PRECONDITION unless the volume is shown at path. Whatever took the mount away, what is beneath
// it is the machine's own disk, and no workload must write there.
func (d *Driver) carries(path string, e detach.Entry) error {
	if e.Access == detach.Block && path == e.Staging {
		return nil
	}
	on, mounted, err := d.Mounter.At(path)
	switch {
	case err != nil:
		return refused("%s: %v", path, err)
	case !mounted || !on.Shows(e.Device):
		return refused("it is not mounted at %s any more, though nobody unpublished or unstaged it; do that, and begin anew", path)
	}
	return nil
}

// deviceGone words what Attached says of a volume that the journal has as staged.
func deviceGone(err error) error {
	if errors.Is(err, engine.ErrNotFound) || errors.Is(err, engine.ErrDeviceLost) {
		return fmt.Errorf("%w: stop its workload and let it be unstaged and staged again: %w", engine.ErrDeviceLost, err)
	}
	return err
}

// admitsTarget says why the volume cannot be published there, given where it is published already.
func admitsTarget(e detach.Entry, p publication) error {
	for _, t := range e.Targets {
		switch {
		case t == p.target:
			return nil
		case t.Path == p.target.Path:
			return answer(codes.AlreadyExists, "it is published there with read-only %t, asked for is %t", t.ReadOnly, p.target.ReadOnly)
		}
	}
	for _, t := range e.Targets {
		switch {
		case p.want.mode == singleWriter:
			return refused("its access mode is %s, and it is published at %s already", p.want.mode, t.Path)
		case e.Access == detach.Block && t.ReadOnly != p.target.ReadOnly:
			return refused("it is published at %s with read-only %t, and a device is read-only for all or for none", t.Path, t.ReadOnly)
		}
	}
	return nil
}

// bindTarget notes the target before it is mounted: a target that nobody knows of would keep the volume held for ever.
func (d *Driver) bindTarget(ctx context.Context, e detach.Entry, p publication) error {
	block := e.Access == detach.Block
	made, err := makeTarget(p.target.Path, block)
	if err != nil {
		return err
	}
	if err := d.Agent.AddTarget(ctx, p.id, p.target); err != nil {
		return errors.Join(err, undoTarget(made, p.target.Path))
	}
	if err := d.bind(ctx, e, p, block); err != nil {
		return d.unbind(ctx, p, made, err)
	}
	return nil
}

func (d *Driver) bind(ctx context.Context, e detach.Entry, p publication, block bool) error {
	if block {
		if err := d.Mounter.SetReadOnly(e.Device, p.target.ReadOnly); err != nil {
			return err
		}
		return d.Mounter.BindDevice(ctx, e.Device, p.target.Path)
	}
	options := p.want.flags
	if p.target.ReadOnly {
		options = append(slices.Clone(options), "ro")
	}
	return d.Mounter.Bind(ctx, e.Staging, p.target.Path, options)
}

// unbind takes back what a bind that failed has left. Where it cannot be known whether something is mounted, the target
// stays in the journal.
func (d *Driver) unbind(ctx context.Context, p publication, made bool, cause error) error {
	if _, mounted, err := d.Mounter.At(p.target.Path); err != nil || mounted || ctx.Err() != nil {
		return cause
	}
	return errors.Join(cause, undoTarget(made, p.target.Path), d.Agent.RemoveTarget(ctx, p.id, p.target.Path))
}

func undoTarget(made bool, path string) error {
	if !made {
		return nil
	}
	return removeTarget(path)
}

// NodeUnpublishVolume implements csi.NodeServer.
func (d *Driver) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if err := checkPath("target path", r.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	release, err := d.nodeLocks.take(id, "NodeUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.nodeUnpublish(ctx, id, r.GetTargetPath()); err != nil {
		return nil, fmt.Errorf("unpublish volume %s from %s: %w", id, r.GetTargetPath(), err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func (d *Driver) nodeUnpublish(ctx context.Context, id volume.ID, path string) error {
	device, err := d.deviceOf(ctx, id)
	if err != nil {
		return err
	}
	on, mounted, err := d.Mounter.At(path)
	switch {
	case err != nil:
		return refused("target path: %v", err)
	case mounted && (device == "" || !on.Shows(device)):
		return refused("%s (%s) is mounted there, which is not the volume", on.Source, on.FSType)
	}
	if err := d.Mounter.Unmount(ctx, path); err != nil {
		return err
	}
	if err := removeTarget(path); err != nil {
		return err
	}
	err = d.Agent.RemoveTarget(ctx, id, path)
	if errors.Is(err, detach.ErrJournal) {
		// NodeUnstageVolume mends it, for which the orchestrator waits until this call has answered OK.
		d.Log.Error("unpublished; the stage journal's entry is damaged", "volume", id, "path", path, "error", err)
		return nil
	}
	return err
}

// deviceOf returns the volume's device on this node, "" where it has none: from the journal, or, where that was lost, from
// the engine.
func (d *Driver) deviceOf(ctx context.Context, id volume.ID) (string, error) {
	if e, known, err := d.Agent.Entry(id); err == nil && known && e.Device != "" {
		return e.Device, nil
	}
	switch device, err := d.Engine.Attached(ctx, id); {
	case errors.Is(err, engine.ErrNotFound):
		return "", nil
	default:
		return device.Path, err
	}
}
