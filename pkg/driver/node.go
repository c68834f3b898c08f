package driver

import (
	"context"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// NodeGetCapabilities implements csi.NodeServer.
func (d *Driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var list []*csi.NodeServiceCapability
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		list = append(list, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: t}}})
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: list}, nil
}

// NodeGetInfo implements csi.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{
		NodeId: string(d.NodeID), MaxVolumesPerNode: d.VolumesMax, AccessibleTopology: d.topologyOf(d.NodeID),
	}, nil
}

// NodeGetVolumeStats implements csi.NodeServer.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	e, err := d.shownAt(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if e.Access == detach.Block {
		return d.blockStats(e)
	}
	u, err := d.Mounter.Usage(r.GetVolumePath())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", e.Attachment.Volume, err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: usageMessages(u)}, nil
}

func (d *Driver) blockStats(e detach.Entry) (*csi.NodeGetVolumeStatsResponse, error) {
	size, err := d.Mounter.DeviceSize(e.Device)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", e.Attachment.Volume, err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: size}}}, nil
}

func usageMessages(u mount.Usage) []*csi.VolumeUsage {
	list := []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: u.Total, Used: u.Used, Available: u.Available}}
	if u.Inodes > 0 {
		list = append(list, &csi.VolumeUsage{Unit: csi.VolumeUsage_INODES, Total: u.Inodes, Used: u.InodesUsed, Available: u.InodesAvail})
	}
	return list
}

// shownAt returns the journal's entry of a volume that is staged or published at path, or whose device is there. NOT_FOUND otherwise, for
// paths of whatever form (CSI, NodeGetVolumeStats).
func (d *Driver) shownAt(ctx context.Context, rawID, path string) (detach.Entry, error) {
	id, err := d.parse(rawID)
	if err != nil {
		return detach.Entry{}, err
	}
	if path == "" {
		return detach.Entry{}, invalid("volume %s: volume path: missing", id)
	}
	e, ok, err := d.Agent.Entry(id)
	switch {
	case err != nil:
		return e, err
	case !ok:
		if err := d.exists(ctx, id); err != nil {
			return e, err
		}
		return e, answer(codes.NotFound, "volume %s: not staged on this node", id)
	case e.Access == detach.Block && mount.Same(path, e.Device):
		// Kubelet asks for the size of a raw block volume by a path of its own, to which it has bound what was published.
		return e, nil
	case path != e.Staging && !slices.ContainsFunc(e.Targets, func(t detach.Target) bool { return t.Path == path }):
		return e, answer(codes.NotFound, "volume %s: neither staged nor published at %q", id, path)
	}
	if err := d.carries(path, e); err != nil {
		return e, answer(codes.NotFound, "volume %s: %v", id, err)
	}
	return e, nil
}

// NodeExpandVolume implements csi.NodeServer: the device shows its new size, then the filesystem grows into it.
func (d *Driver) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	e, err := d.shownAt(ctx, r.GetVolumeId(), r.GetVolumePath())
	if err != nil {
		return nil, err
	}
	want, err := parseRange(r.GetCapacityRange())
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", e.Attachment.Volume, err)
	}
	release, err := d.nodeLocks.take(e.Attachment.Volume, "NodeExpandVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	size, err := d.nodeExpand(ctx, e, want)
	if err != nil {
		return nil, fmt.Errorf("expand volume %s on this node: %w", e.Attachment.Volume, err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: int64(size)}, nil
}

func (d *Driver) nodeExpand(ctx context.Context, e detach.Entry, want sizeRange) (volume.Bytes, error) {
	if err := d.Engine.Resize(ctx, e.Attachment); err != nil {
		return 0, err
	}
	n, err := d.Mounter.DeviceSize(e.Device)
	size := volume.Bytes(n)
	switch {
	case err != nil:
		return 0, err
	case size < want.required:
		return 0, answer(codes.OutOfRange, "the volume has %s and %s are asked for; ControllerExpandVolume comes first", size, want.required)
	case e.Access == detach.Block:
		return size, nil
	case e.ReadOnly:
		return 0, refused("its filesystem is mounted read-only and cannot grow")
	}
	return size, d.Mounter.Grow(ctx, e.Device, e.Staging)
}
