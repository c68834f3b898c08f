package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/belay-storage/belay/pkg/volume"
)

// The policy: how long a node must have been silent.
const (
	leaseNamespace = "kube-node-lease"
	// leaseTimes is how many times its own duration a Lease must not have been renewed. A kubelet renews four times in one.
	leaseTimes = 4
	// leaseLook is how often the Lease of a node that is not ready is read.
	leaseLook = 10 * time.Second
	// leaseGapMax is how far apart two reads may be that count as one observation.
	leaseGapMax = 3 * leaseLook
)

// Leases watches the Leases of nodes that are not ready. Time is counted here, from read to read: the clocks of machines differ, and after an outage of the API
// server every Lease is old though every kubelet lives. Safe for concurrent use.
type Leases struct {
	fleet Fleet
	mu    sync.Mutex
	seen  map[volume.NodeID]observation
}

// observation is of a Lease that does not change.
type observation struct {
	renewed     time.Time // as the Lease says, to compare only
	holder      string
	duration    time.Duration
	since, last time.Time // our own clock: first and newest read that found it so
}

// NewLeases returns a watch; Run starts it.
func NewLeases(f Fleet) *Leases { return &Leases{fleet: f, seen: map[volume.NodeID]observation{}} }

// Run watches until ctx ends.
func (l *Leases) Run(ctx context.Context) {
	tick := time.NewTicker(leaseLook)
	defer tick.Stop()
	for {
		l.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (l *Leases) look(ctx context.Context) {
	nodes, err := l.fleet.List(ctx)
	if err != nil {
		return
	}
	for _, node := range nodes {
		if n, ok := one[*corev1.Node](l.fleet.nodes, string(node)); !ok || ready(n) {
			l.forget(node)
			continue
		}
		if _, err := l.observe(ctx, node); err != nil {
			l.fleet.Log.Debug("lease cannot be read; the observation begins anew", "node", node, "error", err)
		}
	}
}

func (l *Leases) forget(node volume.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.seen, node)
}

// observe reads the Lease. A read that fails ends the observation: in the time without the API server no kubelet could renew.
func (l *Leases) observe(ctx context.Context, node volume.NodeID) (observation, error) {
	lease, err := l.fleet.API.leases(leaseNamespace).get(ctx, string(node))
	if err != nil {
		l.forget(node)
		return observation{}, fmt.Errorf("lease of node %s: %w", node, err)
	}
	now, found := time.Now(), observed(lease)
	l.mu.Lock()
	defer l.mu.Unlock()
	before, ok := l.seen[node]
	if ok && before.same(found) && now.Sub(before.last) <= leaseGapMax {
		found.since = before.since
	} else {
		found.since = now
	}
	found.last = now
	l.seen[node] = found
	return found, nil
}

func observed(lease *coordinationv1.Lease) (o observation) {
	if s := lease.Spec; s.RenewTime != nil && s.LeaseDurationSeconds != nil && s.HolderIdentity != nil {
		o.renewed, o.holder, o.duration = s.RenewTime.Time, *s.HolderIdentity, time.Duration(*s.LeaseDurationSeconds)*time.Second
	}
	return o
}

func (o observation) same(p observation) bool {
	return o.renewed.Equal(p.renewed) && o.holder == p.holder && o.duration == p.duration
}

// expired says why the node, which is not ready, counts as lost by its Lease; "" where it does not. It reads the Lease.
func (l *Leases) expired(ctx context.Context, node volume.NodeID) (string, error) {
	o, err := l.observe(ctx, node)
	if err != nil || o.holder != string(node) || o.duration <= 0 {
		return "", err // a Lease that says nothing of this node has not expired
	}
	if quiet := o.last.Sub(o.since); quiet >= leaseTimes*o.duration {
		return fmt.Sprintf("it is not ready and its Lease, good for %v, was not renewed in %v (policy of expired leases)", o.duration, quiet.Round(time.Second)), nil
	}
	return "", nil
}
