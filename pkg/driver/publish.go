package driver

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// contextEpoch is the key of the attachment's epoch in the publish context.
const contextEpoch = "belay.storage/epoch"

// ControllerPublishVolume implements csi.ControllerServer.
func (d *Driver) ControllerPublishVolume(ctx context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	node, err := volume.ParseNodeID(r.GetNodeId())
	if err != nil {
		return nil, err
	}
	c, err := parseCapability(r.GetVolumeCapability())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	release, err := d.controllerLocks.take(id, "ControllerPublishVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	at, err := d.publish(ctx, id, node, engine.PublishOptions{ReadOnly: r.GetReadonly() || c.readOnly(), Mode: c.mode.String()})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{contextEpoch: strconv.FormatUint(uint64(at.Epoch), 10)}}, nil
}

func (d *Driver) publish(ctx context.Context, id volume.ID, node volume.NodeID, o engine.PublishOptions) (volume.Attachment, error) {
	v, err := d.Control.Get(ctx, id)
	if err != nil {
		return volume.Attachment{}, fmt.Errorf("volume %s: %w", id, err)
	}
	if err := d.admits(ctx, v, node); err != nil {
		return volume.Attachment{}, err
	}
	at, err := d.Control.Publish(ctx, id, node, o)
	if errors.Is(err, engine.ErrAttached) && v.Attachment != nil && v.Attachment.Node != node {
		if ended, endErr := d.endForgotten(ctx, *v.Attachment); ended || endErr != nil {
			v.Attachment, err = nil, endErr
		}
		if err == nil {
			at, err = d.Control.Publish(ctx, id, node, o)
		}
	}
	if errors.Is(err, engine.ErrAttached) {
		return at, fmt.Errorf("publish volume %s to node %s: %w%s", id, node, err, d.where(ctx, id))
	}
	if err != nil {
		return at, fmt.Errorf("publish volume %s to node %s: %w", id, node, err)
	}
	if v.Attachment == nil {
		d.Events.Published(at)
	}
	return at, nil
}

// endForgotten has the gate end an attachment that the orchestrator has forgotten: somebody took the finalizer that makes it ask. The gate decides as if it
// were asked; what it refuses stays attached.
func (d *Driver) endForgotten(ctx context.Context, a volume.Attachment) (ended bool, err error) {
	forgotten, err := d.Forgotten(ctx, a)
	if err != nil || !forgotten {
		return false, err
	}
	d.Log.Warn("the orchestrator has forgotten an attachment; the gate is asked to end it", "volume", a.Volume, "node", a.Node, "epoch", a.Epoch)
	if err := d.Gate.Unpublish(ctx, a.Volume, a.Node); err != nil {
		return false, fmt.Errorf("it is attached to node %s still, and the orchestrator has no record of that: %w", a.Node, err)
	}
	return true, nil
}

// admits answers NOT_FOUND for a node that is none of ours, and says why a node of ours cannot take the volume.
func (d *Driver) admits(ctx context.Context, v engine.Volume, node volume.NodeID) error {
	known, err := d.knows(ctx, node)
	switch {
	case err != nil:
		return err
	case !known:
		return answer(codes.NotFound, "node %s: not known to this driver", node)
	case v.Attachment != nil && v.Attachment.Node == node:
		return nil // counted already
	}
	return d.room.take(ctx, node)
}

// where tells, for a message, which node has the volume (CSI asks for the node ID).
func (d *Driver) where(ctx context.Context, id volume.ID) string {
	v, err := d.Control.Get(ctx, id)
	if err != nil || v.Attachment == nil {
		return ""
	}
	return fmt.Sprintf("; it is published to node %s (epoch %d)", v.Attachment.Node, v.Attachment.Epoch)
}

// ControllerUnpublishVolume implements csi.ControllerServer: the gate decides.
func (d *Driver) ControllerUnpublishVolume(ctx context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	var node volume.NodeID // none: every node (CSI)
	if r.GetNodeId() != "" {
		if node, err = volume.ParseNodeID(r.GetNodeId()); err != nil {
			return nil, err
		}
	}
	release, err := d.controllerLocks.take(id, "ControllerUnpublishVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.Gate.Unpublish(ctx, id, node); err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}
