package driver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	here  volume.NodeID = "node-a"
	there volume.NodeID = "node-b"
)

// plugin is a driver behind a real socket, over the in-memory engine, the real gate, agent and journal, and real mounts.
type plugin struct {
	csi.ControllerClient
	csi.NodeClient
	csi.IdentityClient

	t      *testing.T
	driver *Driver
	engine *enginetest.Memory
	loops  *loopNode
	agent  *detach.Agent
	dir    string
	stages string // directory of the stage journal
	log    *syncBuffer

	mu      sync.Mutex
	calls   []string
	checked []Check
	events  []string
}

// syncBuffer is a log that a test can look at.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t *testing.T, change ...func(*Config)) *plugin {
	t.Helper()
	p := &plugin{t: t, engine: enginetest.NewMemory(enginetest.MemoryOptions{}), dir: t.TempDir(), stages: filepath.Join(t.TempDir(), "journal"), log: &syncBuffer{}}
	log := slog.New(slog.NewTextHandler(p.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.loops = &loopNode{Node: p.engine.On(here), dir: t.TempDir(), devices: map[volume.ID]string{}, lost: map[volume.ID]bool{}, unclean: map[volume.ID]bool{}}
	t.Cleanup(p.loops.cleanUp)
	keys, err := receipt.OpenKeyring(vfs.OS(), filepath.Join(t.TempDir(), "keys"))
	must(t, err)
	book := receipt.NewBook(keys, time.Now)
	journal, err := detach.OpenJournal(vfs.OS(), p.stages)
	must(t, err)
	mounter := mount.New(mount.Config{Log: log, Owned: func(int) bool { return false }})
	p.agent, err = detach.NewAgent(detach.AgentConfig{Node: here, Engine: p.loops, Control: p.engine, Journal: journal, Releaser: mount.NewReleaser(mounter), Book: book, Log: log})
	must(t, err)
	t.Cleanup(p.agent.Close)
	gate, err := detach.NewGate(detach.GateConfig{Control: p.engine, Book: book, Log: log, Agents: func(volume.NodeID) (detach.AgentClient, error) { return p.agent, nil }})
	must(t, err)
	t.Cleanup(gate.Close)
	c := Config{Version: "test", NodeID: here, Control: p.engine, Gate: gate, Engine: p.loops, Agent: p.agent, Mounter: mounter, Log: log,
		Nodes:   func(context.Context) ([]volume.NodeID, error) { return []volume.NodeID{here, there}, nil },
		Observe: p.observe, Events: p.listen()}
	for _, f := range change {
		f(&c)
	}
	p.serve(c)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.log.String())
		}
	})
	return p
}

func (p *plugin) serve(c Config) {
	p.t.Helper()
	d, err := New(c)
	must(p.t, err)
	p.driver = d
	endpoint := "unix://" + filepath.Join(p.dir, "csi.sock")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Serve(ctx, endpoint) }()
	p.t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, d.Close(context.Background())); err != nil {
			p.t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	must(p.t, err)
	p.t.Cleanup(func() { _ = conn.Close() })
	p.ControllerClient, p.NodeClient, p.IdentityClient = csi.NewControllerClient(conn), csi.NewNodeClient(conn), csi.NewIdentityClient(conn)
}

func (p *plugin) observe(method, code string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, method+" "+code)
	if took < 0 {
		p.t.Errorf("%s took %v", method, took)
	}
}

// listen notes every event in a line.
func (p *plugin) listen() Events {
	note := func(format string, args ...any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.events = append(p.events, fmt.Sprintf(format, args...))
	}
	return Events{
		Created:   func(v engine.Volume) { note("created %s", v.ID) },
		Deleted:   func(id volume.ID) { note("deleted %s", id) },
		Published: func(a volume.Attachment) { note("published %s", a.Volume) },
		Staged:    func(e detach.Entry, _ engine.Device) { note("staged %s %s", e.Attachment.Volume, e.Access) },
		Unclean:   func(e detach.Entry, _ engine.Device) { note("unclean %s %s", e.Attachment.Volume, e.Access) },
		Lost:      func(a volume.Attachment, _ error) { note("lost %s", a.Volume) },
		Checked: func(e detach.Entry, c Check) {
			note("checked %s %s", e.Attachment.Volume, c.Verdict())
			p.mu.Lock()
			defer p.mu.Unlock()
			p.checked = append(p.checked, c)
		},
	}
}

// told are the events so far, which are forgotten then.
func (p *plugin) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := strings.Join(p.events, "; ")
	p.events = nil
	return all
}

// loopNode gives the in-memory engine's attachments a real block device: a loop device on a sparse file that lives as
// long as the volume. What it says of the device is true of that file.
type loopNode struct {
	engine.Node
	dir string

	mu                 sync.Mutex
	devices            map[volume.ID]string
	lost, unclean      map[volume.ID]bool
	noAttach, noDetach error // what they answer, where not nil
}

// refuse has Attach, or Detach, fail from now on; nil: no more.
func (n *loopNode) refuse(attach, detach error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noAttach, n.noDetach = attach, detach
}

func (n *loopNode) file(id volume.ID) string { return filepath.Join(n.dir, string(id)) }

func (n *loopNode) Attach(ctx context.Context, a volume.Attachment) (engine.Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost[a.Volume] {
		return engine.Device{}, fmt.Errorf("attach %v: %w", a, engine.ErrDeviceLost)
	}
	if n.noAttach != nil {
		return engine.Device{}, n.noAttach
	}
	d, err := n.Node.Attach(ctx, a)
	if err != nil {
		return d, err
	}
	if n.devices[a.Volume] == "" {
		if err := grow(n.file(a.Volume), int64(d.Size)); err != nil {
			return d, err
		}
		out, err := exec.Command("losetup", "-f", "--show", "--sector-size", "4096", n.file(a.Volume)).CombinedOutput()
		if err != nil {
			return d, fmt.Errorf("losetup: %w: %s", err, out)
		}
		n.devices[a.Volume] = strings.TrimSpace(string(out))
	}
	return n.describe(d, a.Volume)
}

func grow(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

func (n *loopNode) describe(d engine.Device, id volume.ID) (engine.Device, error) {
	var st unix.Stat_t
	err := unix.Stat(n.file(id), &st)
	d.Path, d.Blank, d.Unclean = n.devices[id], st.Blocks == 0, d.Unclean || n.unclean[id]
	return d, err
}

func (n *loopNode) Attached(ctx context.Context, id volume.ID) (engine.Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost[id] {
		return engine.Device{}, fmt.Errorf("volume %s: %w", id, engine.ErrDeviceLost)
	}
	d, err := n.Node.Attached(ctx, id)
	if err != nil {
		return d, err
	}
	return n.describe(d, id)
}

func (n *loopNode) Detach(ctx context.Context, a volume.Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.noDetach != nil {
		return n.noDetach
	}
	if err := n.Node.Detach(ctx, a); err != nil {
		return err
	}
	if d := n.devices[a.Volume]; d != "" {
		if out, err := exec.Command("losetup", "-d", d).CombinedOutput(); err != nil {
			return fmt.Errorf("losetup -d %s: %w: %s", d, err, out)
		}
	}
	delete(n.devices, a.Volume)
	delete(n.lost, a.Volume)
	return nil
}

func (n *loopNode) Resize(ctx context.Context, a volume.Attachment) error {
	if err := n.Node.Resize(ctx, a); err != nil {
		return err
	}
	d, err := n.Node.Attached(ctx, a.Volume)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return errors.Join(grow(n.file(a.Volume), int64(d.Size)), exec.Command("losetup", "-c", n.devices[a.Volume]).Run())
}

// lose makes the device one that answers nothing any more, as the engine tells it.
func (n *loopNode) lose(id volume.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lost[id] = true
}

func (n *loopNode) cleanUp() {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := mount.New(mount.Config{Log: slog.New(slog.DiscardHandler)})
	for _, device := range n.devices {
		for range 10 {
			left, _ := m.Of(device)
			for _, e := range left {
				_ = unix.Unmount(e.Path, unix.UMOUNT_NOFOLLOW)
			}
		}
		_ = exec.Command("losetup", "-d", device).Run()
	}
}

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts real filesystems")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wants fails unless err has the code, its message every one of the words, and no details.
func wants(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("got %s, want %s: %v", s.Code(), code, err)
	}
	for _, w := range words {
		if !strings.Contains(s.Message(), w) {
			t.Errorf("message %q does not say %q", s.Message(), w)
		}
	}
	if len(s.Details()) > 0 {
		t.Errorf("status details are not empty: %v", s.Details())
	}
	if strings.Contains(s.Message(), "rpc error") {
		t.Errorf("message repeats a code: %q", s.Message())
	}
}

type mode = csi.VolumeCapability_AccessMode_Mode

const writer = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER

func asMount(fsType string, m mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: m},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func asBlock(m mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: m},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func creationOf(name string, mib int64, c *csi.VolumeCapability) *csi.CreateVolumeRequest {
	r := &csi.CreateVolumeRequest{Name: name, VolumeCapabilities: []*csi.VolumeCapability{c}}
	if mib > 0 {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: mib << 20}
	}
	return r
}

// stay is one volume on its way through the calls, with paths of its own.
type stay struct {
	*plugin
	id              string
	want            *csi.VolumeCapability
	staging, target string
	context         map[string]string
}

func (p *plugin) create(name string, mib int64, c *csi.VolumeCapability) *stay {
	p.t.Helper()
	r, err := p.CreateVolume(p.t.Context(), creationOf(name, mib, c))
	must(p.t, err)
	base := p.t.TempDir()
	s := &stay{plugin: p, id: r.GetVolume().GetVolumeId(), want: c, staging: filepath.Join(base, "staging"), target: filepath.Join(base, "target")}
	must(p.t, os.Mkdir(s.staging, 0o750))
	p.t.Cleanup(func() { // before the directories go: their removal must not reach into a mount
		for _, path := range []string{s.target, s.staging} {
			for unix.Unmount(path, unix.MNT_DETACH) == nil { // the mounter keeps a descriptor
			}
		}
	})
	return s
}

func (s *stay) publish() *stay {
	s.t.Helper()
	r, err := s.ControllerPublishVolume(s.t.Context(), &csi.ControllerPublishVolumeRequest{VolumeId: s.id, NodeId: string(here), VolumeCapability: s.want})
	must(s.t, err)
	s.context = r.GetPublishContext()
	return s
}

func (s *stay) staging1() *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{VolumeId: s.id, StagingTargetPath: s.staging, VolumeCapability: s.want, PublishContext: maps.Clone(s.context)}
}

func (s *stay) publication() *csi.NodePublishVolumeRequest {
	return &csi.NodePublishVolumeRequest{VolumeId: s.id, StagingTargetPath: s.staging, TargetPath: s.target, VolumeCapability: s.want, PublishContext: maps.Clone(s.context)}
}

func (s *stay) stage() error {
	_, err := s.NodeStageVolume(s.t.Context(), s.staging1())
	return err
}

func (s *stay) show() error {
	_, err := s.NodePublishVolume(s.t.Context(), s.publication())
	return err
}

func (s *stay) hide() error {
	_, err := s.NodeUnpublishVolume(s.t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: s.id, TargetPath: s.target})
	return err
}

func (s *stay) unstage() error {
	_, err := s.NodeUnstageVolume(s.t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: s.id, StagingTargetPath: s.staging})
	return err
}

func (s *stay) unpublish() error {
	_, err := s.ControllerUnpublishVolume(s.t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: s.id, NodeId: string(here)})
	return err
}

// leave takes the volume all the way out and away.
func (s *stay) leave() {
	s.t.Helper()
	must(s.t, s.hide())
	must(s.t, s.unstage())
	must(s.t, s.unpublish())
	_, err := s.DeleteVolume(s.t.Context(), &csi.DeleteVolumeRequest{VolumeId: s.id})
	must(s.t, err)
}
