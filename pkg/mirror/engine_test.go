package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// The test binary is its own host and its own engine process.
func TestMain(m *testing.M) {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	var err error
	switch role {
	case "engine":
		err = RunEngine(context.Background(), "test", os.Stdin, os.Stdout, log)
	case "host":
		err = runTestHost(os.Args[2], log)
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runTestHost(state string, log *slog.Logger) error {
	h, err := host.New(host.Config{State: state, Version: "test", WhileNeeded: true, Log: log})
	if err != nil {
		return err
	}
	return h.Serve(context.Background())
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: FUSE and loop devices")
	}
}

// rig is a real engine: stores on disk, engine processes, FUSE and loop devices.
type rig struct {
	t      *testing.T
	root   string
	host   *host.Client
	engine *Engine
}

func newRig(t *testing.T) *rig {
	needsRoot(t)
	r := &rig{t: t, root: t.TempDir()}
	t.Cleanup(r.clean)
	r.start()
	return r
}

func (r *rig) config() Config {
	return Config{
		FS: vfs.OS(), State: filepath.Join(r.root, "state"), Node: "n1", Overcommit: 1000, Executable: os.Args[0], Host: r.host,
		Stores: []string{r.path(0), r.path(1), r.path(2)}, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
	}
}

func (r *rig) path(i int) string { return filepath.Join(r.root, fmt.Sprint("store", i)) }

func (r *rig) start() {
	r.t.Helper()
	state := filepath.Join(r.root, "state")
	r.host = host.NewClient(state)
	_, err := r.host.Ensure(r.t.Context(), host.Launch{Executable: os.Args[0], Args: []string{"belay", "host", state}, Log: os.Stderr})
	if err != nil {
		r.t.Fatal(err)
	}
	e, err := New(r.config())
	if err == nil {
		err = e.Start(context.Background())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.engine = e
}

// restart does what a SIGKILL of everything does, the server, the host and the engines.
func (r *rig) restart(*testing.T) (engine.Control, engine.Node) {
	r.killAll()
	r.engine.Close(context.Background())
	r.start()
	return r.engine, r.engine
}

// killAll kills the host first, so that it starts no further engine.
func (r *rig) killAll() {
	r.t.Helper()
	ctx := context.Background()
	devices, err := r.host.Devices(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	r.killHost()
	for _, d := range devices {
		killProcess(r.t, d.Engine.PID)
	}
}

func (r *rig) killHost() {
	r.t.Helper()
	about, err := r.host.About(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	killProcess(r.t, about.PID)
}

// killProcess returns when the process is dead.
func killProcess(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // dead
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); n == 0 {
		t.Errorf("process %d does not die: %v", pid, err)
	}
}

func (r *rig) clean() {
	ctx := context.Background()
	devices, err := r.host.Devices(ctx)
	if err != nil {
		r.t.Error(err)
	}
	for _, d := range devices {
		if err := errors.Join(r.host.GiveUp(ctx, d.Volume, "end of the test"), r.host.Detach(ctx, d.Volume)); err != nil {
			r.t.Error(err)
		}
	}
	r.engine.Close(ctx)
	r.killHost()
}

// blockDevice is a device opened for the suite.
type blockDevice struct{ vfs.File }

func (d blockDevice) Flush() error { return d.Datasync() }

// The suite's buffers need not be aligned.
func (d blockDevice) WriteAt(p []byte, off int64) error {
	q := vfs.AlignedBuffer(len(p))
	copy(q, p)
	return d.File.WriteAt(q, off)
}

func (d blockDevice) ReadAt(p []byte, off int64) error {
	q := vfs.AlignedBuffer(len(p))
	err := d.File.ReadAt(q, off)
	copy(p, q)
	return err
}

func (r *rig) harness() *enginetest.Harness {
	return &enginetest.Harness{
		Control: r.engine, Node: r.engine, NodeID: "n1", Replicas: 3, Size: 64 * volume.MiB,
		Parameters: map[string]string{"replicas": "3", "verify": "off"},
		Open: func(t *testing.T, d engine.Device) enginetest.Handle {
			f, err := vfs.OS().Open(d.Path, vfs.Direct)
			if err != nil {
				t.Fatal(err)
			}
			return blockDevice{f}
		},
		Restart: r.restart,
		Kill: func(t *testing.T, id volume.ID) {
			if err := r.host.GiveUp(context.Background(), id, "test"); err != nil {
				t.Fatal(err)
			}
		},
		Damage: r.damage,
		Down:   func(t *testing.T, id engine.ReplicaID) { r.move(t, id, "", ".away") },
		Up:     func(t *testing.T, id engine.ReplicaID) { r.move(t, id, ".away", "") },
	}
}

func (r *rig) storePath(t *testing.T, id engine.ReplicaID) string {
	t.Helper()
	for path, known := range r.engine.stores.known { // those that are away, too
		if engine.ReplicaID(known.String()) == id {
			return path
		}
	}
	t.Fatalf("no store %s", id)
	return ""
}

func (r *rig) move(t *testing.T, id engine.ReplicaID, from, to string) {
	t.Helper()
	path := r.storePath(t, id)
	if err := os.Rename(path+from, path+to); err != nil {
		t.Fatal(err)
	}
}

// damage flips bits in a block's data, behind the engine's back and the page cache's.
func (r *rig) damage(t *testing.T, id volume.ID, replica engine.ReplicaID, off volume.Bytes, mask byte) {
	t.Helper()
	flipBits(t, filepath.Join(r.storePath(t, replica), "volumes", string(id), "data"), int64(off), mask)
}

func flipBits(t *testing.T, data string, off int64, mask byte) {
	t.Helper()
	f, err := vfs.OS().Open(data, vfs.Direct)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := store.DataOffset(off / store.BlockSize)
	p := vfs.AlignedBuffer(store.BlockSize)
	if err := f.ReadAt(p, at); err != nil {
		t.Fatal(err)
	}
	p[off%store.BlockSize] ^= mask
	if err := errors.Join(f.WriteAt(p, at), f.Datasync()); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	needsRoot(t)
	enginetest.Suite(t, func(t *testing.T) *enginetest.Harness { return newRig(t).harness() })
}

// create makes and publishes a volume, and attaches it.
func (r *rig) create(id volume.ID) (volume.Attachment, engine.Device) {
	r.t.Helper()
	ctx := r.t.Context()
	spec := engine.Spec{ID: id, Name: string(id), Size: 64 * volume.MiB, Parameters: map[string]string{"verify": "off"}}
	if _, err := r.engine.Create(ctx, spec); err != nil {
		r.t.Fatal(err)
	}
	a, err := r.engine.Publish(ctx, id, "n1", engine.PublishOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	d, err := r.engine.Attach(ctx, a)
	if err != nil {
		r.t.Fatal(err)
	}
	return a, d
}

// detach takes the volume through barrier, evidence, seal and detach.
func (r *rig) detach(a volume.Attachment) engine.Barrier {
	r.t.Helper()
	ctx := r.t.Context()
	if err := r.engine.Barrier(ctx, a); err != nil {
		r.t.Fatal(err)
	}
	b, err := r.engine.Evidence(ctx, a, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	receipt := []byte(fmt.Sprintf("receipt at %s %x", b.View, b.Head))
	for _, step := range []func() error{
		func() error { return r.engine.Seal(ctx, b, receipt) },
		func() error { return r.engine.Seal(ctx, b, receipt) }, // again is no error
		func() error { return r.engine.Detach(ctx, a) },
		func() error { return r.engine.Detach(ctx, a) },
		func() error { return r.engine.Unpublish(ctx, a) },
		func() error { return r.engine.Unpublish(ctx, a) },
	} {
		if err := step(); err != nil {
			r.t.Fatal(err)
		}
	}
	return b
}

func md5sum(t *testing.T, name string) [32]byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestEngineLifeCycle(t *testing.T) {
	r := newRig(t)
	a, d := r.create("life")
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+d.Path, "bs=1M", "count=8", "oflag=direct", "conv=fsync").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := md5sum(t, d.Path)
	b := r.detach(a)
	agreeing(t, b, 3)
	receipts, err := r.engine.Receipts(t.Context(), "life")
	if err != nil || len(receipts) != 1 {
		t.Fatalf("receipts %q: %v", receipts, err)
	}
	v, err := r.engine.Verify(t.Context(), "life", nil)
	if err != nil || !v.Good() || v.Read < 24<<20 {
		t.Fatalf("verification %+v: %v", v, err)
	}
	a, err = r.engine.Publish(t.Context(), "life", "n1", engine.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d, err = r.engine.Attach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if md5sum(t, d.Path) != before {
		t.Error("content changed")
	}
	r.detach(a)
	if receipts, err = r.engine.Receipts(t.Context(), "life"); err != nil || len(receipts) != 2 {
		t.Fatalf("receipts %q: %v", receipts, err)
	}
	if err := r.engine.Delete(t.Context(), "life"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine.Get(t.Context(), "life"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
}

// TestLostDevice: host and engine die; the gate takes the writer's place, and what was synced is there.
func TestLostDevice(t *testing.T) {
	r := newRig(t)
	a, d := r.create("killed")
	fill(t, d.Path)
	before := md5sum(t, d.Path)
	r.restart(t)
	if _, err := r.engine.Attached(t.Context(), "killed"); !errors.Is(err, engine.ErrDeviceLost) {
		t.Fatalf("after the kill: %v", err)
	}
	if _, err := r.engine.Fence(t.Context(), a, engine.FenceOptions{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	b := r.detach(a)
	if b.Clean {
		t.Error("a barrier after a kill is clean")
	}
	agreeing(t, b, 3)
	a, err := r.engine.Publish(t.Context(), "killed", "n1", engine.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if d, err = r.engine.Attach(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if md5sum(t, d.Path) != before {
		t.Error("synced content changed")
	}
	r.detach(a)
}

func fill(t *testing.T, device string) {
	t.Helper()
	out, err := exec.Command("dd", "if=/dev/urandom", "of="+device, "bs=64k", "count=16", "oflag=direct", "conv=fsync").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestEngineDiesAndAnotherTakesOver: the device is the same, and what was written to it, synced or not, is there.
func TestEngineDiesAndAnotherTakesOver(t *testing.T) {
	r := newRig(t)
	a, d := r.create("warm")
	out, err := exec.Command("dd", "if=/dev/urandom", "of="+d.Path, "bs=64k", "count=16", "oflag=direct").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := md5sum(t, d.Path)
	for range 3 {
		was := r.pid("warm")
		killProcess(t, was)
		if md5sum(t, d.Path) != before {
			t.Fatal("content changed")
		}
		if r.pid("warm") == was {
			t.Fatal("nobody took over")
		}
	}
	now, err := r.engine.Attached(t.Context(), "warm")
	if err != nil || now.Path != d.Path || now.Writer <= d.Writer {
		t.Fatalf("before %+v, after %+v: %v", d, now, err)
	}
	if b := r.detach(a); !b.Clean {
		t.Error("the barrier of a writer that flushed is not clean")
	}
}

func (r *rig) pid(id volume.ID) int {
	r.t.Helper()
	d, err := r.host.Device(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return d.Engine.PID
}

// TestServerAndHostDie: neither takes a device away, and the next ones find everything.
func TestServerAndHostDie(t *testing.T) {
	r := newRig(t)
	a, d := r.create("kept")
	fill(t, d.Path)
	before := md5sum(t, d.Path)
	served := r.pid("kept")
	r.killHost()
	r.engine.Close(t.Context())
	if md5sum(t, d.Path) != before {
		t.Error("content changed without host and server")
	}
	r.start()
	if r.pid("kept") != served {
		t.Error("another engine serves")
	}
	killProcess(t, served) // the new host looks after an engine that it did not start
	if md5sum(t, d.Path) != before {
		t.Error("content changed")
	}
	r.detach(a)
}
