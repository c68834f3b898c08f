package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// badIDs are no volume's name: every call that takes an ID refuses them before anything is looked up.
var badIDs = []string{"", "../up", "a/b", "/abs", ".", "..", "UPPER", "-a", "a-", "a b", "a\x00b", "ä", "a.b", strings.Repeat("x", volume.IDMax+1)}

// calls are all calls that take a volume ID, otherwise in order.
func (p *plugin) calls1(ctx context.Context, id string) map[string]error {
	c := asMount("", writer)
	at := map[string]string{contextEpoch: "1"}
	out := map[string]error{}
	note := func(name string, err error) { out[name] = err }
	_, err := p.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	note("DeleteVolume", err)
	_, err = p.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: string(here), VolumeCapability: c})
	note("ControllerPublishVolume", err)
	_, err = p.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: string(here)})
	note("ControllerUnpublishVolume", err)
	_, err = p.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{c}})
	note("ValidateVolumeCapabilities", err)
	_, err = p.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	note("ControllerGetVolume", err)
	_, err = p.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 30}})
	note("ControllerExpandVolume", err)
	_, err = p.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: "/nowhere/s", VolumeCapability: c, PublishContext: at})
	note("NodeStageVolume", err)
	_, err = p.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: "/nowhere/s"})
	note("NodeUnstageVolume", err)
	_, err = p.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: "/nowhere/s", TargetPath: "/nowhere/t", VolumeCapability: c})
	note("NodePublishVolume", err)
	_, err = p.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: "/nowhere/t"})
	note("NodeUnpublishVolume", err)
	_, err = p.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: "/nowhere/t"})
	note("NodeGetVolumeStats", err)
	_, err = p.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{VolumeId: id, VolumePath: "/nowhere/t"})
	note("NodeExpandVolume", err)
	return out
}

func TestMalformedIDs(t *testing.T) {
	p := start(t)
	for _, id := range badIDs {
		if strings.ToValidUTF8(id, "") != id {
			continue // gRPC itself refuses
		}
		for name, err := range p.calls1(t.Context(), id) {
			t.Logf("%s(%q): %v", name, id, err)
			wants(t, err, codes.InvalidArgument, "volume ID")
		}
	}
}

func TestUnknownVolume(t *testing.T) {
	p := start(t)
	fine := []string{"DeleteVolume", "ControllerUnpublishVolume", "NodeUnstageVolume", "NodeUnpublishVolume"} // nothing to undo
	for name, err := range p.calls1(t.Context(), "nobody") {
		t.Logf("%s: %v", name, err)
		if slices.Contains(fine, name) {
			must(t, err)
			continue
		}
		wants(t, err, codes.NotFound, "nobody")
	}
}

func TestCreateBadInput(t *testing.T) {
	p := start(t)
	good := func() *csi.CreateVolumeRequest { return creationOf("data", 64, asMount("ext4", writer)) }
	for name, c := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		code   codes.Code
		words  []string
	}{
		"no name":         {func(r *csi.CreateVolumeRequest) { r.Name = "" }, codes.InvalidArgument, []string{"name", "missing"}},
		"long name":       {func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("n", 129) }, codes.InvalidArgument, []string{"129"}},
		"no capabilities": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }, codes.InvalidArgument, []string{"data", "capabilities"}},
		"empty capability": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{{}} }, codes.InvalidArgument,
			[]string{"UNKNOWN"}},
		"no access type": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessType = nil }, codes.InvalidArgument, []string{"neither"}},
		"two kinds": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = append(r.VolumeCapabilities, asBlock(writer)) }, codes.InvalidArgument,
			[]string{"mount and block"}},
		"several nodes": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = asMount("", csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
		}, codes.InvalidArgument, []string{"MULTI_NODE_MULTI_WRITER", "SINGLE_NODE_WRITER"}},
		"filesystem":   {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = asMount("ntfs", writer) }, codes.InvalidArgument, []string{"ntfs", "ext4, xfs, btrfs"}},
		"filesystem 2": {func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"fsType": "zfs"} }, codes.InvalidArgument, []string{"zfs", "fsType"}},
		"two filesystems": {func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"fsType": "xfs"} }, codes.InvalidArgument,
			[]string{"xfs", "ext4"}},
		"mount flag": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = asMount("ext4", writer, "bind") }, codes.InvalidArgument, []string{"bind"}},
		"hidden flag": {func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0] = asMount("ext4", writer, "ro,noload") }, codes.InvalidArgument,
			[]string{"noload"}},
		"half a quote": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = asMount("ext4", writer, `context="a,noload`)
		}, codes.InvalidArgument, []string{"noload", "quote"}},
		"hidden by a quote": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0] = asMount("ext4", writer, `context="a",noload,x="b"`)
		}, codes.InvalidArgument, []string{"noload", "quote"}},
		"restart": {func(r *csi.CreateVolumeRequest) {
			r.Parameters = map[string]string{"restartOnDeviceLoss": "yes"}
		}, codes.InvalidArgument, []string{"restartOnDeviceLoss", "true or false"}},
		"unknown parameter": {func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"colour": "red"} }, codes.InvalidArgument, []string{"data", "colour"}},
		"bad parameter":     {func(r *csi.CreateVolumeRequest) { r.Parameters = map[string]string{"replicas": "many"} }, codes.InvalidArgument, []string{"replicas"}},
		"content source": {func(r *csi.CreateVolumeRequest) {
			r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: "s"}}}
		}, codes.InvalidArgument, []string{"data", "snapshots"}},
		"mutable":  {func(r *csi.CreateVolumeRequest) { r.MutableParameters = map[string]string{"a": "b"} }, codes.InvalidArgument, []string{"data", "MODIFY_VOLUME"}},
		"negative": {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = -1 }, codes.OutOfRange, []string{"data", "-1"}},
		"upside down": {func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 << 20, LimitBytes: 1 << 20}
		}, codes.OutOfRange,
			[]string{"data", "limit"}},
		"no size between": {func(r *csi.CreateVolumeRequest) {
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 65<<20 + 1, LimitBytes: 66 << 20}
		}, codes.OutOfRange, []string{"data", "4 MiB"}},
		"too small for xfs": {func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities[0], r.CapacityRange = asMount("xfs", writer), &csi.CapacityRange{LimitBytes: 64 << 20}
		}, codes.OutOfRange, []string{"data", "300 MiB"}},
		"absurd":             {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 1<<63 - 1 }, codes.OutOfRange, []string{"data"}},
		"more than there is": {func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 2 << 40 }, codes.ResourceExhausted, []string{"data"}},
		"elsewhere": {func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{{Segments: map[string]string{"topology.csi.belay.storage/node": "mars"}}}}
		}, codes.ResourceExhausted, []string{"data"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := good()
			c.change(r)
			_, err := p.CreateVolume(t.Context(), r)
			wants(t, err, c.code, c.words...)
			if list, err := p.engine.List(t.Context()); err != nil || len(list) > 0 {
				t.Errorf("something was left behind: %v, %v", list, err)
			}
		})
	}
}

func TestCreateAgain(t *testing.T) {
	p := start(t)
	ask := func() *csi.CreateVolumeRequest {
		r := creationOf("pvc-1", 64, asMount("", writer))
		r.Parameters = map[string]string{"replicas": "3", "fsType": "xfs", "csi.storage.k8s.io/pvc/name": "claim", "csi.storage.k8s.io/pvc/namespace": "shop"}
		r.CapacityRange.RequiredBytes = 320 << 20
		return r
	}
	first, err := p.CreateVolume(t.Context(), ask())
	must(t, err)
	again, err := p.CreateVolume(t.Context(), ask())
	if err != nil || again.GetVolume().GetVolumeId() != first.GetVolume().GetVolumeId() || again.GetVolume().GetCapacityBytes() != 320<<20 {
		t.Errorf("again: %v, %v", again, err)
	}
	v, err := p.engine.Get(t.Context(), volume.ID(first.GetVolume().GetVolumeId()))
	if err != nil || v.Labels["fsType"] != "xfs" || v.Labels["pvc"] != "shop/claim" || len(v.Parameters) != 1 {
		t.Errorf("kept: %+v, %v", v.Spec, err)
	}
	for word, change := range map[string]func(*csi.CreateVolumeRequest){
		"size":         func(r *csi.CreateVolumeRequest) { r.CapacityRange.RequiredBytes = 1 << 30 },
		"parameters":   func(r *csi.CreateVolumeRequest) { r.Parameters["replicas"] = "1" },
		"fsType":       func(r *csi.CreateVolumeRequest) { r.Parameters["fsType"] = "btrfs" },
		"capabilities": func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities[0].AccessMode.Mode = singleWriter },
	} {
		r := ask()
		change(r)
		_, err := p.CreateVolume(t.Context(), r)
		wants(t, err, codes.AlreadyExists, "pvc-1", word)
	}
	limited := ask()
	limited.CapacityRange = &csi.CapacityRange{LimitBytes: 400 << 20}
	if _, err := p.CreateVolume(t.Context(), limited); err != nil {
		t.Errorf("a range that the volume is in: %v", err)
	}
}

func TestCreateSizes(t *testing.T) {
	p := start(t)
	for i, c := range []struct {
		required, limit, want volume.Bytes
		fsType                string
	}{
		{0, 0, volume.GiB, "ext4"},
		{1, 0, 8 * volume.MiB, "ext4"},
		{1, 0, 300 * volume.MiB, "xfs"},
		{1, 0, 128 * volume.MiB, "btrfs"},
		{65*volume.MiB + 1, 0, 68 * volume.MiB, "ext4"},
		{0, 10 * volume.MiB, 8 * volume.MiB, "ext4"},
		{12 * volume.MiB, 12 * volume.MiB, 12 * volume.MiB, "ext4"},
	} {
		r := creationOf(fmt.Sprintf("v%d", i), 0, asMount(c.fsType, writer))
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: int64(c.required), LimitBytes: int64(c.limit)}
		v, err := p.CreateVolume(t.Context(), r)
		if err != nil || v.GetVolume().GetCapacityBytes() != int64(c.want) {
			t.Errorf("%d: got %v, %v, want %s", i, v, err, c.want)
		}
	}
}

func TestPublish(t *testing.T) {
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	ask := func() *csi.ControllerPublishVolumeRequest {
		return &csi.ControllerPublishVolumeRequest{VolumeId: s.id, NodeId: string(here), VolumeCapability: s.want}
	}
	for name, c := range map[string]struct {
		change func(*csi.ControllerPublishVolumeRequest)
		code   codes.Code
	}{
		"no node":       {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "" }, codes.InvalidArgument},
		"control node":  {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "a\nb" }, codes.InvalidArgument},
		"long node":     {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = strings.Repeat("n", 257) }, codes.InvalidArgument},
		"unknown node":  {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "mars" }, codes.NotFound},
		"no capability": {func(r *csi.ControllerPublishVolumeRequest) { r.VolumeCapability = nil }, codes.InvalidArgument},
		"many nodes": {func(r *csi.ControllerPublishVolumeRequest) {
			r.VolumeCapability = asMount("", csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY)
		}, codes.InvalidArgument},
	} {
		r := ask()
		c.change(r)
		_, err := p.ControllerPublishVolume(t.Context(), r)
		t.Log(name)
		wants(t, err, c.code)
	}
	first, err := p.ControllerPublishVolume(t.Context(), ask())
	must(t, err)
	again, err := p.ControllerPublishVolume(t.Context(), ask())
	if err != nil || again.GetPublishContext()[contextEpoch] != first.GetPublishContext()[contextEpoch] || first.GetPublishContext()[contextEpoch] == "" {
		t.Errorf("again: %v, %v, first %v", again, err, first)
	}
	r := ask()
	r.Readonly = true
	_, err = p.ControllerPublishVolume(t.Context(), r)
	wants(t, err, codes.AlreadyExists, s.id)
	r = ask()
	r.NodeId = string(there)
	_, err = p.ControllerPublishVolume(t.Context(), r)
	wants(t, err, codes.FailedPrecondition, s.id, "published to node "+string(here))
	_, err = p.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: s.id})
	wants(t, err, codes.FailedPrecondition, s.id)
	got, err := p.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: s.id})
	if err != nil || !slices.Equal(got.GetStatus().GetPublishedNodeIds(), []string{string(here)}) {
		t.Errorf("get: %v, %v", got, err)
	}
	_, err = p.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: s.id, NodeId: "a\nb"})
	wants(t, err, codes.InvalidArgument)
	for range 2 { // an empty node is every node
		_, err = p.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: s.id})
		must(t, err)
	}
	r.NodeId = string(there)
	_, err = p.ControllerPublishVolume(t.Context(), r)
	must(t, err)
}

func TestPublishLimit(t *testing.T) {
	p := start(t, func(c *Config) { c.VolumesMax = 2 })
	for i := range 2 {
		p.create(fmt.Sprintf("v%d", i), 64, asMount("", writer)).publish().publish()
	}
	s := p.create("v2", 64, asMount("", writer))
	_, err := p.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: s.id, NodeId: string(here), VolumeCapability: s.want})
	wants(t, err, codes.ResourceExhausted, string(here), "2")
	_, err = p.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: "v0"})
	must(t, err)
	s.publish() // the room is found again
	info, err := p.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	if err != nil || info.GetMaxVolumesPerNode() != 2 || info.GetNodeId() != string(here) ||
		info.GetAccessibleTopology().GetSegments()["topology.csi.belay.storage/node"] != string(here) {
		t.Errorf("info: %v, %v", info, err)
	}
}

// What too few replicas make impossible heals by itself, and nothing is touched.
func TestUnavailable(t *testing.T) {
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	for _, r := range p.engine.Replicas()[:2] {
		p.engine.Down(r)
		defer p.engine.Up(r)
	}
	for name, err := range p.calls1(t.Context(), s.id) {
		if strings.HasPrefix(name, "Controller") && name != "ControllerGetVolume" || name == "DeleteVolume" {
			t.Logf("%s: %v", name, err)
			wants(t, err, codes.Unavailable, s.id)
		}
	}
}

func TestListPages(t *testing.T) {
	p := start(t)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		p.create(name, 64, asMount("", writer))
	}
	p.create("b", 64, asMount("", writer)).publish()
	list := func(token string, n int32) *csi.ListVolumesResponse {
		t.Helper()
		r, err := p.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: token, MaxEntries: n})
		must(t, err)
		return r
	}
	names := func(r *csi.ListVolumesResponse) (out string) {
		for _, e := range r.GetEntries() {
			out += e.GetVolume().GetVolumeId()
		}
		return out
	}
	first := list("", 2)
	if names(first) != "ab" || !slices.Equal(first.GetEntries()[1].GetStatus().GetPublishedNodeIds(), []string{string(here)}) || len(first.GetEntries()[0].GetStatus().GetPublishedNodeIds()) > 0 {
		t.Errorf("first page: %v", first)
	}
	// The last volume of the page and one behind it go, and one comes: the rest is neither repeated nor missed.
	for _, id := range []string{"c", "a"} {
		_, err := p.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: id})
		must(t, err)
	}
	p.create("bb", 64, asMount("", writer))
	second := list(first.GetNextToken(), 2)
	third := list(second.GetNextToken(), 2)
	if names(second)+names(third) != "bbde" || third.GetNextToken() != "" {
		t.Errorf("then %v and %v", second, third)
	}
	if names(list("", 0)) != "bbbde" {
		t.Errorf("all: %v", list("", 0))
	}
	for _, token := range []string{"invalid-token", "after:", "after:../x", "3"} {
		_, err := p.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: token})
		wants(t, err, codes.Aborted, token)
	}
	_, err := p.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	wants(t, err, codes.InvalidArgument, "-1")
}

func TestGetCapacity(t *testing.T) {
	p := start(t)
	ask := func(change func(*csi.GetCapacityRequest)) *csi.GetCapacityResponse {
		t.Helper()
		r := &csi.GetCapacityRequest{}
		change(r)
		c, err := p.ControllerClient.GetCapacity(t.Context(), r)
		must(t, err)
		return c
	}
	all := ask(func(*csi.GetCapacityRequest) {})
	if all.GetAvailableCapacity() <= 0 || all.GetMaximumVolumeSize().GetValue() <= 0 || all.GetMinimumVolumeSize().GetValue() < int64(sizeStep) {
		t.Errorf("capacity: %v", all)
	}
	for _, none := range []*csi.GetCapacityResponse{
		ask(func(r *csi.GetCapacityRequest) {
			r.AccessibleTopology = &csi.Topology{Segments: map[string]string{"topology.csi.belay.storage/node": "mars"}}
		}),
		ask(func(r *csi.GetCapacityRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{asMount("", csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)}
		}),
	} {
		if none.GetAvailableCapacity() != 0 {
			t.Errorf("capacity where there is none: %v", none)
		}
	}
	_, err := p.ControllerClient.GetCapacity(t.Context(), &csi.GetCapacityRequest{Parameters: map[string]string{"colour": "red"}})
	wants(t, err, codes.InvalidArgument, "colour")
}

func TestControllerExpand(t *testing.T) {
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	expand := func(required, limit volume.Bytes) (*csi.ControllerExpandVolumeResponse, error) {
		return p.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: s.id,
			CapacityRange: &csi.CapacityRange{RequiredBytes: int64(required), LimitBytes: int64(limit)}})
	}
	for _, c := range []struct {
		required, limit, want volume.Bytes
		code                  codes.Code
	}{
		{0, 0, 0, codes.InvalidArgument},
		{-1, 0, 0, codes.OutOfRange},
		{0, 60 * volume.MiB, 0, codes.OutOfRange},
		{65 * volume.MiB, 66 * volume.MiB, 0, codes.OutOfRange},
		{2 * volume.TiB, 0, 0, codes.ResourceExhausted},
		{32 * volume.MiB, 0, 64 * volume.MiB, codes.OK},
		{65 * volume.MiB, 0, 68 * volume.MiB, codes.OK},
		{65 * volume.MiB, 0, 68 * volume.MiB, codes.OK},
	} {
		r, err := expand(c.required, c.limit)
		wants(t, err, c.code)
		if c.code == codes.OK && (r.GetCapacityBytes() != int64(c.want) || !r.GetNodeExpansionRequired()) {
			t.Errorf("expand to %s: %v", c.required, r)
		}
	}
}

func TestValidate(t *testing.T) {
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	ask := func(params map[string]string, caps ...*csi.VolumeCapability) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return p.ValidateVolumeCapabilities(t.Context(), &csi.ValidateVolumeCapabilitiesRequest{VolumeId: s.id, VolumeCapabilities: caps, Parameters: params})
	}
	if r, err := ask(nil, asMount("ext4", singleWriter)); err != nil || len(r.GetConfirmed().GetVolumeCapabilities()) != 1 {
		t.Errorf("confirm: %v, %v", r, err)
	}
	for word, c := range map[string]*csi.VolumeCapability{"xfs": asMount("xfs", writer), "MULTI_NODE": asMount("", csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER)} {
		if r, err := ask(nil, c); err != nil || r.GetConfirmed() != nil || !strings.Contains(r.GetMessage(), word) {
			t.Errorf("%s: %v, %v", word, r, err)
		}
	}
	if r, err := ask(map[string]string{"replicas": "1"}, asMount("ext4", writer)); err != nil || r.GetConfirmed() != nil {
		t.Errorf("other parameters: %v, %v", r, err)
	}
	_, err := ask(nil)
	wants(t, err, codes.InvalidArgument, s.id)
}

func TestOneCallAVolume(t *testing.T) {
	slow := &slowGate{begun: make(chan struct{}), end: make(chan struct{})}
	p := start(t, func(c *Config) { c.Gate = slow })
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	first := make(chan error, 1)
	go func() { first <- s.unpublish() }()
	<-slow.begun
	wants(t, s.unpublish(), codes.Aborted, s.id, "ControllerUnpublishVolume is running")
	_, err := p.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: s.id})
	wants(t, err, codes.Aborted, s.id)
	p.create("other", 64, asMount("ext4", writer))
	close(slow.end)
	wants(t, <-first, codes.DataLoss, "copies disagree")
}

type slowGate struct{ begun, end chan struct{} }

func (g *slowGate) Unpublish(context.Context, volume.ID, volume.NodeID) error {
	close(g.begun)
	<-g.end
	return fmt.Errorf("gate: %w", errors.Join(engine.ErrQuarantined, engine.ErrUnavailable))
}
