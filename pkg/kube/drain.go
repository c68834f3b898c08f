package kube

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Times of the drain signal.
const (
	drainLook  = 30 * time.Second       // how often every node is asked
	drainPause = 200 * time.Millisecond // changes that come together are looked at together
)

// Reasons of ConditionDetached.
const (
	ReasonAllDetached     = "AllDetached"
	ReasonVolumesAttached = "VolumesAttached"
	ReasonNodeUnreachable = "NodeUnreachable"
)

// detached are the three values of the condition. The text is fixed, so that it is written when the status changes and at no other time.
var (
	allDetached  = corev1.NodeCondition{Status: corev1.ConditionTrue, Reason: ReasonAllDetached, Message: "no volume of Belay is attached or staged on this node"}
	someAttached = corev1.NodeCondition{Status: corev1.ConditionFalse, Reason: ReasonVolumesAttached, Message: "volumes of Belay are attached to this node; kubectl belay volumes lists them"}
	nobodyKnows  = corev1.NodeCondition{Status: corev1.ConditionUnknown, Reason: ReasonNodeUnreachable, Message: "the node's belay does not answer, so nobody can say whether a volume is attached"}
)

// Drain says on every node of ours, by ConditionDetached, whether it has let go of every volume: for
// `kubectl wait --for=condition=BelayVolumesDetached node/NAME` after a drain.
type Drain struct {
	fleet Fleet
	peers Peers
}

// NewDrain returns a controller.
func NewDrain(f Fleet, p Peers) *Drain { return &Drain{f, p} }

// Run keeps the condition until ctx ends.
func (d *Drain) Run(ctx context.Context) {
	q := newQueue("node", d.fleet.Log, d.look)
	changed := func(node volume.NodeID) { q.AddAfter(string(node), drainPause) }
	d.fleet.Changed(ctx, changed)
	subscribe(ctx, d.fleet.attachments, func(o any) {
		if a, ok := tombless(o).(*storagev1.VolumeAttachment); ok && a.Spec.NodeName != "" {
			changed(volume.NodeID(a.Spec.NodeName))
		}
	})
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { d.everyNode(ctx, changed) })
	q.run(ctx, 4)
}

// everyNode has every node looked at now and then: what was ours once as well, for the condition to go.
func (d *Drain) everyNode(ctx context.Context, look func(volume.NodeID)) {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		for _, o := range d.fleet.nodes.GetStore().List() {
			if n, ok := o.(*corev1.Node); ok && (d.fleet.ours(volume.NodeID(n.Name)) || conditionOf(n) != nil) {
				look(volume.NodeID(n.Name))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (d *Drain) look(ctx context.Context, name string) error {
	n, ok := one[*corev1.Node](d.fleet.nodes, name)
	if !ok || !d.fleet.read() {
		return nil
	}
	now := conditionOf(n)
	if !d.fleet.ours(volume.NodeID(name)) {
		if now == nil {
			return nil
		}
		return d.write(ctx, n, map[string]any{"type": ConditionDetached, "$patch": "delete"})
	}
	c := d.state(ctx, volume.NodeID(name))
	if now != nil && now.Status == c.Status && now.Reason == c.Reason {
		return nil
	}
	c.Type, c.LastTransitionTime = ConditionDetached, metav1.Now()
	c.LastHeartbeatTime = c.LastTransitionTime
	return d.write(ctx, n, c)
}

// write changes the one condition, where the Node is still the one that was looked at.
func (d *Drain) write(ctx context.Context, n *corev1.Node, condition any) error {
	_, err := d.fleet.API.nodes().patch(ctx, n.Name, types.StrategicMergePatchType, map[string]any{
		"metadata": map[string]any{"uid": n.UID}, "status": map[string]any{"conditions": []any{condition}},
	}, "status")
	return unlessGone(err)
}

// state is what the node itself says, and the cluster: an attachment that is on its way is one.
func (d *Drain) state(ctx context.Context, node volume.NodeID) corev1.NodeCondition {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	for _, peer := range []Peer{d.peers(node), d.peers("")} {
		if peer == nil {
			continue
		}
		all, err := peer.Volumes(ctx)
		if err != nil || all.Err() != nil {
			return nobodyKnows
		}
		if holds(all.Volumes, node) {
			return someAttached
		}
	}
	// After the node's answer: an attachment that came meanwhile is seen here.
	if len(some[*storagev1.VolumeAttachment](d.fleet.attachments, byNode, string(node))) > 0 {
		return someAttached
	}
	return allDetached
}

// holds says whether the node has one of the volumes. Of a volume that is not available nobody can tell.
func holds(all []admin.Volume, node volume.NodeID) bool {
	return slices.ContainsFunc(all, func(v admin.Volume) bool {
		return v.Attachment != nil && v.Attachment.Node == node || v.State == engine.Unavailable
	})
}

func conditionOf(n *corev1.Node) *corev1.NodeCondition {
	for i, c := range n.Status.Conditions {
		if c.Type == ConditionDetached {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}
