package driver

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// free is a driver without a node's half, whose volumes live on no one machine; its nodes do not answer.
type free struct {
	*Driver
	engine    *enginetest.Memory
	lost      string // why the nodes are lost
	forgotten bool
	cannot    error // why nobody can say what is forgotten
}

func startFree(t *testing.T) *free {
	t.Helper()
	f := &free{engine: enginetest.NewMemory(enginetest.MemoryOptions{})}
	keys, err := receipt.OpenKeyring(vfs.OS(), filepath.Join(t.TempDir(), "keys"))
	must(t, err)
	gate, err := detach.NewGate(detach.GateConfig{
		Control: f.engine, Book: receipt.NewBook(keys, time.Now),
		Agents: func(volume.NodeID) (detach.AgentClient, error) { return nil, errors.New("power is off") },
		Lost:   func(context.Context, volume.NodeID) (string, bool) { return f.lost, f.lost != "" },
	})
	must(t, err)
	t.Cleanup(gate.Close)
	f.Driver, err = New(Config{Version: "test", Control: f.engine, Gate: gate, Log: slog.New(slog.DiscardHandler),
		Nodes:     func(context.Context) ([]volume.NodeID, error) { return []volume.NodeID{here, there}, nil },
		Forgotten: func(context.Context, volume.Attachment) (bool, error) { return f.forgotten, f.cannot }})
	must(t, err)
	return f
}

// made makes a volume with a writer here.
func (f *free) made(t *testing.T, name string) {
	t.Helper()
	_, err := f.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{asMount("ext4", writer)}})
	must(t, err)
	_, err = f.ControllerPublishVolume(t.Context(), f.publishTo(name, here))
	must(t, err)
	v, err := f.engine.Get(t.Context(), volume.ID(name))
	must(t, err)
	_, err = f.engine.On(here).Attach(t.Context(), *v.Attachment)
	must(t, err)
}

func (f *free) publishTo(name string, node volume.NodeID) *csi.ControllerPublishVolumeRequest {
	return &csi.ControllerPublishVolumeRequest{VolumeId: name, NodeId: string(node), VolumeCapability: asMount("ext4", writer)}
}

// TestRouterHasVolumesBeyondTheMachines: those whose handle names none are answered in this process, errors and all, and listed with the others.
func TestRouterHasVolumesBeyondTheMachines(t *testing.T) {
	f, other := startFleet(t, "n1"), startFree(t)
	f.router.Beyond = other
	_, err := f.create("a", "n1")
	must(t, err)
	for _, name := range []string{"b", "c"} {
		other.made(t, name)
	}
	unpublish := &csi.ControllerUnpublishVolumeRequest{VolumeId: "b", NodeId: string(here)}
	_, err = f.ControllerUnpublishVolume(t.Context(), unpublish)
	wants(t, err, codes.Aborted, "power is off")
	_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "b"})
	wants(t, err, codes.FailedPrecondition, "attached")
	var got []string
	for token, pages := "", 0; pages == 0 || token != ""; pages++ {
		a, err := f.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: 1, StartingToken: token})
		must(t, err)
		for _, e := range a.GetEntries() {
			got = append(got, e.GetVolume().GetVolumeId()+" "+string(here)[:len(e.GetStatus().GetPublishedNodeIds())])
		}
		token = a.GetNextToken()
	}
	if want := []string{"b n", "c n", "a@n1 "}; !slices.Equal(got, want) {
		t.Errorf("listed: %q, want %q", got, want)
	}
	other.lost = "out of service"
	_, err = f.ControllerUnpublishVolume(t.Context(), unpublish)
	must(t, err)
	_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "b"})
	must(t, err)
	_, err = f.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "b"})
	wants(t, err, codes.NotFound)
}

// TestForgottenAttachmentIsEndedByTheGate: where the orchestrator has no record of it, and the gate lets it go; not otherwise.
func TestForgottenAttachmentIsEndedByTheGate(t *testing.T) {
	f := startFree(t)
	f.made(t, "pvc-1")
	elsewhere := func() error {
		_, err := f.ControllerPublishVolume(t.Context(), f.publishTo("pvc-1", there))
		return err
	}
	refused := func(code codes.Code, words ...string) {
		t.Helper()
		wants(t, toStatus(elsewhere()), code, words...)
		if v, err := f.engine.Get(t.Context(), "pvc-1"); err != nil || v.Attachment == nil || v.Attachment.Node != here || v.Sealed {
			t.Errorf("after a refusal: %+v, %v", v, err)
		}
	}
	f.lost = "out of service"
	refused(codes.FailedPrecondition, string(here)) // the orchestrator knows of it, and will ask
	f.lost, f.forgotten = "", true
	refused(codes.Aborted, "no record", "power is off")
	f.lost, f.cannot = "out of service", errors.New("the API server is away")
	refused(codes.Internal, "the API server is away")
	f.cannot = nil
	must(t, elsewhere())
	if v, err := f.engine.Get(t.Context(), "pvc-1"); err != nil || v.Attachment == nil || v.Attachment.Node != there || len(v.Head) == 0 {
		t.Errorf("attached elsewhere without a receipt: %+v, %v", v, err)
	}
}

// TestDriverHasTheNodesHalfOrNot: half of it is a mistake, and so is a controller that knows no nodes.
func TestDriverHasTheNodesHalfOrNot(t *testing.T) {
	c := startFree(t).Config
	if s := startFree(t).Services(); s.Node != nil || s.Controller == nil {
		t.Errorf("services of a controller: %+v", s)
	}
	for name, change := range map[string]func(*Config){
		"no nodes":                 func(c *Config) { c.Nodes = nil },
		"local volumes of nowhere": func(c *Config) { c.Local = true },
		"half of the node's half":  func(c *Config) { c.NodeID = here },
	} {
		bad := c
		change(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
