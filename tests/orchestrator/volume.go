package orchestrator

import (
	"context"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/volume"
)

// Volume is a volume as the orchestrator holds it. Its calls are those of kubelet and of the sidecars; each may be
// repeated until it is answered OK.
type Volume struct {
	ID      string
	Size    int64
	Staging string // the staging path
	Target  string // where the one workload has it

	spec    Spec
	m       *Machine
	context map[string]string
	publish map[string]string
}

// Spec is what a volume is asked to be.
type Spec struct {
	Name       string
	Size       int64
	FSType     string // "" with Block
	Block      bool
	Parameters map[string]string
}

func (s Spec) capability() *csi.VolumeCapability {
	c := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if s.Block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: s.FSType}}
	}
	return c
}

// Create provisions a volume, and makes the directories that kubelet makes for it.
func (m *Machine) Create(ctx context.Context, s Spec) (*Volume, error) {
	r, err := m.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: s.Name, CapacityRange: &csi.CapacityRange{RequiredBytes: s.Size},
		VolumeCapabilities: []*csi.VolumeCapability{s.capability()}, Parameters: s.Parameters,
	})
	if err != nil {
		return nil, err
	}
	v := m.Volume(r.Volume.VolumeId, s)
	v.Size, v.context = r.Volume.CapacityBytes, r.Volume.VolumeContext
	m.volumes = append(m.volumes, v)
	return v, os.MkdirAll(v.Staging, 0o750)
}

// Volume is a volume that is asked for by its ID, as what the spec says; whether there is one, nobody knows yet.
func (m *Machine) Volume(id string, s Spec) *Volume {
	base := filepath.Join(m.Dir, "mounts", id)
	return &Volume{ID: id, spec: s, m: m, Staging: filepath.Join(base, "staging"), Target: filepath.Join(base, "pod")}
}

func (v *Volume) volumeID() volume.ID { return volume.ID(v.ID) }

// ControllerPublish is ControllerPublishVolume to this machine.
func (v *Volume) ControllerPublish(ctx context.Context) error {
	r, err := v.m.controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: v.ID, NodeId: NodeID, VolumeCapability: v.spec.capability(), VolumeContext: v.context,
	})
	if err == nil {
		v.publish = r.PublishContext
	}
	return err
}

// Stage is NodeStageVolume.
func (v *Volume) Stage(ctx context.Context) error {
	_, err := v.m.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.ID, PublishContext: v.publish, StagingTargetPath: v.Staging, VolumeCapability: v.spec.capability(), VolumeContext: v.context,
	})
	return err
}

// Publish is NodePublishVolume to the one target.
func (v *Volume) Publish(ctx context.Context) error {
	_, err := v.m.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.ID, PublishContext: v.publish, StagingTargetPath: v.Staging, TargetPath: v.Target,
		VolumeCapability: v.spec.capability(), VolumeContext: v.context,
	})
	return err
}

// Unpublish is NodeUnpublishVolume.
func (v *Volume) Unpublish(ctx context.Context) error {
	_, err := v.m.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID, TargetPath: v.Target})
	return err
}

// Unstage is NodeUnstageVolume.
func (v *Volume) Unstage(ctx context.Context) error {
	_, err := v.m.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID, StagingTargetPath: v.Staging})
	return err
}

// ControllerUnpublish is ControllerUnpublishVolume.
func (v *Volume) ControllerUnpublish(ctx context.Context) error {
	_, err := v.m.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.ID, NodeId: NodeID})
	return err
}

// ControllerExpand is ControllerExpandVolume.
func (v *Volume) ControllerExpand(ctx context.Context, size int64) error {
	r, err := v.m.controller.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: v.ID, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: v.spec.capability(),
	})
	if err == nil {
		v.Size = r.CapacityBytes
	}
	return err
}

// Expand is NodeExpandVolume.
func (v *Volume) Expand(ctx context.Context) error {
	_, err := v.m.node.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: v.ID, VolumePath: v.Target, StagingTargetPath: v.Staging, VolumeCapability: v.spec.capability(),
	})
	return err
}

// Delete is DeleteVolume.
func (v *Volume) Delete(ctx context.Context) error {
	_, err := v.m.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
	return err
}

// Attach takes the volume from provisioned to used by the workload.
func (v *Volume) Attach(ctx context.Context) error {
	return inOrder(ctx, v.ControllerPublish, v.Stage, v.Publish)
}

// Detach is the way out.
func (v *Volume) Detach(ctx context.Context) error {
	return inOrder(ctx, v.Unpublish, v.Unstage, v.ControllerUnpublish)
}

func inOrder(ctx context.Context, calls ...func(context.Context) error) error {
	for _, call := range calls {
		if err := call(ctx); err != nil {
			return err
		}
	}
	return nil
}
