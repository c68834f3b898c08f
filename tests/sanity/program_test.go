package sanity

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// program is a `belay serve`, or another role, of this test alone.
type program struct {
	t        *testing.T
	binary   string
	base     string
	endpoint string
	loops    map[string]bool // devices that were there before
	cmd      *exec.Cmd
	ended    chan struct{}
	log      *os.File
}

func (p *program) path(name string) string { return filepath.Join(p.base, name) }

// start runs `belay serve` on three stores and waits until it is ready.
func start(t *testing.T) *program {
	t.Helper()
	return startAs(t, "serve", func(*program) []string { return nil })
}

// startAs is start for another role with the same flags, and more.
func startAs(t *testing.T, role string, more func(*program) []string) *program {
	t.Helper()
	p := &program{t: t, base: t.TempDir(), loops: loopDevices(t), ended: make(chan struct{})}
	p.binary, p.endpoint = p.path("belay"), "unix://"+p.path("csi.sock")
	p.install()
	args := []string{role, "--endpoint", p.endpoint, "--nodeid", nodeName, "--state", p.path("state"), "--admin-socket", p.path("admin.sock")}
	for _, s := range []string{"store-a", "store-b", "store-c"} {
		must(t, os.Mkdir(p.path(s), 0o700))
		args = append(args, "--store", p.path(s))
	}
	args = append(args, more(p)...)
	log, err := os.Create(p.path("log"))
	must(t, err)
	p.log = log
	p.cmd = exec.Command(p.binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	must(t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(p.cleanUp)
	p.waitReady()
	return p
}

// install puts the program where no other instance of it runs, so that its processes can be told from others.
func (p *program) install() {
	p.t.Helper()
	if bin := os.Getenv("BELAY_BIN"); bin != "" {
		b, err := os.ReadFile(bin)
		must(p.t, err)
		must(p.t, os.WriteFile(p.binary, b, 0o755))
		return
	}
	build := exec.Command("go", "build", "-o", p.binary, "github.com/belay-storage/belay/cmd/belay")
	if out, err := build.CombinedOutput(); err != nil {
		p.t.Fatalf("build: %v: %s", err, out)
	}
}

func (p *program) connect() *grpc.ClientConn { return p.connectTo(p.endpoint) }

func (p *program) connectTo(endpoint string) *grpc.ClientConn {
	p.t.Helper()
	c, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(p.t, err)
	p.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (p *program) waitReady() { p.waitReadyAt(p.endpoint) }

func (p *program) waitReadyAt(endpoint string) {
	p.t.Helper()
	client := csi.NewIdentityClient(p.connectTo(endpoint))
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	r, err := client.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	if err != nil || !r.GetReady().GetValue() {
		p.t.Fatalf("not ready: %v, %v\n%s", r, err, p.tail())
	}
}

// checkEmpty fails where the suite, which deletes what it made, left a volume, mount or open device.
func (p *program) checkEmpty() {
	p.t.Helper()
	list, err := csi.NewControllerClient(p.connect()).ListVolumes(p.t.Context(), &csi.ListVolumesRequest{})
	must(p.t, err)
	for _, e := range list.GetEntries() {
		p.t.Errorf("volume %s is left", e.GetVolume().GetVolumeId())
	}
	for _, m := range p.mounts() {
		p.t.Errorf("mount %s is left", m)
	}
	for _, pid := range p.processes() {
		for _, fd := range glob(p.t, filepath.Join("/proc", pid, "fd/*")) {
			if target, _ := os.Readlink(fd); strings.HasPrefix(target, "/dev/loop") && target != "/dev/loop-control" {
				p.t.Errorf("process %s still has %s", pid, target)
			}
		}
	}
}

// stop ends the program in order and checks that it left nothing.
func (p *program) stop() {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("did not end within 30 s of SIGTERM\n%s", p.tail())
	}
	if !p.cmd.ProcessState.Success() {
		p.t.Errorf("ended with %v\n%s", p.cmd.ProcessState, p.tail())
	}
	p.hostEnds()
	for _, pid := range p.processes() {
		p.t.Errorf("process %s is left", pid)
	}
	for device := range loopDevices(p.t) {
		if !p.loops[device] && dead(device) {
			p.t.Errorf("device %s is left, and nobody serves it", device)
		}
	}
	for _, pattern := range []string{"*.sock", "state/host/*.sock", "state/host/devices/*", "state/engines/*"} {
		for _, name := range glob(p.t, p.path(pattern)) {
			p.t.Errorf("%s is left", name)
		}
	}
}

// hostEnds waits for the end of the host, which needs nobody to end it and stays for some seconds.
func (p *program) hostEnds() {
	p.t.Helper()
	const stays = 20 * time.Second
	for late := time.Now().Add(stays); len(p.processes()) > 0 && time.Now().Before(late); {
		time.Sleep(50 * time.Millisecond)
	}
}

// cleanUp takes away what a failed test left, so that the next run starts clean.
func (p *program) cleanUp() {
	for _, m := range p.mounts() {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	// Again and again: a host starts the next engine for one that dies before it.
	for pids := p.processes(); len(pids) > 0; pids = p.processes() {
		_ = exec.Command("kill", append([]string{"-KILL"}, pids...)...).Run()
		time.Sleep(10 * time.Millisecond)
	}
	if p.t.Failed() {
		p.t.Log(p.tail())
	}
	_ = p.log.Close()
}

// processes are those that run this test's copy of the program.
func (p *program) processes() (pids []string) {
	for _, exe := range glob(p.t, "/proc/[0-9]*/exe") {
		if target, _ := os.Readlink(exe); strings.TrimSuffix(target, " (deleted)") == p.binary {
			pids = append(pids, filepath.Base(filepath.Dir(exe)))
		}
	}
	return pids
}

// mounts are the mount points beneath the test's directory, the deepest last.
func (p *program) mounts() (paths []string) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	must(p.t, err)
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], p.base+"/") {
			paths = append(paths, f[4])
		}
	}
	return paths
}

// tail is the end of the program's log.
func (p *program) tail() string {
	b, err := os.ReadFile(p.path("log"))
	if err != nil {
		return err.Error()
	}
	const most = 20 << 10
	return string(b[max(0, len(b)-most):])
}

// loopDevices are those that have something behind them.
func loopDevices(t *testing.T) map[string]bool {
	devices := map[string]bool{}
	for _, f := range glob(t, "/sys/block/loop*/loop/backing_file") {
		devices["/dev/"+strings.Split(f, "/")[3]] = true
	}
	return devices
}

// dead says that nothing answers behind the device. Another program's device, alive, is none of this test's business.
func dead(device string) bool {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return false // gone meanwhile
	}
	defer f.Close()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Munmap(page) }()
	_, err = f.ReadAt(page, 0)
	return errors.Is(err, unix.EIO)
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	matches, err := filepath.Glob(pattern)
	must(t, err)
	return matches
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
