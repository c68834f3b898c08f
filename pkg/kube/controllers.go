package kube

import (
	"context"
	"errors"
	"sync"
)

// Hooks are callbacks for metrics. Any may be nil. They must not block.
type Hooks struct {
	// Told: an Event of the reason was made, of one or several objects.
	Told func(reason string)
	// Override: an operator's override was settled: "done" or "rejected".
	Override func(outcome string)
	// Leading: this process began or ceased to lead.
	Leading func(bool)
}

// ControllersConfig is what Controllers need. Required unless said otherwise.
type ControllersConfig struct {
	Config
	Peers Peers
	// Identity of this process among those that may lead.
	Identity string
	// Alone: no leader election, since no other process runs.
	Alone bool
	// Certificates: the Secrets of the certificates are kept.
	Certificates bool
	// FenceExpiredLeases: see NewLost.
	FenceExpiredLeases bool
	Hooks              Hooks // optional
}

// Controllers are all that this package does, wired.
type Controllers struct {
	Fleet     Fleet
	Reporter  *Reporter
	Lost      *Lost
	Overrides *Overrides

	c      ControllersConfig
	leases *Leases
}

// NewControllers returns them; Run starts them.
func NewControllers(c ControllersConfig) (*Controllers, error) {
	if c.Peers == nil || c.Identity == "" {
		return nil, errors.New("kube: ControllersConfig: Peers and Identity are required")
	}
	cluster, err := NewCluster(c.Config)
	if err != nil {
		return nil, err
	}
	c.Config = cluster.Config
	k := &Controllers{c: c, Fleet: Fleet{cluster}, Reporter: NewReporter(cluster, "belay-controller", c.Hooks.Told)}
	if c.FenceExpiredLeases {
		k.leases = NewLeases(k.Fleet)
	}
	k.Lost = NewLost(cluster, k.Reporter, k.leases)
	k.Overrides = NewOverrides(cluster, k.Reporter, c.Peers, c.Hooks.Override)
	return k, nil
}

// Run works until ctx ends: the caches and what answers from them at once, and what writes while this process leads.
func (k *Controllers) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { k.Fleet.Run(ctx) })
	all.Go(func() { k.Reporter.Run(ctx) })
	if k.leases != nil {
		all.Go(func() { k.leases.Run(ctx) })
	}
	if k.c.Alone {
		k.lead(ctx)
		return
	}
	NewElector(k.c.API, k.c.Namespace, LeaseName, k.c.Identity, k.c.Log).Run(ctx, k.lead)
}

// lead runs what only one process does. The controllers are made anew each time: what they remember is of the time they lead.
func (k *Controllers) lead(ctx context.Context) {
	if k.c.Hooks.Leading != nil {
		k.c.Hooks.Leading(true)
		defer k.c.Hooks.Leading(false)
	}
	var all sync.WaitGroup
	defer all.Wait()
	if k.c.Certificates { // before anything is read: without certificates no node can be asked
		all.Go(func() { NewCertificates(k.Fleet.Cluster).Run(ctx) })
	}
	if k.Fleet.Wait(ctx) != nil {
		return // ctx has ended
	}
	restarts := NewRestarts(k.Fleet.Cluster, k.Reporter, k.c.Peers)
	run := []func(context.Context){
		restarts.Run, NewNotices(k.Fleet, k.Reporter, k.c.Peers, restarts.Lost).Run,
		NewOverrides(k.Fleet.Cluster, k.Reporter, k.c.Peers, k.c.Hooks.Override).Run, NewDrain(k.Fleet, k.c.Peers).Run,
	}
	for _, r := range run {
		all.Go(func() { r(ctx) })
	}
}
