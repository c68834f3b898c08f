package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mtls"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// oneMachine is a cluster of the machine n1.
type oneMachine string

func (oneMachine) List(context.Context) ([]volume.NodeID, error) { return []volume.NodeID{"n1"}, nil }

func (oneMachine) Had(_ context.Context, n volume.NodeID) (bool, error) { return n == "n1", nil }

func (m oneMachine) Address(context.Context, volume.NodeID) (string, error) { return string(m), nil }

func writeCertificate(t *testing.T, dir string, a *mtls.Authority, role mtls.Role) *mtls.Files {
	t.Helper()
	c, err := a.Issue(role, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	err = os.MkdirAll(dir, 0o700)
	for name, b := range map[string][]byte{mtls.FileCA: c.CA, mtls.FileCert: c.Cert, mtls.FileKey: c.Key} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Open(dir)
}

func vacantAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestNodeAnswersTheController(t *testing.T) {
	s, log := newSite(t), &syncBuffer{}
	address, certificates := vacantAddress(t), filepath.Join(s.dir, "tls")
	startRole(t, s, log, "node", "--cluster-endpoint", address, "--tls-dir", certificates, "--install-dir", filepath.Join(s.dir, "bin"))
	if programs, _ := filepath.Glob(filepath.Join(s.dir, "bin", "*")); len(programs) != 1 || filepath.Base(programs[0]) != "belay-"+version {
		t.Errorf("installed: %v", programs)
	}
	if code, out, errOut := belay(t, "volumes", "--socket", s.socket("one")); code != exitOK || out != "no volumes\n" {
		t.Errorf("without a certificate the machine's own people are answered: exit %d %s %s", code, out, errOut)
	}
	authority, err := mtls.NewAuthority(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	controller := writeCertificate(t, filepath.Join(s.dir, "controller"), authority, mtls.Controller)
	writeCertificate(t, certificates, authority, mtls.Node)
	router, err := driver.NewRouter(driver.RouterConfig{
		Version: "test", Machines: oneMachine(address), Log: slog.New(slog.DiscardHandler), Credentials: credentials.NewTLS(controller.Client(mtls.Node)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	mounted := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}},
	}
	v, err := router.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*csi.VolumeCapability{mounted}})
	for began := time.Now(); err != nil && time.Since(began) < 20*time.Second; time.Sleep(50 * time.Millisecond) { // it looks for certificates now and then
		v, err = router.CreateVolume(t.Context(), &csi.CreateVolumeRequest{Name: "pvc-1", VolumeCapabilities: []*csi.VolumeCapability{mounted}})
	}
	if err != nil || v.GetVolume().GetVolumeId() != "pvc-1@n1" {
		t.Fatalf("%v, %v\n%s", v, err, log)
	}
	people := admin.NewDialClient("n1", func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: controller.Client(mtls.Node, protocolAdmin)}).DialContext(ctx, "tcp", address)
	})
	if all, err := people.Volumes(t.Context()); err != nil || len(all.Volumes) != 1 || all.Volumes[0].ID != "pvc-1" {
		t.Errorf("%+v, %v", all, err)
	}
	stranger := admin.NewDialClient("n1", func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(ctx, "tcp", address)
	})
	if all, err := stranger.Volumes(t.Context()); err == nil {
		t.Errorf("a stranger was told of %+v", all)
	}
}

func TestNodeFlags(t *testing.T) {
	for name, args := range map[string][]string{
		"cluster-endpoint": {"--cluster-endpoint", "9811"}, "tls-dir": {"--tls-dir", "tls"}, "install-dir": {"--install-dir", "bin"},
	} {
		all := append([]string{"node", "--nodeid", "n1", "--store", "/srv/a"}, args...)
		if code, _, errOut := belay(t, all...); code != exitUsage || !strings.Contains(errOut, "--"+name) {
			t.Errorf("%v: exit %d %s", args, code, errOut)
		}
	}
}

func TestPrestop(t *testing.T) {
	state := t.TempDir()
	for _, role := range []string{"host", "node"} { // no host: nothing to wait for
		if code, _, errOut := belay(t, "prestop", role, "--state", state); code != exitOK {
			t.Errorf("%s: exit %d %s", role, code, errOut)
		}
	}
	if stops, err := hostStops(state); stops || err != nil {
		t.Errorf("after it ended: %t, %v", stops, err)
	}
	f, err := os.OpenFile(filepath.Join(state, stoppingFile), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if stops, err := hostStops(state); !stops || err != nil {
		t.Errorf("while it waits: %t, %v", stops, err)
	}
	if code, _, _ := belay(t, "prestop", "engine"); code != exitUsage {
		t.Errorf("an unknown role: exit %d", code)
	}
}

// TestPrestopOutlivesAHostThatIsKilled: the devices are there still, and the end of the container, which is what follows, would take them away.
func TestPrestopOutlivesAHostThatIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		staged, killed := []host.Device{{Volume: "pvc-1"}}, fmt.Errorf("about: %w", wire.ErrNotRunning)
		answers := []struct {
			devices []host.Device
			err     error
		}{{staged, nil}, {nil, killed}, {nil, fmt.Errorf("devices: %w", wire.ErrLost)}, {staged, nil}, {nil, killed}, {nil, nil}}
		asked, told := 0, &strings.Builder{}
		ask := func(context.Context) ([]host.Device, error) {
			a := answers[min(asked, len(answers)-1)]
			asked++
			return a.devices, a.err
		}
		needed := func() (bool, error) { return true, nil }
		if err := untilUnstaged(t.Context(), ask, told, needed); err != nil || asked != len(answers) || told.String() != "1 volume staged\n0 volumes staged\n" {
			t.Errorf("asked %d times, told %q: %v", asked, told, err)
		}
		never := func(context.Context) ([]host.Device, error) { return nil, killed }
		if err := untilUnstaged(t.Context(), never, told, needed); err != nil {
			t.Errorf("a host that stays away: %v", err)
		}
	})
}
