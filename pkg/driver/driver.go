// Package driver is the CSI plugin: identity, controller and node services over an engine, the gate and the node's agent.
//
// It is the only package that knows CSI types and gRPC codes. It decides nothing about detaching: ControllerUnpublish
// asks the gate, NodeUnstage the agent, and what they refuse is passed on with its reason.
package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// Name is the driver's name in StorageClass and CSIDriver objects.
const Name = "csi.belay.storage"

// VolumesMax is how many volumes a node takes unless told otherwise: each attached one has an engine process of its own.
const VolumesMax = 128

// Gate decides whether a volume may be let go of. *detach.Gate is one.
type Gate interface {
	Unpublish(ctx context.Context, id volume.ID, node volume.NodeID) error
}

// Agent keeps the stage journal of this node and takes volumes off it. *detach.Agent is one.
type Agent interface {
	BeginStage(ctx context.Context, e detach.Entry) error
	FinishStage(ctx context.Context, id volume.ID, device string) error
	AddTarget(ctx context.Context, id volume.ID, t detach.Target) error
	RemoveTarget(ctx context.Context, id volume.ID, path string) error
	Entry(id volume.ID) (detach.Entry, bool, error)
	Unstage(ctx context.Context, id volume.ID, staging string) error
}

// Config is what a Driver needs. Required unless said otherwise.
type Config struct {
	Version string
	Control engine.Control
	Gate    Gate

	// The node's half: all of it, or none. A driver without has no node service, and must be told of Nodes.
	NodeID  volume.NodeID // this machine
	Engine  engine.Node
	Agent   Agent
	Mounter *mount.Mounter

	Log        *slog.Logger
	Name       string // optional: Name
	VolumesMax int64  // optional: VolumesMax; negative: no limit
	// Local says that other machines have drivers of this name too, and that every volume lives on one of them: what the orchestrator
	// calls a volume then names its machine (volume.Handle).
	Local bool
	// Nodes lists the machines that volumes may be published to. Optional: this one only.
	Nodes func(ctx context.Context) ([]volume.NodeID, error)
	// Forgotten says that the orchestrator has no record of the attachment any more, so that nobody will ask to end it. Then, and only then,
	// ControllerPublishVolume to another node has the gate end it first. Optional: never.
	Forgotten func(ctx context.Context, a volume.Attachment) (bool, error)
	// Ready says why the plugin cannot work yet. Optional: always ready.
	Ready func(ctx context.Context) error
	// Observe is told of every finished call: full method name, name of the gRPC code, duration. Optional. Called
	// from several goroutines; must not block.
	Observe func(method, code string, took time.Duration)
	Events  Events // optional
}

// controllerOnly says that the node's half is left out.
func (c Config) controllerOnly() bool {
	return c.NodeID == "" && c.Engine == nil && c.Agent == nil && c.Mounter == nil
}

func (c Config) validate() error {
	missing := map[string]bool{"Version": c.Version == "", "Control": c.Control == nil, "Gate": c.Gate == nil, "Log": c.Log == nil}
	if c.controllerOnly() {
		missing["Nodes"] = c.Nodes == nil
		missing["NodeID"] = c.Local
	} else {
		if _, err := volume.ParseNodeID(string(c.NodeID)); err != nil {
			return err
		}
		missing["Engine"], missing["Agent"], missing["Mounter"] = c.Engine == nil, c.Agent == nil, c.Mounter == nil
	}
	for name, isMissing := range missing {
		if isMissing {
			return fmt.Errorf("driver: Config.%s is missing", name)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Name == "" {
		c.Name = Name
	}
	if c.VolumesMax == 0 {
		c.VolumesMax = VolumesMax
	}
	c.VolumesMax = max(c.VolumesMax, 0) // CSI: 0 is no limit
	if c.Nodes == nil {
		self := []volume.NodeID{c.NodeID}
		c.Nodes = func(context.Context) ([]volume.NodeID, error) { return self, nil }
	}
	if c.Forgotten == nil {
		c.Forgotten = func(context.Context, volume.Attachment) (bool, error) { return false, nil }
	}
	if c.Ready == nil {
		c.Ready = func(context.Context) error { return nil }
	}
	if c.Observe == nil {
		c.Observe = func(string, string, time.Duration) {}
	}
	c.Events = c.Events.withDefaults()
	return c
}

// Driver serves the CSI services. Safe for concurrent use.
type Driver struct {
	Config

	// Controller and node lock apart: the gate's answer says more than "another operation runs" while this node unstages.
	controllerLocks, nodeLocks locks
	room                       room
	checks                     *checks

	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
}

// New returns a driver. Call Close at the end.
func New(c Config) (*Driver, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Driver{Config: c, checks: newChecks(), room: room{max: c.VolumesMax, list: c.Control.List, most: map[volume.NodeID]int64{}}}, nil
}

// knows says whether a volume may be published to the node at all.
func (d *Driver) knows(ctx context.Context, node volume.NodeID) (bool, error) {
	nodes, err := d.Nodes(ctx)
	return slices.Contains(nodes, node), err
}

// parse reads what the orchestrator calls a volume. One that lives on another machine is not found here.
func (d *Driver) parse(handle string) (volume.ID, error) {
	id, node, err := volume.ParseHandle(handle)
	if err == nil && node != "" && node != d.NodeID {
		err = answer(codes.NotFound, "volume %s: it lives on node %s, and this is %s", id, node, d.place())
	}
	return id, err
}

// place says, for a message, whose volumes these are.
func (d *Driver) place() string {
	if d.controllerOnly() {
		return "where volumes live on no one node"
	}
	return "node " + string(d.NodeID)
}

// handle is what the orchestrator calls the volume.
func (d *Driver) handle(id volume.ID) (string, error) {
	if !d.Local {
		return string(id), nil
	}
	return volume.Handle(id, d.NodeID)
}

// volume returns the volume of a request, or an error that is ready to be answered.
func (d *Driver) volume(ctx context.Context, s string) (engine.Volume, error) {
	id, err := d.parse(s)
	if err != nil {
		return engine.Volume{}, err
	}
	v, err := d.Control.Get(ctx, id)
	if err != nil {
		return engine.Volume{}, fmt.Errorf("volume %s: %w", id, err)
	}
	return v, nil
}

// exists is volume where only its being there matters: one that is unavailable exists, as far as can be told.
func (d *Driver) exists(ctx context.Context, id volume.ID) error {
	if _, err := d.Control.Get(ctx, id); errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	return nil
}
