package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/volume"
)

// fleet is a router before two machines, each a driver of its own behind TCP.
type fleet struct {
	csi.ControllerClient
	t      *testing.T
	router *Router

	mu        sync.Mutex
	addresses map[volume.NodeID]string // "": known, and away
	had       map[volume.NodeID]bool   // that are not listed now
	told      []string
}

func (f *fleet) List(context.Context) ([]volume.NodeID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.addresses)), nil
}

func (f *fleet) Had(_ context.Context, node volume.NodeID) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, listed := f.addresses[node]
	return listed || f.had[node], nil
}

// unlist has the orchestrator forget the machine's driver, as it does while that is exchanged.
func (f *fleet) unlist(node volume.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.addresses, node)
	f.had = map[volume.NodeID]bool{node: true}
}

func (f *fleet) Address(_ context.Context, node volume.NodeID) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.addresses[node]; a != "" {
		return a, nil
	}
	return "", errors.New("has no driver that is ready since 12:00")
}

// at moves the machine to another address; "" takes it away.
func (f *fleet) at(node volume.NodeID, address string) (former string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	former, f.addresses[node] = f.addresses[node], address
	return former
}

// roomy is a machine with more room than others.
const roomy volume.NodeID = "roomy"

func startFleet(t *testing.T, nodes ...volume.NodeID) *fleet {
	t.Helper()
	f := &fleet{t: t, addresses: map[volume.NodeID]string{}}
	for _, n := range nodes {
		p := start(t, func(c *Config) {
			c.NodeID, c.Local, c.Nodes = n, true, nil
			if n == roomy {
				c.Control = enginetest.NewMemory(enginetest.MemoryOptions{Capacity: 4 * volume.TiB})
			}
		})
		f.at(n, serveTCP(t, p.driver.Services()))
	}
	router, err := NewRouter(RouterConfig{
		Version: "test", Machines: f, Credentials: insecure.NewCredentials(), Log: slog.New(slog.DiscardHandler),
		Events: RouterEvents{
			Refused: func(handle string, node volume.NodeID, cause error) {
				f.note(fmt.Sprintf("refused %s %s, away %t", handle, node, Away(cause)))
			},
		},
	})
	must(t, err)
	f.router = router
	t.Cleanup(func() { must(t, router.Close()) })
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	background(t, func(ctx context.Context) error { return router.Services().Serve(ctx, endpoint) })
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	f.ControllerClient = csi.NewControllerClient(conn)
	return f
}

func (f *fleet) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, s)
}

func serveTCP(t *testing.T, s Services) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	background(t, func(ctx context.Context) error { return s.ServeOn(ctx, l) })
	return l.Addr().String()
}

// background runs f until the test ends.
func background(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

func (f *fleet) create(name string, on ...volume.NodeID) (*csi.Volume, error) {
	q := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{asMount("ext4", writer)}}
	if on != nil {
		q.AccessibilityRequirements = &csi.TopologyRequirement{}
	}
	for _, n := range on {
		topology := &csi.Topology{Segments: map[string]string{topologyKey(Name): string(n)}}
		q.AccessibilityRequirements.Requisite = append(q.AccessibilityRequirements.Requisite, topology)
	}
	a, err := f.CreateVolume(f.t.Context(), q)
	return a.GetVolume(), err
}

func TestRouterFindsTheMachineByTheHandle(t *testing.T) {
	f := startFleet(t, "n1", "n2")
	v, err := f.create("pvc-1", "n2")
	must(t, err)
	if v.GetVolumeId() != "pvc-1@n2" {
		t.Fatalf("its handle is %q", v.GetVolumeId())
	}
	if again, err := f.create("pvc-1", "n1", "n2"); err != nil || again.GetVolumeId() != v.GetVolumeId() {
		t.Errorf("asked for again where both may have it: %v, %v", again, err)
	}
	_, err = f.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: "pvc-1@n2", NodeId: "n1", VolumeCapability: asMount("ext4", writer)})
	wants(t, err, codes.NotFound, "n1")
	_, err = f.ControllerPublishVolume(t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: "pvc-1@n2", NodeId: "n2", VolumeCapability: asMount("ext4", writer)})
	must(t, err)
	_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "pvc-1@n2"})
	wants(t, err, codes.FailedPrecondition, "pvc-1")
	_, err = f.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: "pvc-1@n2", NodeId: "n2"})
	must(t, err)
	grown, err := f.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: "pvc-1@n2", CapacityRange: &csi.CapacityRange{RequiredBytes: 4 << 30}})
	must(t, err)
	if grown.GetCapacityBytes() != 4<<30 {
		t.Errorf("grown to %d", grown.GetCapacityBytes())
	}
	_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "pvc-1@n2"})
	must(t, err)
	_, err = f.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: "pvc-1@n2"})
	wants(t, err, codes.NotFound)
	if got := strings.Join(f.told, "; "); got != "" {
		t.Errorf("told: %s", got)
	}
}

func TestRouterRefusesWhatItCannotKnow(t *testing.T) {
	f := startFleet(t, "n1", "n2")
	_, err := f.create("pvc-1", "n1")
	must(t, err)
	former := f.at("n1", "")
	defer func() {
		if got := strings.Join(f.told, "; "); got != "refused pvc-1@n1 n1, away true; refused pvc-1@n1 n1, away true" {
			t.Errorf("told: %s", got)
		}
	}()
	unpublish := &csi.ControllerUnpublishVolumeRequest{VolumeId: "pvc-1@n1", NodeId: "n1"}
	_, err = f.ControllerUnpublishVolume(t.Context(), unpublish)
	wants(t, err, codes.Unavailable, "pvc-1", "n1", "since 12:00")
	_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: "pvc-1@n1"})
	wants(t, err, codes.Unavailable)
	_, err = f.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	wants(t, err, codes.Unavailable, "n1")
	_, err = f.create("pvc-2", "n1")
	wants(t, err, codes.Unavailable, "n1")
	if v, err := f.create("pvc-3", "n1", "n2"); err != nil || v.GetVolumeId() != "pvc-3@n2" {
		t.Errorf("with another machine there: %v, %v", v, err)
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0") // nobody listens there once it is closed
	must(t, err)
	nobody.Close()
	f.at("n1", nobody.Addr().String())
	_, err = f.ControllerUnpublishVolume(t.Context(), unpublish)
	wants(t, err, codes.Unavailable, "refused", "n1")
	f.at("n1", former)
	_, err = f.ControllerUnpublishVolume(t.Context(), unpublish)
	must(t, err)
	for handle, code := range map[string]codes.Code{"pvc-1": codes.OK, "pvc-1@n3": codes.NotFound, "": codes.InvalidArgument, "pvc-1@": codes.InvalidArgument, "../x@n1": codes.InvalidArgument} {
		_, err = f.DeleteVolume(t.Context(), &csi.DeleteVolumeRequest{VolumeId: handle})
		wants(t, err, code)
	}
	_, err = f.create("pvc-4", "n9")
	wants(t, err, codes.ResourceExhausted)
}

// TestRouterKnowsAMachineWhoseDriverIsExchanged: kubelet takes the driver's name from the CSINode when its pod ends, and puts it back when the next one has
// started. A final answer in between would give up a volume that the call before may have made, or tell that one of that name cannot exist.
func TestRouterKnowsAMachineWhoseDriverIsExchanged(t *testing.T) {
	f := startFleet(t, "n1", "n2")
	f.unlist("n1")
	_, err := f.create("pvc-1", "n1")
	wants(t, err, codes.Unavailable, "n1", "since 12:00")
	_, err = f.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: "pvc-1@n1", CapacityRange: &csi.CapacityRange{RequiredBytes: 4 << 30}})
	wants(t, err, codes.Unavailable, "n1", "since 12:00")
	if v, err := f.create("pvc-2", "n1", "n2"); err != nil || v.GetVolumeId() != "pvc-2@n2" {
		t.Errorf("with another machine there: %v, %v", v, err)
	}
}

// TestRouterForgetsAMachineThatIsGone: machines come and go under ever new names, and connections to the former must not add up.
func TestRouterForgetsAMachineThatIsGone(t *testing.T) {
	f := startFleet(t, "n1", "n2")
	for _, n := range []volume.NodeID{"n1", "n2"} {
		_, err := f.create("pvc-1", n)
		must(t, err)
	}
	f.unlist("n1")
	f.had = nil
	unpublish := &csi.ControllerUnpublishVolumeRequest{VolumeId: "pvc-1@n1", NodeId: "n1"}
	_, err := f.ControllerUnpublishVolume(t.Context(), unpublish)
	wants(t, err, codes.NotFound, "n1")
	f.router.lines.mu.Lock()
	defer f.router.lines.mu.Unlock()
	if open := slices.Collect(maps.Keys(f.router.lines.open)); !slices.Equal(open, []volume.NodeID{"n2"}) {
		t.Errorf("connections to %v", open)
	}
}

// A machine that takes connections and says nothing is one that does not answer.
func TestRouterDoesNotHangOnASilentMachine(t *testing.T) {
	f := startFleet(t, "n1")
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	f.at("n1", silent.Addr().String())
	_, err = f.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: "pvc-1@n1", NodeId: "n1"})
	wants(t, err, codes.Unavailable, "n1", "does not answer")
}

// unanswered is a controller that says nothing until it ends.
type unanswered struct {
	csi.UnimplementedControllerServer
	asked, end chan struct{}
}

func (u unanswered) CreateVolume(context.Context, *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	close(u.asked)
	<-u.end
	return nil, errors.New("ended")
}

// TestRouterDoesNotKnowWhatAMovedMachineDid: what was asked at its former address may be done or not, and INTERNAL would say that it is not.
func TestRouterDoesNotKnowWhatAMovedMachineDid(t *testing.T) {
	f := startFleet(t, "n1")
	u := unanswered{asked: make(chan struct{}), end: make(chan struct{})}
	s := f.router.Services()
	s.Controller = u
	former := f.at("n1", serveTCP(t, s))
	t.Cleanup(func() { close(u.end) })
	answered := make(chan error, 1)
	go func() {
		_, err := f.create("pvc-1", "n1")
		answered <- err
	}()
	<-u.asked
	f.at("n1", former)
	_, err := f.create("pvc-2", "n1")
	must(t, err)
	wants(t, <-answered, codes.Unavailable, "pvc-1", "n1", "does not answer")
}

func TestRouterListsAllMachines(t *testing.T) {
	f := startFleet(t, "n1", "n2", "n3")
	want := []string{"a@n1", "b@n1", "c@n3", "d@n3"}
	for _, h := range want {
		id, node, _ := volume.ParseHandle(h)
		_, err := f.create(string(id), node)
		must(t, err)
	}
	for _, most := range []int32{0, 1, 2, 3, 4, 9} {
		var got []string
		for token, pages := "", 0; pages == 0 || token != ""; pages++ {
			a, err := f.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: most, StartingToken: token})
			must(t, err)
			for _, e := range a.GetEntries() {
				got = append(got, e.GetVolume().GetVolumeId())
			}
			if most > 0 && len(a.GetEntries()) > int(most) {
				t.Errorf("%d entries, at most %d", len(a.GetEntries()), most)
			}
			token = a.GetNextToken()
		}
		if !slices.Equal(got, want) {
			t.Errorf("in pages of %d: %v", most, got)
		}
	}
	for _, token := range []string{"x", "node:n1", "after:a"} {
		_, err := f.ListVolumes(t.Context(), &csi.ListVolumesRequest{StartingToken: token})
		wants(t, err, codes.Aborted)
	}
	_, err := f.ListVolumes(t.Context(), &csi.ListVolumesRequest{MaxEntries: -1})
	wants(t, err, codes.InvalidArgument)
}

func TestRouterCountsRoom(t *testing.T) {
	f := startFleet(t, "n1", roomy)
	at := func(node string) int64 {
		q := &csi.GetCapacityRequest{}
		if node != "" {
			q.AccessibleTopology = &csi.Topology{Segments: map[string]string{topologyKey(Name): node}}
		}
		a, err := f.GetCapacity(t.Context(), q)
		must(t, err)
		return a.GetAvailableCapacity()
	}
	if small, large, all := at("n1"), at("roomy"), at(""); small == 0 || large <= small || all != small+large || at("n3") != 0 {
		t.Errorf("n1 %d, roomy %d, all %d, n3 %d", small, large, all, at("n3"))
	}
	if v, err := f.create("pvc-1"); err != nil || v.GetVolumeId() != "pvc-1@roomy" {
		t.Errorf("where there is more room: %v, %v", v, err)
	}
	f.at(roomy, "")
	if v, err := f.create("pvc-2"); err != nil || v.GetVolumeId() != "pvc-2@n1" {
		t.Errorf("where somebody answers: %v, %v", v, err)
	}
}
