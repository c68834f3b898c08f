package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	volumeID volume.ID     = "v"
	nodeID   volume.NodeID = "node"
	stateDir               = "/state"
	staging                = "/staging/v"
	target                 = "/pods/v"
)

// orchestrator is what kubelet and the attacher do with a volume, again and again, whatever is answered: calls that fail are made
// again, and nothing else ends them.
type orchestrator struct {
	w        *world
	r        *rand.Rand
	relieved bool

	straggling chan struct{} // closed when a guest that writes on has ended; nil where there is none
}

// patience is how long anything may take once all faults have gone.
const patience = 15 * time.Minute

// until makes a call again and again until it succeeds. It is false where the run ended before.
func (o *orchestrator) until(what string, call func(context.Context, *server) error) bool {
	var last error
	for since := time.Duration(0); ; {
		if s := o.w.server(); s != nil {
			ctx, cancel := context.WithTimeout(o.w.ctx(), between(o.r, 2*time.Second, 2*time.Minute))
			last = s.heard(call(ctx, s))
			cancel()
			o.w.trace.add(func() string { return fmt.Sprintf("orchestrator: %s: %v", what, last) })
			o.w.check()
			if last == nil {
				return true
			}
		}
		if o.w.failed() {
			return false
		}
		pause := between(o.r, 200*time.Millisecond, 12*time.Second)
		time.Sleep(pause)
		if !o.w.healed() {
			since = 0
		} else if since += pause; since > patience/2 && !o.relieved {
			o.relieved = true
			o.w.relieve()
		} else if since > patience {
			o.w.fail("%s does not succeed for %v after all faults have gone: %v", what, patience, last)
			return false
		}
	}
}

// create makes the volume.
func (o *orchestrator) create() bool {
	spec := engine.Spec{
		ID: volumeID, Name: "the volume", Size: volume.Bytes(o.w.plan.regions) * regionBytes, Parameters: o.w.parameters(),
	}
	return o.until("create", func(ctx context.Context, s *server) error {
		_, err := s.engine.Create(ctx, spec)
		return err
	})
}

// round publishes, stages, has the guest work, and takes the volume away again. It is false where the run has failed.
func (o *orchestrator) round(stay time.Duration) bool {
	at, ok := o.publish()
	if !ok {
		return false
	}
	for {
		d, ok := o.stage(at)
		if !ok || d != nil && !o.use(d, stay) {
			return false
		}
		if d == nil || !o.w.plan.has(stagedAgain) || o.r.IntN(2) > 0 {
			return o.leave(at)
		}
		o.w.count(stagedAgain)
		if !o.unstage() {
			return false
		}
		o.w.detached()
	}
}

func (o *orchestrator) publish() (at volume.Attachment, ok bool) {
	ok = o.until("publish", func(ctx context.Context, s *server) (err error) {
		at, err = s.engine.Publish(ctx, volumeID, nodeID, engine.PublishOptions{Mode: "SINGLE_NODE_WRITER"})
		o.salvage(ctx, s, err)
		return err
	})
	return at, ok
}

// stage is NodeStage and NodePublish. The device is nil where the volume cannot be staged any more: it has to be taken away first.
func (o *orchestrator) stage(at volume.Attachment) (d *attached, ok bool) {
	ok = o.until("stage", func(ctx context.Context, s *server) (err error) {
		d, err = s.stage(ctx, at)
		if errors.Is(err, engine.ErrStaleEpoch) || errors.Is(err, engine.ErrQuarantined) {
			d, err = nil, nil
		}
		return err
	})
	return d, ok
}

// use has the guest work on a device.
func (o *orchestrator) use(d *attached, stay time.Duration) bool {
	l := o.w.guest.run(d, o.w.plan.regions*regionBlocks, o.w.plan.streams)
	time.Sleep(between(o.r, 100*time.Millisecond, stay))
	if o.w.plan.has(detachInUse) && o.r.IntN(2) == 0 {
		o.refused()
	}
	err := o.patiently("the end of the guest's requests", l.end)
	o.w.trace.add(func() string { return fmt.Sprintf("guest: ends: %v", err) })
	if o.w.plan.has(straggler) && o.r.IntN(2) == 0 {
		o.straggle(d)
	}
	d.close()
	o.w.check()
	return !o.w.failed()
}

// refused asks for a detach while the volume is in use: it must not be allowed, ever.
func (o *orchestrator) refused() {
	s := o.w.server()
	if s == nil {
		return
	}
	o.w.count(detachInUse)
	ctx, cancel := context.WithTimeout(o.w.ctx(), time.Minute)
	defer cancel()
	if err := s.gate.Unpublish(ctx, volumeID, nodeID); err == nil && o.w.inUse() {
		o.w.fail("a volume in use was detached")
	}
}

// leave ends the workload, and has the volume detached.
func (o *orchestrator) leave(at volume.Attachment) bool {
	switch {
	case o.w.plan.has(detachForgotten) && o.r.IntN(3) == 0:
		o.w.count(detachForgotten)
		if !o.unpod() {
			return false
		}
	case o.w.plan.has(detachAbandoned) && o.r.IntN(3) == 0:
		o.w.count(detachAbandoned)
		if !o.unpod() {
			return false
		}
		o.abandon()
	case !o.unstage():
		return false
	}
	if !o.until("detach", func(ctx context.Context, s *server) error {
		err := s.gate.Unpublish(ctx, volumeID, nodeID)
		if err == nil {
			o.w.invariants.covered(s)
		}
		o.w.override(at, err)
		return err
	}) {
		return false
	}
	o.straggled()
	o.w.detached()
	return !o.w.failed()
}

// unpod is NodeUnpublish.
func (o *orchestrator) unpod() bool {
	return o.until("unpublish from the pod", func(ctx context.Context, s *server) error {
		o.w.kernel.unmount(target)
		return s.agent.RemoveTarget(ctx, volumeID, target)
	})
}

// unstage is NodeUnpublish and NodeUnstage.
func (o *orchestrator) unstage() bool {
	ok := o.unpod() && o.until("unstage", func(ctx context.Context, s *server) error {
		err := s.agent.Unstage(ctx, volumeID, staging)
		if err == nil {
			o.w.invariants.covered(s)
		}
		if o.w.plan.profile == ruin && errors.Is(err, detach.ErrDataLoss) {
			return nil // it is the gate's to say what follows
		}
		return err
	})
	o.straggled()
	return ok
}

// abandon asks for NodeUnstage once, and does not wait for what becomes of it. The server may die of it.
func (o *orchestrator) abandon() {
	if s := o.w.server(); s != nil {
		ctx, cancel := context.WithTimeout(o.w.ctx(), between(o.r, time.Millisecond, 2*time.Second))
		defer cancel()
		_ = s.agent.Unstage(ctx, volumeID, staging)
		if o.w.plan.has(serverKilled) && o.r.IntN(2) == 0 {
			s.process.Kill()
		}
	}
}

// stage does what the driver does at NodeStage and NodePublish of a raw device.
func (s *server) stage(ctx context.Context, at volume.Attachment) (*attached, error) {
	e := detach.Entry{Attachment: at, Staging: staging, Access: detach.Block}
	if err := s.agent.BeginStage(ctx, e); err != nil {
		return nil, err
	}
	d, err := s.engine.Attach(ctx, at)
	if errors.Is(err, engine.ErrDeviceLost) {
		return nil, errors.Join(err, s.agent.Unstage(ctx, volumeID, staging))
	}
	if err != nil {
		return nil, err
	}
	if err := s.agent.FinishStage(ctx, volumeID, d.Path); err != nil {
		return nil, err
	}
	if err := s.agent.AddTarget(ctx, volumeID, detach.Target{Path: target}); err != nil {
		return nil, err
	}
	return s.w.open(d)
}

var errServerDied = errors.New("the server has died")

// heard is what a caller hears of an error of the server: of one that has died only that. Which of its errors comes first then is chance.
func (s *server) heard(err error) error {
	select {
	case <-s.process.Dead():
		if err != nil {
			return errServerDied
		}
	default:
	}
	return err
}
