package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// creation is a CreateVolumeRequest that was understood.
type creation struct {
	spec engine.Spec // without a size
	size sizeRange
}

// CreateVolume implements csi.ControllerServer.
func (d *Driver) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c, err := parseCreation(r)
	if err != nil {
		return nil, err
	}
	release, err := d.controllerLocks.take(c.spec.ID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if _, err := d.handle(c.spec.ID); err != nil {
		return nil, err
	}
	// The engine refuses an unknown parameter at Create too; here it does so though a volume of that name exists.
	if _, err := d.Control.Capabilities(ctx, c.spec.Parameters); err != nil {
		return nil, fmt.Errorf("volume %s: %w", c.spec.ID, err)
	}
	v, err := d.create(ctx, c, r.GetAccessibilityRequirements())
	if err != nil {
		return nil, err
	}
	message, err := d.volumeMessage(v)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: message}, nil
}

func parseCreation(r *csi.CreateVolumeRequest) (creation, error) {
	id, err := volume.IDForName(r.GetName())
	if err != nil {
		return creation{}, err
	}
	caps, err := parseCapabilities(r.GetVolumeCapabilities())
	if err != nil {
		return creation{}, fmt.Errorf("volume %s: %w", id, err)
	}
	switch {
	case r.GetVolumeContentSource() != nil:
		return creation{}, invalid("volume %s: volume_content_source: neither snapshots nor clones are offered", id)
	case len(r.GetMutableParameters()) > 0:
		return creation{}, invalid("volume %s: mutable_parameters: MODIFY_VOLUME is not offered", id)
	}
	size, err := parseRange(r.GetCapacityRange())
	if err != nil {
		return creation{}, fmt.Errorf("volume %s: %w", id, err)
	}
	labels, err := labelsFor(r.GetParameters(), caps)
	if err != nil {
		return creation{}, fmt.Errorf("volume %s: %w", id, err)
	}
	return creation{size: size, spec: engine.Spec{ID: id, Name: r.GetName(), Parameters: engineParameters(r.GetParameters()), Labels: labels}}, nil
}

// create returns the volume that is there already, or makes it.
func (d *Driver) create(ctx context.Context, c creation, where *csi.TopologyRequirement) (engine.Volume, error) {
	v, err := d.Control.Get(ctx, c.spec.ID)
	if err == nil {
		return d.finishCreation(ctx, c, v)
	}
	if !errors.Is(err, engine.ErrNotFound) {
		return v, fmt.Errorf("volume %s: %w", c.spec.ID, err)
	}
	if err := d.reachable(ctx, where); err != nil {
		return v, fmt.Errorf("volume %s: %w", c.spec.ID, err)
	}
	capacity, err := d.Control.Capacity(ctx, c.spec.Parameters)
	if err != nil {
		return v, fmt.Errorf("volume %s: %w", c.spec.ID, err)
	}
	if c.spec.Size, err = c.size.choose(max(capacity.Smallest, sizeLeast[c.spec.Labels[labelFSType]])); err != nil {
		return v, fmt.Errorf("volume %s: %w", c.spec.ID, err)
	}
	if v, err = d.Control.Create(ctx, c.spec); err != nil {
		return v, fmt.Errorf("volume %s of %s: %w", c.spec.ID, c.spec.Size, err)
	}
	d.Events.Created(v)
	return v, nil
}

// finishCreation has the engine make what an earlier call that was cut short did not come to; most often nothing.
func (d *Driver) finishCreation(ctx context.Context, c creation, v engine.Volume) (engine.Volume, error) {
	err := c.satisfiedBy(v)
	if err != nil {
		return v, err
	}
	if v, err = d.Control.Create(ctx, v.Spec); err != nil {
		return v, fmt.Errorf("volume %s: finish its creation: %w", c.spec.ID, err)
	}
	return v, nil
}

// satisfiedBy says in what the volume of that name differs from what is asked for.
func (c creation) satisfiedBy(v engine.Volume) error {
	switch {
	case v.Name != c.spec.Name:
		return c.differs("its name is %q", v.Name)
	case !c.size.holds(v.Size):
		return c.differs("its size is %s (%d bytes)", v.Size, v.Size)
	case !maps.Equal(v.Parameters, c.spec.Parameters):
		return c.differs("its parameters are %v", v.Parameters)
	}
	for _, label := range []string{labelFSType, labelCapabilities} {
		if v.Labels[label] != c.spec.Labels[label] {
			return c.differs("its %s is %q, asked for is %q", label, v.Labels[label], c.spec.Labels[label])
		}
	}
	return nil
}

func (c creation) differs(format string, args ...any) error {
	return fmt.Errorf("volume %s: %w: %s", c.spec.ID, engine.ErrExists, fmt.Sprintf(format, args...))
}

// DeleteVolume implements csi.ControllerServer.
func (d *Driver) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id, err := d.parse(r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	release, err := d.controllerLocks.take(id, "DeleteVolume")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := d.Control.Delete(ctx, id); err != nil {
		return nil, fmt.Errorf("delete volume %s: %w", id, err)
	}
	d.Events.Deleted(id)
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *Driver) volumeMessage(v engine.Volume) (*csi.Volume, error) {
	handle, err := d.handle(v.ID)
	return &csi.Volume{VolumeId: handle, CapacityBytes: int64(v.Size), AccessibleTopology: d.accessible(v)}, err
}
