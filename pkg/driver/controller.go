package driver

import (
	"context"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// ControllerGetCapabilities implements csi.ControllerServer.
func (d *Driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return controllerCapabilities(), nil
}

func controllerCapabilities() *csi.ControllerGetCapabilitiesResponse {
	var list []*csi.ControllerServiceCapability
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_VOLUME,
		csi.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.ControllerServiceCapability_RPC_PUBLISH_READONLY,
	} {
		rpc := &csi.ControllerServiceCapability_RPC{Type: t}
		list = append(list, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{Rpc: rpc}})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: list}
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.parse(r.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, invalid("volume %s: volume capabilities: missing", r.GetVolumeId())
	}
	v, err := d.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	if reason := confirms(v, r); reason != "" {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: reason}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}

// confirms says why the volume cannot be used in the ways asked for, "" where it can.
func confirms(v engine.Volume, r *csi.ValidateVolumeCapabilitiesRequest) string {
	caps, err := parseCapabilities(r.GetVolumeCapabilities())
	if err != nil {
		return err.Error()
	}
	for _, c := range caps {
		if c.fsType != "" && c.fsType != filesystemOf(v) {
			return fmt.Sprintf("volume %s is made for %s, not for %s", v.ID, filesystemOf(v), c.fsType)
		}
	}
	if rest := engineParameters(r.GetParameters()); rest != nil && !maps.Equal(rest, v.Parameters) {
		return fmt.Sprintf("volume %s has parameters %v", v.ID, v.Parameters)
	}
	return ""
}

// ControllerGetVolume implements csi.ControllerServer.
func (d *Driver) ControllerGetVolume(ctx context.Context, r *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	v, err := d.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	message, err := d.volumeMessage(v)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerGetVolumeResponse{Volume: message, Status: &csi.ControllerGetVolumeResponse_VolumeStatus{PublishedNodeIds: publishedTo(v)}}, nil
}

// publishedTo names the node for as long as the attachment is open, refused detaches included: the attacher trusts it.
func publishedTo(v engine.Volume) []string {
	if v.Attachment == nil {
		return nil
	}
	return []string{string(v.Attachment.Node)}
}

// GetCapacity implements csi.ControllerServer.
func (d *Driver) GetCapacity(ctx context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if len(r.GetVolumeCapabilities()) > 0 {
		if _, err := parseCapabilities(r.GetVolumeCapabilities()); err != nil {
			return &csi.GetCapacityResponse{}, nil // no room for volumes that cannot be
		}
	}
	if here, err := d.covers(ctx, r.GetAccessibleTopology()); err != nil || !here {
		return &csi.GetCapacityResponse{}, err
	}
	c, err := d.Control.Capacity(ctx, engineParameters(r.GetParameters()))
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: int64(c.Available),
		MaximumVolumeSize: wrapperspb.Int64(int64(c.Largest)),
		MinimumVolumeSize: wrapperspb.Int64(int64(max(c.Smallest, sizeStep))),
	}, nil
}

// ControllerExpandVolume implements csi.ControllerServer. The node's part is always needed: the device must show its new
// size, and a filesystem must grow.
func (d *Driver) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	size, err := parseExpansion(r)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", id, err)
	}
	release, err := d.controllerLocks.take(id, "ControllerExpandVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	v, err := d.expand(ctx, id, size)
	if err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: int64(v.Size), NodeExpansionRequired: true}, nil
}

func parseExpansion(r *csi.ControllerExpandVolumeRequest) (sizeRange, error) {
	if r.GetVolumeCapability() != nil {
		if _, err := parseCapability(r.GetVolumeCapability()); err != nil {
			return sizeRange{}, err
		}
	}
	if r.GetCapacityRange().GetRequiredBytes() == 0 && r.GetCapacityRange().GetLimitBytes() == 0 {
		return sizeRange{}, invalid("capacity range: missing")
	}
	return parseRange(r.GetCapacityRange())
}

func (d *Driver) expand(ctx context.Context, id volume.ID, size sizeRange) (engine.Volume, error) {
	v, err := d.Control.Get(ctx, id)
	if err != nil {
		return v, fmt.Errorf("volume %s: %w", id, err)
	}
	if size.holds(v.Size) {
		return v, nil
	}
	if size.required <= v.Size {
		return v, answer(codes.OutOfRange, "volume %s has %s (%d bytes) and never shrinks; the limit is %d", id, v.Size, v.Size, size.limit)
	}
	want, err := size.choose(0)
	if err != nil {
		return v, fmt.Errorf("volume %s: %w", id, err)
	}
	if v, err = d.Control.Expand(ctx, id, want); err != nil {
		return v, fmt.Errorf("expand volume %s to %s: %w", id, want, err)
	}
	return v, nil
}
