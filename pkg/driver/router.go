package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/belay-storage/belay/pkg/volume"
)

// Machines are those whose drivers a Router speaks for. Safe for concurrent use.
type Machines interface {
	// List names every machine that has a driver of ours, whether it can be reached or not.
	List(ctx context.Context) ([]volume.NodeID, error)
	// Had says that the machine has a driver of ours, or had one: while that is exchanged, List may not name it.
	Had(ctx context.Context, node volume.NodeID) (bool, error)
	// Address is host:port of the machine's driver. The error says why there is none at the moment.
	Address(ctx context.Context, node volume.NodeID) (string, error)
}

// RouterConfig is what a Router needs. Required unless said otherwise.
type RouterConfig struct {
	Version  string
	Name     string // optional: Name
	Machines Machines
	// Beyond answers for volumes whose handle names no machine: those of an engine that is bound to none. Such a volume is made by asking it, not
	// the router. Optional: then there are no such volumes.
	Beyond      csi.ControllerServer
	Credentials credentials.TransportCredentials
	Log         *slog.Logger
	Observe     func(method, code string, took time.Duration) // optional: see Config
	Events      RouterEvents                                  // optional
}

// RouterEvents are callbacks: see Events.
type RouterEvents struct {
	// Refused: ControllerUnpublishVolume of the handle was answered with an error.
	Refused func(handle string, node volume.NodeID, cause error)
}

// Router is the controller service of a cluster: where a volume lives on one machine it has the driver of that machine answer, and RouterConfig.Beyond for the
// others. It keeps nothing: what a volume is called says where it lives, and every decision is made there. What a machine that does not answer would have said nobody
// knows: UNAVAILABLE, naming it. Safe for concurrent use.
type Router struct {
	RouterConfig
	lines lines

	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
}

// NewRouter returns a router. Call Close at the end.
func NewRouter(c RouterConfig) (*Router, error) {
	if c.Version == "" || c.Machines == nil || c.Credentials == nil || c.Log == nil {
		return nil, errors.New("driver: RouterConfig: Version, Machines, Credentials and Log are required")
	}
	if c.Name == "" {
		c.Name = Name
	}
	if c.Observe == nil {
		c.Observe = func(string, string, time.Duration) {}
	}
	or3Nothing(&c.Events.Refused)
	return &Router{RouterConfig: c, lines: lines{machines: c.Machines, credentials: c.Credentials}}, nil
}

// Services are what the router serves.
func (r *Router) Services() Services {
	return Services{Identity: r, Controller: r, Log: r.Log, Observe: r.Observe}
}

// Close ends the connections to the machines.
func (r *Router) Close() error { return r.lines.close() }

// GetPluginInfo implements csi.IdentityServer.
func (r *Router) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: r.Name, VendorVersion: r.Version}, nil
}

// GetPluginCapabilities implements csi.IdentityServer.
func (r *Router) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return pluginCapabilities(), nil
}

// Probe implements csi.IdentityServer. A machine that is away is no reason to restart this process.
func (r *Router) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// ControllerGetCapabilities implements csi.ControllerServer.
func (r *Router) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	return controllerCapabilities(), nil
}

// strange says that no volume of ours was ever called so.
func (r *Router) strange(handle string) bool {
	_, node, err := volume.ParseHandle(handle)
	return err == nil && node == "" && r.Beyond == nil
}

// DeleteVolume implements csi.ControllerServer.
func (r *Router) DeleteVolume(ctx context.Context, q *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if r.strange(q.GetVolumeId()) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	return route(ctx, r, q, csi.ControllerClient.DeleteVolume)
}

// ControllerPublishVolume implements csi.ControllerServer.
func (r *Router) ControllerPublishVolume(ctx context.Context, q *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if _, err := volume.ParseNodeID(q.GetNodeId()); err != nil {
		return nil, err
	}
	if _, err := parseCapability(q.GetVolumeCapability()); err != nil {
		return nil, err
	}
	return route(ctx, r, q, csi.ControllerClient.ControllerPublishVolume)
}

// ControllerUnpublishVolume implements csi.ControllerServer: the gate of the volume's machine decides.
func (r *Router) ControllerUnpublishVolume(ctx context.Context, q *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if r.strange(q.GetVolumeId()) {
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	}
	answered, err := route(ctx, r, q, csi.ControllerClient.ControllerUnpublishVolume)
	if err != nil {
		r.Events.Refused(q.GetVolumeId(), volume.NodeID(q.GetNodeId()), err)
	}
	return answered, err
}

// ValidateVolumeCapabilities implements csi.ControllerServer.
func (r *Router) ValidateVolumeCapabilities(ctx context.Context, q *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	return route(ctx, r, q, csi.ControllerClient.ValidateVolumeCapabilities)
}

// ControllerExpandVolume implements csi.ControllerServer.
func (r *Router) ControllerExpandVolume(ctx context.Context, q *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	return route(ctx, r, q, csi.ControllerClient.ControllerExpandVolume)
}

// ControllerGetVolume implements csi.ControllerServer.
func (r *Router) ControllerGetVolume(ctx context.Context, q *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	return route(ctx, r, q, csi.ControllerClient.ControllerGetVolume)
}

// ControllerGetVolumeHealth implements csi.ControllerServer.
func (r *Router) ControllerGetVolumeHealth(ctx context.Context, q *csi.ControllerGetVolumeHealthRequest) (*csi.ControllerGetVolumeHealthResponse, error) {
	return route(ctx, r, q, csi.ControllerClient.ControllerGetVolumeHealth)
}

// call is a method of csi.ControllerClient.
type call[Q, A any] func(csi.ControllerClient, context.Context, Q, ...grpc.CallOption) (A, error)

// route has the machine that the request's handle names answer.
func route[Q interface{ GetVolumeId() string }, A any](ctx context.Context, r *Router, q Q, f call[Q, A]) (none A, _ error) {
	id, node, err := volume.ParseHandle(q.GetVolumeId())
	if err != nil {
		return none, err
	}
	if node == beyond && r.Beyond == nil {
		return none, answer(codes.NotFound, "volume %s: its handle names no node, and every volume here lives on one", id)
	}
	if node == beyond {
		return ask(ctx, r, beyond, q, f)
	}
	if err := r.ours(ctx, node); err != nil {
		return none, fmt.Errorf("volume %s: %w", id, err)
	}
	a, err := ask(ctx, r, node, q, f)
	if away, ok := errors.AsType[*awayError](err); ok {
		return none, answer(codes.Unavailable, "volume %s: it lives on node %s, which %w; nothing is known of it, and nothing is done, until the node answers again", id, node, away)
	}
	return a, err
}

// ours answers NOT_FOUND where no machine of ours ever had that name.
func (r *Router) ours(ctx context.Context, node volume.NodeID) error {
	had, err := r.Machines.Had(ctx, node)
	if err != nil {
		return answer(codes.Unavailable, "the nodes cannot be listed: %v", err)
	}
	if had {
		return nil
	}
	r.lines.forget(node)
	return answer(codes.NotFound, "node %s: no node of that name has the driver %s", node, r.Name)
}
