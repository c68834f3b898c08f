package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// The test binary is its own engine process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		if err := RunEngine(context.Background(), os.Stdin, os.Stdout, log); err != nil {
			fmt.Fprintln(os.Stderr, "engine:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
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
		FS: vfs.OS(), State: filepath.Join(r.root, "state"), Node: "n1", Overcommit: 1000, Executable: os.Args[0],
		Stores: []string{r.path(0), r.path(1), r.path(2)}, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
	}
}

func (r *rig) path(i int) string { return filepath.Join(r.root, fmt.Sprint("store", i)) }

func (r *rig) start() {
	r.t.Helper()
	e, err := New(r.config())
	if err == nil {
		err = e.Start(r.t.Context())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.engine = e
}

// restart does what a SIGKILL of the server does: its engine processes see their parent gone.
func (r *rig) restart(*testing.T) (engine.Control, engine.Node) {
	r.killAll()
	r.engine.stores.close()
	r.start()
	return r.engine, r.engine
}

func (r *rig) killAll() {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	for _, h := range r.engine.volumes {
		if p, recovery := h.running(); p != nil {
			p.kill()
		} else if recovery != nil {
			recovery.Close()
		}
	}
	r.engine.volumes = map[volume.ID]*handle{}
}

func (r *rig) clean() {
	mine := maps.Clone(r.engine.volumes)
	r.killAll()
	r.engine.stores.close()
	all, err := device.Leftovers()
	if err != nil {
		r.t.Error(err)
	}
	for _, l := range all {
		for id := range mine {
			if l.Of(r.engine.deviceName(id)) {
				if err := device.Remove(context.Background(), l.Path); err != nil {
					r.t.Error(err)
				}
			}
		}
	}
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
		Kill: func(_ *testing.T, id volume.ID) {
			p, _ := r.engine.handle(id).running()
			p.kill()
		},
		Damage: r.damage,
		Down:   func(t *testing.T, id engine.ReplicaID) { r.move(t, id, "", ".away") },
		Up:     func(t *testing.T, id engine.ReplicaID) { r.move(t, id, ".away", "") },
	}
}

func (r *rig) storePath(t *testing.T, id engine.ReplicaID) string {
	t.Helper()
	for _, p := range r.engine.stores.places {
		if p.dir != nil && engine.ReplicaID(p.dir.ID().String()) == id {
			return p.path
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

// TestKilledEngine: the engine process dies; the gate takes its place, and what was synced is there.
func TestKilledEngine(t *testing.T) {
	r := newRig(t)
	a, d := r.create("killed")
	if out, err := exec.Command("dd", "if=/dev/urandom", "of="+d.Path, "bs=64k", "count=16", "oflag=direct", "conv=fsync").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := md5sum(t, d.Path)
	p, _ := r.engine.handle("killed").running()
	p.kill()
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

// TestOrphanedEngineEnds: an engine process does not outlive its parent, and its locks go with it.
func TestOrphanedEngineEnds(t *testing.T) {
	r := newRig(t)
	r.create("orphan")
	p, _ := r.engine.handle("orphan").running()
	p.alive.Close() // all that the death of the parent does
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the engine process goes on without its parent")
	}
}
