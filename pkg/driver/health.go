package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

type healthEntry = csi.VolumeHealth_VolumeHealthEntry

// healthOf is what ails the volume, wherever it is used; nothing where all is well.
func healthOf(v engine.Volume) (list []*healthEntry) {
	say := func(t csi.VolumeHealthErrorType, reason, message string) {
		list = append(list, &healthEntry{Status: t, Reason: reason, Message: message})
	}
	switch v.State {
	case engine.Degraded:
		say(csi.VolumeHealthErrorType_DEGRADED, "FewerReplicasInSync", v.Reason)
	case engine.Unavailable:
		say(csi.VolumeHealthErrorType_INACCESSIBLE, "TooFewReplicas", v.Reason)
	case engine.Quarantined:
		say(csi.VolumeHealthErrorType_DATA_LOSS, "ReplicasDisagree", v.Reason)
	}
	if v.Format.Doubt == engine.Damaged {
		say(csi.VolumeHealthErrorType_INACCESSIBLE, "FilesystemDamaged", fmt.Sprintf("its %s is damaged and is not mounted until somebody has repaired it", v.Format.FSType))
	}
	return list
}

func (d *Driver) healthMessage(v engine.Volume, more ...*healthEntry) (*csi.VolumeHealth, error) {
	handle, err := d.handle(v.ID)
	return &csi.VolumeHealth{VolumeId: handle, HealthStatuses: append(healthOf(v), more...)}, err
}

// ControllerGetVolumeHealth implements csi.ControllerServer.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, r *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	v, err := d.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	health, err := d.healthMessage(v)
	return &csi.ControllerGetVolumeHealthResponse{VolumeHealth: health}, err
}

// ControllerListVolumeHealth implements csi.ControllerServer: it lists the volumes that something ails.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, r *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	page, next, err := d.page(ctx, r, func(v engine.Volume) bool { return len(healthOf(v)) > 0 })
	if err != nil {
		return nil, err
	}
	response := &csi.ControllerListVolumeHealthResponse{NextToken: next}
	for _, v := range page {
		health, err := d.healthMessage(v)
		if err != nil {
			return nil, err
		}
		response.Entries = append(response.Entries, health)
	}
	return response, nil
}

// NodeGetVolumeHealth implements csi.NodeServer: what ails the volume, and its device on this node.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	v, err := d.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	for name, path := range map[string]string{"volume publish path": r.GetVolumePublishPath(), "staging path": r.GetStagingTargetPath()} {
		if path != "" && !strings.HasPrefix(path, "/") {
			return nil, invalid("volume %s: %s %q: want an absolute path", v.ID, name, path)
		}
	}
	health, err := d.healthMessage(v, d.deviceHealth(ctx, v.ID)...)
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: health}, err
}

func (d *Driver) deviceHealth(ctx context.Context, id volume.ID) []*healthEntry {
	_, err := d.Engine.Attached(ctx, id)
	if !errors.Is(err, engine.ErrDeviceLost) {
		return nil
	}
	return []*healthEntry{{Status: csi.VolumeHealthErrorType_INACCESSIBLE, Reason: "DeviceLost", Message: err.Error() + "; end its pods on this node, so that it is staged again"}}
}
