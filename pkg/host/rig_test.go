package host

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// rig is a host with a device and a guest that never stops reading and writing it.
type rig struct {
	t      *testing.T
	dir    string
	client *Client
	guest  *guest
}

const id volume.ID = "v"

func newRig(t *testing.T, env ...string) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: FUSE and loop devices")
	}
	t.Parallel()
	r := &rig{t: t, dir: t.TempDir()}
	r.must(os.WriteFile(filepath.Join(r.dir, "image"), make([]byte, imageSize), 0o600))
	r.client = NewClient(r.state())
	r.start(env...)
	t.Cleanup(r.clean)
	return r
}

func (r *rig) state() string { return filepath.Join(r.dir, "state") }

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start runs a host that is told what the variables say.
func (r *rig) start(env ...string) {
	r.t.Helper()
	cmd := exec.Command(self())
	cmd.Args = []string{"belay", "host", r.state()}
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	r.must(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	_, err := r.client.answered(r.t.Context(), ended)
	r.must(err)
}

func self() string {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return exe
}

// program is an engine of that name.
func (r *rig) program(name string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if _, err := os.Stat(path); err != nil {
		// Copied by another process: a file that is open for writing here, and so in a child started meanwhile, cannot be run.
		if out, err := exec.Command("cp", self(), path).CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %s", err, out)
		}
	}
	return path
}

func (r *rig) spec() Spec {
	order, _ := json.Marshal(r.dir)
	return Spec{Volume: id, Name: "host-test-" + filepath.Base(filepath.Dir(r.dir)), BlockSize: 4096, Executable: r.program("old"), Order: order, Key: "1"}
}

func (r *rig) attach() Device {
	r.t.Helper()
	d, err := r.client.Attach(r.t.Context(), r.spec(), nil)
	r.must(err)
	if d.State != Serving || d.Path == "" {
		r.t.Fatalf("attached: %+v", d)
	}
	r.guest = newGuest(r.t, d.Path)
	return d
}

func (r *rig) device() Device {
	r.t.Helper()
	d, err := r.client.Device(r.t.Context(), id)
	r.must(err)
	return d
}

func (r *rig) kill(pid int) {
	r.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	r.must(err)
	defer unix.Close(fd)
	r.must(unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0))
	r.must(waitDead(r.t.Context(), fd))
}

func (r *rig) host() int {
	r.t.Helper()
	a, err := r.client.About(r.t.Context())
	r.must(err)
	return a.PID
}

// served wants the device served by a program of that name, soon, the guest without an error, and never two writers.
func (r *rig) served(by string) Device {
	r.t.Helper()
	r.guest.goesOn()
	d := r.device()
	if d.State == Upgrading {
		r.t.Fatalf("upgrading still: %+v", d)
	}
	if d.State != Serving || d.Engine.Version != by {
		r.t.Fatalf("served by %s (%s, %s), want %s", d.Engine.Version, d.State, d.Cause, by)
	}
	if text, err := os.ReadFile(filepath.Join(r.dir, "violation")); err == nil {
		r.t.Fatalf("two writers: %s", text)
	}
	return d
}

// clean detaches and wants nothing left.
func (r *rig) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if r.t.Failed() { // the guest may wait in the kernel, and this process could not end before it does
		_ = r.client.GiveUp(ctx, id, "end of the test")
	}
	if r.guest != nil {
		r.guest.end()
	}
	if err := r.client.Detach(ctx, id); err != nil && !errors.Is(err, engine.ErrNotFound) {
		r.t.Errorf("detach: %v", err)
	}
	if a, err := r.client.About(ctx); err == nil {
		if p, err := os.FindProcess(a.PID); err == nil {
			_ = p.Kill()
		}
	}
	left, _ := filepath.Glob(filepath.Join(r.state(), "*", "*.sock"))
	more, _ := filepath.Glob(filepath.Join(r.state(), "host", "devices", "*"))
	for _, name := range append(left, more...) {
		if filepath.Base(name) != "host.sock" {
			r.t.Errorf("left: %s", name)
		}
	}
}

// guest writes numbers that grow, each to a block of its own turn, and reads what it wrote before, past every cache.
type guest struct {
	t    *testing.T
	file int
	page []byte
	stop chan struct{}
	done chan struct{}

	mu      sync.Mutex
	rounds  int
	longest time.Duration
	err     error
}

const guestBlocks = 64

func newGuest(t *testing.T, path string) *guest {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_DIRECT|unix.O_SYNC|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, file: fd, stop: make(chan struct{}), done: make(chan struct{})}
	raw := make([]byte, 2*4096)
	at := (4096 - int(uintptr(unsafe.Pointer(&raw[0]))%4096)) % 4096
	g.page = raw[at : at+4096]
	go g.run()
	return g
}

func (g *guest) run() {
	defer close(g.done)
	var last [guestBlocks]uint64
	for n := uint64(1); ; n++ {
		select {
		case <-g.stop:
			return
		default:
		}
		began := time.Now()
		block := n % guestBlocks
		err := g.round(block, last[block], n)
		last[block] = n
		g.mu.Lock()
		g.rounds++
		g.longest = max(g.longest, time.Since(began))
		g.err = err
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (g *guest) round(block, want, n uint64) error {
	if _, err := unix.Pread(g.file, g.page, int64(block)*4096); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	if got := binary.LittleEndian.Uint64(g.page); got != want {
		return fmt.Errorf("block %d holds %d, want %d", block, got, want)
	}
	binary.LittleEndian.PutUint64(g.page, n)
	if _, err := unix.Pwrite(g.file, g.page, int64(block)*4096); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// goesOn returns once the guest has done some more.
func (g *guest) goesOn() {
	g.t.Helper()
	from, err := g.count()
	deadline := time.Now().Add(30 * time.Second)
	for n := from; n < from+2*guestBlocks; n, err = g.count() {
		if err != nil {
			g.t.Fatalf("the guest: %v", err)
		}
		if time.Now().After(deadline) {
			g.t.Fatal("the guest waits")
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *guest) count() (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rounds, g.err
}

// fails returns once the guest had an error.
func (g *guest) fails() {
	g.t.Helper()
	select {
	case <-g.done:
		if _, err := g.count(); !errors.Is(err, unix.EIO) {
			g.t.Errorf("the guest: %v, want EIO", err)
		}
	case <-time.After(30 * time.Second):
		g.t.Fatal("the guest waits")
	}
}

func (g *guest) end() {
	select {
	case <-g.stop:
		return
	default:
	}
	close(g.stop)
	select {
	case <-g.done:
	case <-time.After(30 * time.Second):
		g.t.Error("the guest hangs")
	}
	unix.Close(g.file)
}
