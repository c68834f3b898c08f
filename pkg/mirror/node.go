package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// Attach implements engine.Node. Recovery goes on when ctx ends; the next call joins it.
func (e *Engine) Attach(ctx context.Context, a volume.Attachment) (engine.Device, error) {
	if a.Node != e.Node {
		return engine.Device{}, fmt.Errorf("%w: %s: this is node %s", engine.ErrStaleEpoch, a, e.Node)
	}
	h := e.handle(a.Volume)
	return h.attach.do(ctx, nil, func(ctx context.Context, report func(engine.Progress)) (engine.Device, error) {
		if err := h.lock(ctx); err != nil {
			return engine.Device{}, err
		}
		defer h.unlock()
		return e.attach(ctx, h, a, report)
	})
}

func (e *Engine) attach(ctx context.Context, h *handle, a volume.Attachment, report func(engine.Progress)) (engine.Device, error) {
	p, err := e.process(ctx, a.Volume)
	switch {
	case err == nil && p.epoch() != a.Epoch:
		return engine.Device{}, fmt.Errorf("%w: %s: attached is epoch %d", engine.ErrStaleEpoch, a, p.epoch())
	case err != nil && !isNotFound(err):
		return engine.Device{}, err
	case h.recovering() != nil:
		return engine.Device{}, fmt.Errorf("%w: %s: the gate has taken the place of its lost writer; finish the detach first", engine.ErrDeviceLost, a)
	}
	s, err := e.spec(ctx, a)
	if err != nil {
		return engine.Device{}, err
	}
	d, err := e.Host.Attach(ctx, s, report)
	if err != nil {
		return engine.Device{}, err
	}
	e.Log.Info("volume attached", "volume", a.Volume, "epoch", readyOf(d.Info).Writer, "device", d.Path)
	return e.Attached(ctx, a.Volume)
}

// spec is the device that the attachment shall have.
func (e *Engine) spec(ctx context.Context, a volume.Attachment) (host.Spec, error) {
	v, err := e.Get(ctx, a.Volume)
	if err != nil {
		return host.Spec{}, err
	}
	l, err := parse(v.Parameters, quorum.ReplicasMax) // a salvaged volume may have fewer than it was given
	if err != nil {
		return host.Spec{}, err
	}
	floor, err := e.floor(a.Volume)
	if err != nil {
		return host.Spec{}, err
	}
	o, err := json.Marshal(order{
		Floor: floor, Volume: a.Volume, Attachment: a, Installation: e.stores.installation.String(), Node: e.Node, Boot: e.boot.String(), Stores: e.stores.homes(),
	})
	return host.Spec{
		Volume: a.Volume, Name: e.deviceName(a.Volume), BlockSize: l.blockSize, Executable: e.Executable, Order: o, Key: keyOf(a),
	}, err
}

// Attached implements engine.Node.
func (e *Engine) Attached(ctx context.Context, id volume.ID) (engine.Device, error) {
	p, err := e.process(ctx, id)
	if err != nil {
		return engine.Device{}, err
	}
	first, newest := readyOf(p.device.First), readyOf(p.device.Info)
	d := engine.Device{
		Path: p.device.Path, Writer: newest.Writer, Unclean: first.Unclean, BlockSize: first.BlockSize, Stalled: p.waits(), Process: p.serves(),
	}
	if d.Stalled != "" {
		return d, nil
	}
	st, err := p.status(ctx)
	if err != nil {
		return d, err
	}
	d.Size, d.Blank, d.Stalled = st.Size, st.Blank, st.Stalled
	return d, nil
}

// deviceName is what the kernel keeps of a device: two installations on one machine may have volumes of one name.
func (e *Engine) deviceName(id volume.ID) string {
	return string(id) + "@" + e.stores.installation.String()[:8]
}

// leftover says whether a device of the volume is still there that no host knows of.
func (e *Engine) leftover(id volume.ID) error {
	all, err := e.Machine.Leftovers(e.deviceName(id))
	if err != nil {
		return fmt.Errorf("devices of this node: %w", err)
	}
	if len(all) > 0 {
		return fmt.Errorf("%w: volume %s: %s", engine.ErrDeviceLost, id, all[0])
	}
	return fmt.Errorf("%w: volume %s has no device on node %s", engine.ErrNotFound, id, e.Node)
}

// Barrier implements engine.Node.
func (e *Engine) Barrier(ctx context.Context, a volume.Attachment) error {
	if e.handle(a.Volume).recovering() != nil {
		return nil
	}
	p, err := e.process(ctx, a.Volume)
	if err != nil {
		return err
	}
	if p.epoch() != a.Epoch {
		return fmt.Errorf("%w: %s: attached is epoch %d", engine.ErrStaleEpoch, a, p.epoch())
	}
	return p.stop(ctx)
}

// Detach implements engine.Node.
func (e *Engine) Detach(ctx context.Context, a volume.Attachment) error {
	h := e.handle(a.Volume)
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	p, err := e.process(ctx, a.Volume)
	switch {
	case isNotFound(err):
		return nil
	case errors.Is(err, engine.ErrDeviceLost):
		return e.removeDevice(ctx, a.Volume)
	case err != nil:
		return err
	case p.epoch() != a.Epoch:
		return nil
	}
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	if !st.Sealed {
		return fmt.Errorf("%w: %s", engine.ErrNotSealed, a)
	}
	if err := e.Host.Detach(ctx, a.Volume); err != nil {
		return err
	}
	e.Log.Info("volume detached", "volume", a.Volume, "epoch", st.Writer, "device", p.device.Path)
	return nil
}

// removeDevice takes away what is left of a lost device, the host's or one that no host knows of.
func (e *Engine) removeDevice(ctx context.Context, id volume.ID) error {
	if err := e.Host.Detach(ctx, id); !isNotFound(err) {
		return err
	}
	if err := e.Machine.RemoveLeftovers(ctx, e.deviceName(id)); err != nil {
		return fmt.Errorf("devices of this node: %w", err)
	}
	return nil
}

// Resize implements engine.Node.
func (e *Engine) Resize(ctx context.Context, a volume.Attachment) error {
	return e.Host.Resize(ctx, a.Volume)
}

// Upgrade implements engine.Control.
func (e *Engine) Upgrade(ctx context.Context, id volume.ID, binary string, progress func(engine.Progress)) (engine.Upgrade, error) {
	if _, err := e.process(ctx, id); err != nil {
		return engine.Upgrade{}, err
	}
	u, err := e.Host.Upgrade(ctx, id, binary, progress)
	return engine.Upgrade{Volume: id, From: u.From, To: u.To, Pause: u.Pause}, err
}
