package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	node       = "demo-node"
	volumeMark = "belay-demo-" // all volumes of the story begin with it
)

// orchestrator is what kubelet and the sidecars do with one volume after the other, over the same socket.
type orchestrator struct {
	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	dir        string
	claims     []*claim
}

func newOrchestrator(socket, dir string) (*orchestrator, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &orchestrator{
		conn: conn, dir: dir,
		identity: csi.NewIdentityClient(conn), controller: csi.NewControllerClient(conn), node: csi.NewNodeClient(conn),
	}, nil
}

// letGo detaches what an interrupted story left attached, as far as that goes, and hangs up.
func (o *orchestrator) letGo() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, c := range o.claims {
		_ = o.nodeUnpublish(ctx, c)
		_ = o.unstage(ctx, c)
	}
	o.conn.Close()
}

func (o *orchestrator) probe(ctx context.Context) error {
	_, err := o.identity.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	return err
}

// claim is a volume as the orchestrator holds it.
type claim struct {
	id      string
	size    int64
	context map[string]string
	publish map[string]string
	staging string
	target  string
}

func ext4() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// create provisions a volume of three replicas.
func (o *orchestrator) create(ctx context.Context, name string, size int64, parameters map[string]string) (*claim, error) {
	r, err := o.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: volumeMark + name, CapacityRange: &csi.CapacityRange{RequiredBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{ext4()}, Parameters: parameters,
	})
	if err != nil {
		return nil, err
	}
	base := filepath.Join(o.dir, "mounts", r.Volume.VolumeId)
	c := &claim{
		id: r.Volume.VolumeId, size: r.Volume.CapacityBytes, context: r.Volume.VolumeContext,
		staging: filepath.Join(base, "staging"), target: filepath.Join(base, "pod"),
	}
	o.claims = append(o.claims, c)
	return c, os.MkdirAll(c.staging, 0o750) // kubelet makes it before it stages
}

func (o *orchestrator) controllerPublish(ctx context.Context, c *claim) error {
	r, err := o.controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: c.id, NodeId: node, VolumeCapability: ext4(), VolumeContext: c.context,
	})
	if err == nil {
		c.publish = r.PublishContext
	}
	return err
}

func (o *orchestrator) stage(ctx context.Context, c *claim) error {
	_, err := o.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: c.id, PublishContext: c.publish, StagingTargetPath: c.staging, VolumeCapability: ext4(), VolumeContext: c.context,
	})
	return err
}

func (o *orchestrator) nodePublish(ctx context.Context, c *claim) error {
	_, err := o.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: c.id, PublishContext: c.publish, StagingTargetPath: c.staging, TargetPath: c.target,
		VolumeCapability: ext4(), VolumeContext: c.context,
	})
	return err
}

func (o *orchestrator) nodeUnpublish(ctx context.Context, c *claim) error {
	_, err := o.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.id, TargetPath: c.target})
	return err
}

func (o *orchestrator) unstage(ctx context.Context, c *claim) error {
	_, err := o.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: c.id, StagingTargetPath: c.staging})
	return err
}

func (o *orchestrator) controllerUnpublish(ctx context.Context, c *claim) error {
	_, err := o.controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: c.id, NodeId: node})
	return err
}

func (o *orchestrator) remove(ctx context.Context, c *claim) error {
	_, err := o.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: c.id})
	return err
}

// attach is publish, stage and publish to the pod.
func (o *orchestrator) attach(ctx context.Context, c *claim) error {
	return inOrder(ctx, c, o.controllerPublish, o.stage, o.nodePublish)
}

// detach is the way out.
func (o *orchestrator) detach(ctx context.Context, c *claim) error {
	return inOrder(ctx, c, o.nodeUnpublish, o.unstage, o.controllerUnpublish)
}

func inOrder(ctx context.Context, c *claim, calls ...func(context.Context, *claim) error) error {
	for _, call := range calls {
		if err := call(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// wantCode is nil where err carries the gRPC code, by its name.
func wantCode(err error, name string) error {
	if err == nil {
		return fmt.Errorf("answered OK, want %s", name)
	}
	if got := status.Code(err).String(); got != name {
		return fmt.Errorf("answered %s, want %s: %w", got, name, err)
	}
	return nil
}

// said is what an answer says to people.
func said(err error) string {
	s := status.Convert(err)
	return s.Code().String() + ": " + s.Message()
}
