package driver

import (
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/volume"
)

func ails(h *csi.VolumeHealth) (list []string) {
	for _, e := range h.GetHealthStatuses() {
		list = append(list, fmt.Sprintf("%s %s %t", e.GetStatus(), e.GetReason(), e.GetMessage() != ""))
	}
	return list
}

func TestHealthTellsWhatAils(t *testing.T) {
	p := start(t)
	s := p.create("data", 256, asMount("ext4", writer)).publish()
	well := p.create("well", 256, asMount("ext4", writer))
	must(t, s.stage())
	expect := func(volumeWant, nodeWant string, listed int) {
		t.Helper()
		c, err := p.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: s.id})
		must(t, err)
		if got := fmt.Sprint(ails(c.GetVolumeHealth())); got != volumeWant || c.GetVolumeHealth().GetVolumeId() != s.id {
			t.Errorf("volume: %s, want %s", got, volumeWant)
		}
		n, err := p.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: s.id, StagingTargetPath: s.staging})
		must(t, err)
		if got := fmt.Sprint(ails(n.GetVolumeHealth())); got != nodeWant {
			t.Errorf("on the node: %s, want %s", got, nodeWant)
		}
		l, err := p.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{})
		must(t, err)
		if len(l.GetEntries()) != listed {
			t.Errorf("listed: %v", l.GetEntries())
		}
	}
	expect("[]", "[]", 0)
	p.loops.lose(volume.ID(s.id))
	expect("[]", "[INACCESSIBLE DeviceLost true]", 0)
	replicas := p.engine.Replicas()
	for _, r := range replicas[1:] {
		p.engine.Down(r)
	}
	expect("[INACCESSIBLE TooFewReplicas true]", "[INACCESSIBLE TooFewReplicas true INACCESSIBLE DeviceLost true]", 2)
	page, err := p.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{MaxEntries: 1})
	must(t, err)
	rest, err := p.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{StartingToken: page.GetNextToken()})
	must(t, err)
	if len(page.GetEntries()) != 1 || len(rest.GetEntries()) != 1 || rest.GetEntries()[0].GetVolumeId() != well.id {
		t.Errorf("in pages: %v, then %v", page, rest)
	}
	for _, r := range replicas[1:] {
		p.engine.Up(r)
	}
	_, err = p.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: s.id, StagingTargetPath: "staging"})
	wants(t, err, codes.InvalidArgument, "staging")
	_, err = p.ControllerGetVolumeHealth(t.Context(), &csi.ControllerGetVolumeHealthRequest{VolumeId: "none"})
	wants(t, err, codes.NotFound, "none")
	_, err = p.ControllerListVolumeHealth(t.Context(), &csi.ControllerListVolumeHealthRequest{StartingToken: "x"})
	wants(t, err, codes.Aborted)
}

// What the controller of a cluster reads in the StorageClass is no parameter of the volume.
func TestRestartIsNotTheEngines(t *testing.T) {
	p := start(t)
	for _, v := range []string{"true", "false"} {
		r := creationOf("data-"+v, 256, asMount("ext4", writer))
		r.Parameters = map[string]string{"restartOnDeviceLoss": v}
		_, err := p.CreateVolume(t.Context(), r)
		must(t, err)
	}
}
