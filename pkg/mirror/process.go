package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// process is the engine process of an attached volume, as the host has it. Where it dies meanwhile a call goes to the next one.
type process struct {
	e      *Engine
	volume volume.ID
	device host.Device
}

// order is what an engine process is given with a device.
type order struct {
	Volume       volume.ID         `json:"volume"`
	Attachment   volume.Attachment `json:"attachment"`
	Stores       []home            `json:"stores"`
	Installation string            `json:"installation"`
	Node         volume.NodeID     `json:"node"`
	Boot         string            `json:"boot"`
	Floor        *floor            `json:"floor,omitempty"` // of a salvage
}

// ready is what an engine process says when it serves, and what the next one knows of it.
type ready struct {
	Writer    volume.Epoch `json:"writer"`
	Unclean   bool         `json:"unclean"`
	BlockSize int          `json:"blockSize"`
}

// words are what an engine process that can serve no more leaves to the next one.
type words struct {
	Cause string             `json:"cause"`
	Lossy []engine.ReplicaID `json:"lossy,omitempty"` // a sync of theirs failed: their caches may be gone
}

// keyOf tells one attachment from another.
func keyOf(a volume.Attachment) string { return strconv.FormatUint(uint64(a.Epoch), 10) }

// process returns the volume's engine process: engine.ErrNotFound where it has no device here, engine.ErrDeviceLost where that
// answers nothing but errors.
func (e *Engine) process(ctx context.Context, id volume.ID) (*process, error) {
	d, err := e.Host.Device(ctx, id)
	if isNotFound(err) {
		return nil, e.leftover(id)
	}
	if err != nil {
		return nil, fmt.Errorf("device of volume %s: %w", id, err)
	}
	if d.State == host.Lost {
		return nil, fmt.Errorf("%w: volume %s: %s: %s", engine.ErrDeviceLost, id, d.Path, d.Cause)
	}
	return &process{e: e, volume: id, device: d}, nil
}

// alive returns the engine process, nil where the volume has none that serves or will. An error: nobody can tell.
func (e *Engine) alive(ctx context.Context, id volume.ID) (*process, error) {
	p, err := e.process(ctx, id)
	if isNotFound(err) || errors.Is(err, engine.ErrDeviceLost) {
		return nil, nil
	}
	return p, err
}

// epoch is the epoch of the attachment that the device is of.
func (p *process) epoch() volume.Epoch {
	n, err := strconv.ParseUint(p.device.Key, 10, 64)
	if err != nil {
		return 0
	}
	return volume.Epoch(n)
}

// waits says why requests to the device wait, empty where they do not.
func (p *process) waits() string {
	switch p.device.State {
	case host.Waiting:
		return "its engine is being started again: " + p.device.Cause
	case host.Attaching:
		return "its engine recovers the volume"
	}
	return ""
}

// serves describes the process for people.
func (p *process) serves() *engine.Process {
	e := p.device.Engine
	return &engine.Process{Version: e.Version, PID: e.PID, Since: e.Since, Deaths: p.device.Deaths, Pause: p.device.Pause}
}

func readyOf(info json.RawMessage) (r ready) {
	_ = json.Unmarshal(info, &r) // none yet: nothing is known
	return r
}

// Pace and bound of a call that finds no engine: the next one is there in a moment, or something is wrong.
const (
	nextWithin = 30 * time.Second
	nextEvery  = 20 * time.Millisecond
)

// call asks the engine process, and the next one where it dies meanwhile: what an engine process is asked can be asked again.
func call[Resp any](ctx context.Context, p *process, method string, req any, progress func(engine.Progress)) (Resp, error) {
	if progress == nil {
		progress = func(engine.Progress) {}
	}
	deadline := time.Now().Add(nextWithin)
	for {
		resp, err := wire.Call[Resp](ctx, p.e.Host.Engine(p.device), method, req, progress)
		if err == nil || !again(err) {
			return resp, err
		}
		if time.Now().After(deadline) {
			return resp, fmt.Errorf("%w: volume %s: its engine does not answer: %s: %w", engine.ErrUnavailable, p.volume, p.waits(), err)
		}
		select {
		case <-ctx.Done():
			return resp, err
		case <-time.After(nextEvery):
		}
		next, nextErr := p.e.process(ctx, p.volume)
		if nextErr != nil {
			return resp, fmt.Errorf("%w: %w", nextErr, err)
		}
		p = next
	}
}

// again says that the engine process is gone, or stands by: another one serves, or will.
func again(err error) bool {
	return errors.Is(err, wire.ErrLost) || errors.Is(err, wire.ErrNotRunning) || errors.Is(err, host.ErrNotServing)
}

type nothing struct{}

func (p *process) status(ctx context.Context) (status, error) {
	return call[status](ctx, p, "status", nothing{}, nil)
}

func (p *process) stop(ctx context.Context) error {
	_, err := call[nothing](ctx, p, "stop", nothing{}, nil)
	return err
}

func (p *process) evidence(ctx context.Context, report func(engine.Progress)) (engine.Barrier, error) {
	return call[engine.Barrier](ctx, p, "evidence", nothing{}, report)
}

func (p *process) seal(ctx context.Context, b engine.Barrier, receipt []byte) error {
	_, err := call[nothing](ctx, p, "seal", sealing{b, receipt}, nil)
	return err
}

func (p *process) expand(ctx context.Context, size volume.Bytes) error {
	_, err := call[nothing](ctx, p, "expand", size, nil)
	return err
}

func (p *process) setFormat(ctx context.Context, f engine.Format) error {
	_, err := call[nothing](ctx, p, "format", f, nil)
	return err
}

func (p *process) quarantine(ctx context.Context, findings []engine.Finding) error {
	_, err := call[nothing](ctx, p, "quarantine", findings, nil)
	return err
}

func (p *process) verify(ctx context.Context, report func(engine.Progress)) (engine.Verification, error) {
	return call[engine.Verification](ctx, p, "verify", nothing{}, report)
}

// sealing is the request of the method seal.
type sealing struct {
	Barrier engine.Barrier `json:"barrier"`
	Receipt []byte         `json:"receipt"`
}

// status is what an engine process says of itself.
type status struct {
	Writer   volume.Epoch     `json:"writer"`
	Size     volume.Bytes     `json:"size"`
	Blank    bool             `json:"blank"`
	Stopped  bool             `json:"stopped"`
	Sealed   bool             `json:"sealed"`
	Stalled  string           `json:"stalled,omitempty"`
	Replicas []engine.Replica `json:"replicas"`
}
