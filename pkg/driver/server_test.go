package driver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestIdentity(t *testing.T) {
	unready := error(nil)
	p := start(t, func(c *Config) { c.Ready = func(context.Context) error { return unready } })
	info, err := p.GetPluginInfo(t.Context(), &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.belay.storage" || info.GetVendorVersion() != "test" {
		t.Errorf("info: %v, %v", info, err)
	}
	if r, err := p.Probe(t.Context(), &csi.ProbeRequest{}); err != nil || !r.GetReady().GetValue() {
		t.Errorf("probe: %v, %v", r, err)
	}
	unready = errors.New("stores are being opened")
	_, err = p.Probe(t.Context(), &csi.ProbeRequest{})
	wants(t, err, codes.FailedPrecondition, "stores are being opened")
	caps, err := p.GetPluginCapabilities(t.Context(), &csi.GetPluginCapabilitiesRequest{})
	if err != nil || len(caps.GetCapabilities()) != 3 {
		t.Errorf("capabilities: %v, %v", caps, err)
	}
	if !slices.Contains(p.calls, "/csi.v1.Identity/Probe OK") || !slices.Contains(p.calls, "/csi.v1.Identity/Probe FailedPrecondition") {
		t.Errorf("observed: %v", p.calls)
	}
}

func TestCapabilities(t *testing.T) {
	p := start(t)
	c, err := p.ControllerGetCapabilities(t.Context(), &csi.ControllerGetCapabilitiesRequest{})
	must(t, err)
	var got []string
	for _, x := range c.GetCapabilities() {
		got = append(got, x.GetRpc().GetType().String())
	}
	slices.Sort(got)
	if want := "CREATE_DELETE_VOLUME EXPAND_VOLUME GET_CAPACITY GET_VOLUME GET_VOLUME_HEALTH LIST_VOLUMES LIST_VOLUMES_PUBLISHED_NODES LIST_VOLUME_HEALTH PUBLISH_READONLY PUBLISH_UNPUBLISH_VOLUME SINGLE_NODE_MULTI_WRITER"; strings.Join(got, " ") != want {
		t.Errorf("controller: %v", got)
	}
	n, err := p.NodeGetCapabilities(t.Context(), &csi.NodeGetCapabilitiesRequest{})
	must(t, err)
	got = nil
	for _, x := range n.GetCapabilities() {
		got = append(got, x.GetRpc().GetType().String())
	}
	slices.Sort(got)
	if want := "EXPAND_VOLUME GET_VOLUME_HEALTH GET_VOLUME_STATS SINGLE_NODE_MULTI_WRITER STAGE_UNSTAGE_VOLUME"; strings.Join(got, " ") != want {
		t.Errorf("node: %v", got)
	}
}

// Every call that is declared is served, and none that is not.
func TestDeclaredIsServed(t *testing.T) {
	p := start(t)
	_, err := p.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{})
	wants(t, err, codes.Unimplemented)
	_, err = p.ControllerModifyVolume(t.Context(), &csi.ControllerModifyVolumeRequest{})
	wants(t, err, codes.Unimplemented)
	for name, err := range p.calls1(t.Context(), "") {
		t.Log(name)
		wants(t, err, codes.InvalidArgument)
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	p := start(t)
	r := creationOf("data", 64, asMount("", writer))
	r.Secrets = map[string]string{"password": "hunter2"}
	_, err := p.CreateVolume(t.Context(), r)
	must(t, err)
	r.Parameters = map[string]string{"colour": "red"}
	if _, err := p.CreateVolume(t.Context(), r); err == nil {
		t.Error("accepted")
	}
	if log := p.log.String(); strings.Contains(log, "hunter2") || !strings.Contains(log, "CreateVolume") {
		t.Errorf("log: %s", log)
	}
}

func TestPanicEndsTheCallOnly(t *testing.T) {
	p := start(t, func(c *Config) { c.Gate = panicGate{} })
	s := p.create("data", 64, asMount("", writer)).publish()
	for range 2 { // its lock was released
		wants(t, s.unpublish(), codes.Internal, "internal error")
	}
	if log := p.log.String(); !strings.Contains(log, "broken invariant") || !strings.Contains(log, "server_test.go") {
		t.Errorf("log: %s", log)
	}
}

type panicGate struct{}

func (panicGate) Unpublish(context.Context, volume.ID, volume.NodeID) error {
	panic("broken invariant")
}

func TestSocket(t *testing.T) {
	p := start(t)
	_, err := p.Probe(t.Context(), &csi.ProbeRequest{}) // it is up
	must(t, err)
	file := filepath.Join(p.dir, "csi.sock")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("socket: %v, %v", info, err)
	}
	if _, err := listen(t.Context(), "unix://"+file); err == nil || !strings.Contains(err.Error(), "listening") {
		t.Errorf("a socket in use: %v", err)
	}

	stale := filepath.Join(t.TempDir(), "stale.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	must(t, err)
	old.SetUnlinkOnClose(false)
	must(t, old.Close())
	l, err := listen(t.Context(), "unix://"+stale)
	must(t, err)
	must(t, l.Close())
	if left, _ := os.ReadDir(filepath.Dir(stale)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	plain := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(plain, []byte("keep"), 0o600))
	if _, err := listen(t.Context(), "unix://"+plain); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a plain file: %v", err)
	}
	for _, endpoint := range []string{"", "tcp://:80", "unix://relative", "/no/scheme"} {
		if _, err := listen(t.Context(), endpoint); err == nil || !strings.Contains(err.Error(), "want unix:///") {
			t.Errorf("endpoint %q: %v", endpoint, err)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{Mounter: &mount.Mounter{}}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no node: %v", err)
	}
	if _, err := New(Config{NodeID: here, Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("nothing else: %v", err)
	}
}

// What each class of errors means to the orchestrator, alone and where several come together.
func TestCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{io.EOF, codes.Internal},
		{engine.ErrInvalid, codes.InvalidArgument},
		{volume.ErrInvalid, codes.InvalidArgument},
		{engine.ErrNotFound, codes.NotFound},
		{engine.ErrExists, codes.AlreadyExists},
		{engine.ErrOutOfRange, codes.OutOfRange},
		{engine.ErrNoSpace, codes.ResourceExhausted},
		{engine.ErrBusy, codes.Aborted},
		{detach.ErrInProgress, codes.Aborted},
		{detach.ErrNodeSilent, codes.Aborted},
		{engine.ErrAttached, codes.FailedPrecondition},
		{engine.ErrNotStopped, codes.FailedPrecondition},
		{engine.ErrNotSealed, codes.FailedPrecondition},
		{engine.ErrStaleEpoch, codes.FailedPrecondition},
		{engine.ErrDeviceLost, codes.FailedPrecondition},
		{detach.ErrHeld, codes.FailedPrecondition},
		{detach.ErrOverride, codes.FailedPrecondition},
		{mount.ErrBusy, codes.FailedPrecondition},
		{mount.ErrNotEmpty, codes.FailedPrecondition},
		{engine.ErrUnavailable, codes.Unavailable},
		{engine.ErrQuarantined, codes.DataLoss},
		{detach.ErrDataLoss, codes.DataLoss},
		{engine.ErrUnsupported, codes.Unimplemented},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errors.Join(engine.ErrUnavailable, engine.ErrQuarantined), codes.DataLoss},
		{fmt.Errorf("%w: %w", detach.ErrInProgress, context.DeadlineExceeded), codes.Aborted},
		{fmt.Errorf("%w: %w", detach.ErrHeld, &mount.BusyError{Path: "/x"}), codes.FailedPrecondition},
		{fmt.Errorf("volume x: %w", invalid("y")), codes.InvalidArgument},
	} {
		if got := codeOf(c.err); got != c.want {
			t.Errorf("%v: got %s, want %s", c.err, got, c.want)
		}
		if c.err != nil {
			wants(t, toStatus(c.err), c.want, c.err.Error())
		}
	}
	for _, e := range engine.Codes {
		if codeOf(e) == codes.Internal {
			t.Errorf("%v has no meaning", e)
		}
	}
}

func TestBadPaths(t *testing.T) {
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	for _, path := range []string{"", "relative", "/a/../b", "/a//b", "/a/", "/", "/./a", "/" + strings.Repeat("x", 4096)} {
		stage := s.staging1()
		stage.StagingTargetPath = path
		_, err := p.NodeStageVolume(t.Context(), stage)
		wants(t, err, codes.InvalidArgument, s.id, "staging path")
		_, err = p.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: s.id, StagingTargetPath: path})
		wants(t, err, codes.InvalidArgument, s.id, "staging path")
		show := s.publication()
		show.TargetPath = path
		_, err = p.NodePublishVolume(t.Context(), show)
		wants(t, err, codes.InvalidArgument, s.id, "target path")
		show = s.publication()
		show.StagingTargetPath = path
		_, err = p.NodePublishVolume(t.Context(), show)
		wants(t, err, codes.InvalidArgument, s.id, "staging path")
		_, err = p.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: s.id, TargetPath: path})
		wants(t, err, codes.InvalidArgument, s.id, "target path")
	}
	for _, epoch := range []string{"", "0", "-1", "one", "1e3"} {
		stage := s.staging1()
		stage.PublishContext[contextEpoch] = epoch
		_, err := p.NodeStageVolume(t.Context(), stage)
		wants(t, err, codes.InvalidArgument, s.id, contextEpoch)
	}
	stage := s.staging1()
	stage.VolumeCapability = nil
	_, err := p.NodeStageVolume(t.Context(), stage)
	wants(t, err, codes.InvalidArgument, s.id, "capability")
	_, err = p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id})
	wants(t, err, codes.InvalidArgument, s.id)
	_, err = p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: "some/path"})
	wants(t, err, codes.NotFound, s.id)
}

// What is longer than Kubernetes keeps is cut in the middle.
func TestAnswersAreShort(t *testing.T) {
	long := errors.New("volume data: node n1 holds it: " + strings.Repeat("mount /a/lông/path, ", 100) + "; next: end what uses it")
	got := status.Convert(toStatus(long)).Message()
	if len(got) > messageMax || !strings.HasPrefix(got, "volume data: node n1 holds it") || !strings.HasSuffix(got, "; next: end what uses it") || !utf8.ValidString(got) {
		t.Errorf("%d bytes: %s", len(got), got)
	}
	if got := status.Convert(toStatus(errors.New(strings.Repeat("x", 2*messageMax)))).Message(); len(got) > messageMax {
		t.Errorf("%d bytes", len(got))
	}
	if got := status.Convert(toStatus(errors.New("short"))).Message(); got != "short" {
		t.Error(got)
	}
}
