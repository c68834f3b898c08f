package mirror

import (
	"context"
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
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
	d, err := e.Attached(ctx, a.Volume)
	if p, _ := h.running(); err == nil && p.attachment.Epoch != a.Epoch {
		return d, fmt.Errorf("%w: %s: attached is %s", engine.ErrStaleEpoch, a, p.attachment)
	}
	if !isNotFound(err) {
		return d, err
	}
	if _, recovery := h.running(); recovery != nil {
		return d, fmt.Errorf("%w: %s: the gate has taken the place of its lost writer; finish the detach first", engine.ErrDeviceLost, a)
	}
	v, err := e.Get(ctx, a.Volume)
	if err != nil {
		return d, err
	}
	l, err := parse(v.Parameters, len(v.Replicas))
	if err != nil {
		return d, err
	}
	p, err := e.start(ctx, a, l.blockSize, report)
	if err != nil {
		return d, err
	}
	h.setProcess(p)
	e.Events.engine(a.Volume, true)
	go p.relay(e.Events) // after the line above: an engine is up before it counts
	return e.Attached(ctx, a.Volume)
}

func (h *handle) setProcess(p *process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.process = p
}

// Attached implements engine.Node.
func (e *Engine) Attached(ctx context.Context, id volume.ID) (engine.Device, error) {
	p, _ := e.handle(id).running()
	if p == nil {
		return engine.Device{}, e.leftover(id)
	}
	d := engine.Device{Path: p.devicePath(), Writer: p.writer, Unclean: p.unclean}
	st, err := p.status(ctx)
	if err != nil {
		return d, err
	}
	d.Size, d.Blank, d.Stalled = st.Size, st.Blank, st.Stalled
	v, err := e.Get(ctx, id)
	if err != nil && d.Stalled == "" {
		return d, err
	}
	d.BlockSize = blockSizeDefault
	if l, err := parse(v.Parameters, len(v.Replicas)); err == nil {
		d.BlockSize = l.blockSize
	}
	return d, nil
}

// deviceName is what the kernel keeps of a device: two installations on one machine may have volumes of one name.
func (e *Engine) deviceName(id volume.ID) string {
	return string(id) + "@" + e.stores.installation.String()[:8]
}

// leftover says whether a predecessor's device of the volume is still there, dead.
func (e *Engine) leftover(id volume.ID) error {
	all, err := device.Leftovers()
	if err != nil {
		return fmt.Errorf("devices of this node: %w", err)
	}
	for _, l := range all {
		if l.Of(e.deviceName(id)) {
			return fmt.Errorf("%w: volume %s: %s", engine.ErrDeviceLost, id, l.Path)
		}
	}
	return fmt.Errorf("%w: volume %s has no device on node %s", engine.ErrNotFound, id, e.Node)
}

// Barrier implements engine.Node.
func (e *Engine) Barrier(ctx context.Context, a volume.Attachment) error {
	p, recovery := e.handle(a.Volume).running()
	switch {
	case recovery != nil:
		return nil
	case p == nil:
		return e.leftover(a.Volume)
	case p.attachment.Epoch != a.Epoch:
		return fmt.Errorf("%w: %s: attached is %s", engine.ErrStaleEpoch, a, p.attachment)
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
	p, _ := h.running()
	switch {
	case p == nil:
		return e.removeLeftovers(ctx, a.Volume)
	case p.attachment.Epoch != a.Epoch:
		return nil
	}
	st, err := p.status(ctx)
	if err != nil {
		return err
	}
	if !st.Sealed {
		return fmt.Errorf("%w: %s", engine.ErrNotSealed, a)
	}
	if err := p.export.Close(ctx); err != nil {
		return err
	}
	h.setProcess(nil)
	e.Log.Info("volume detached", "volume", a.Volume, "epoch", p.writer, "device", p.devicePath())
	return p.end(ctx)
}

func (e *Engine) removeLeftovers(ctx context.Context, id volume.ID) error {
	all, err := device.Leftovers()
	if err != nil {
		return fmt.Errorf("devices of this node: %w", err)
	}
	var errs []error
	for _, l := range all {
		if l.Of(e.deviceName(id)) {
			errs = append(errs, device.Remove(ctx, l.Path))
		}
	}
	return errors.Join(errs...)
}

// Resize implements engine.Node.
func (e *Engine) Resize(ctx context.Context, a volume.Attachment) error {
	p, _ := e.handle(a.Volume).running()
	if p == nil {
		return e.leftover(a.Volume)
	}
	_, err := p.export.Resize(ctx)
	return err
}
