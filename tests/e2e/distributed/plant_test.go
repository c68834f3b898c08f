package distributed

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/client-go/rest"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// plant is a cluster's storage: an engine that lives on no node and outlives everything else, the controller as `belay controller` would run it for such an
// engine, the real attacher, and nodes.
type plant struct {
	*testing.T
	api    api
	dir    string
	policy bool // of expired leases
	mem    *enginetest.Memory
	book   *receipt.Book
	log    *slog.Logger
	belay  *rest.Config
	ghosts map[volume.NodeID]*ghost

	mu       sync.Mutex
	hold     chan struct{} // not nil: the read-back of a fence waits for it
	holding  chan struct{} // closed once one waits
	attacher *os.Process

	*controller
}

// start makes a plant with two nodes, whose names begin with the prefix.
func start(t *testing.T, prefix string, policy bool) *plant {
	t.Helper()
	dir, err := os.MkdirTemp("", "belay-e2e") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	p := &plant{T: t, api: newAPI(), dir: dir, policy: policy, ghosts: map[volume.NodeID]*ghost{}}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	logFile := must(os.Create(filepath.Join(dir, "log")))
	t.Cleanup(func() { p.tell(logFile) })
	p.log = slog.New(slog.NewTextHandler(logFile, nil))
	p.mem = enginetest.NewMemory(enginetest.MemoryOptions{Verifying: p.verifying})
	p.book = receipt.NewBook(must(receipt.OpenKeyring(vfs.NewMem(), "/keys")), time.Now)
	p.belay = p.api.belayConfig(t)
	p.startController()
	t.Cleanup(func() { p.controller.stop() })
	p.keepAttacher()
	for _, n := range []string{prefix + "-1", prefix + "-2"} {
		p.ghosts[volume.NodeID(n)] = newGhost(p, n)
	}
	return p
}

func (p *plant) tell(log *os.File) {
	defer log.Close()
	if p.Failed() {
		text, _ := os.ReadFile(log.Name())
		p.Logf("log:\n%s", text)
	}
}

// verifying is called by the engine for each block that it reads back.
func (p *plant) verifying(volume.ID, engine.Progress) error {
	p.mu.Lock()
	hold, holding := p.hold, p.holding
	p.holding = nil
	p.mu.Unlock()
	if hold == nil {
		return nil
	}
	if holding != nil {
		close(holding)
	}
	<-hold
	return nil
}

// holdFences has the next fence wait in the middle, and returns how to wait for that and how to let it go on.
func (p *plant) holdFences() (reached <-chan struct{}, release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold, p.holding = make(chan struct{}), make(chan struct{})
	hold := p.hold
	var once sync.Once
	release = func() {
		once.Do(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.hold = nil
			close(hold)
		})
	}
	p.Cleanup(release)
	return p.holding, release
}

// controller is one run of the controller's process.
type controller struct {
	kube   *kube.Controllers
	gate   *detach.Gate
	driver *driver.Driver
	router *driver.Router
	ours   *admin.Client // of the gate
	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// nowhere is that no volume of the plant lives on a machine: the router has none to ask.
type nowhere struct{}

func (nowhere) List(context.Context) ([]volume.NodeID, error) { return nil, nil }

func (nowhere) Had(context.Context, volume.NodeID) (bool, error) { return false, nil }

func (nowhere) Address(context.Context, volume.NodeID) (string, error) {
	return "", errors.New("no volume lives on a machine")
}

// startController wires what `belay controller` does for an engine that is bound to no machine: see pkg/kube/DESIGN.md.
func (p *plant) startController() {
	p.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &controller{cancel: cancel, ours: admin.NewClient(filepath.Join(p.dir, "admin.sock"))}
	peers := func(n volume.NodeID) kube.Peer {
		if n == "" {
			return c.ours
		}
		return admin.NewDialClient(n, func(context.Context) (net.Conn, error) { return nil, errors.New("nobody is there") })
	}
	c.kube = must(kube.NewControllers(kube.ControllersConfig{
		Config: kube.Config{API: must(kube.ConnectTo(p.belay, kube.Options{})), Driver: driverName, Namespace: space, Log: p.log},
		Peers:  peers, Identity: "the only one", Alone: true, FenceExpiredLeases: p.policy,
	}))
	c.gate = must(detach.NewGate(detach.GateConfig{
		Control: p.mem, Book: p.book, Agents: p.agent, Lost: c.kube.Lost.Lost, Presumed: c.kube.Lost.Presumed,
		Overrides: c.kube.Overrides.Of, Events: c.kube.Reporter.Gate(), Log: p.log,
	}))
	c.driver = must(driver.New(driver.Config{
		Version: "test", Name: driverName, Control: p.mem, Gate: c.gate, Log: p.log, Nodes: c.kube.Fleet.List, Forgotten: c.kube.Fleet.Forgotten,
	}))
	c.router = must(driver.NewRouter(driver.RouterConfig{
		Version: "test", Name: driverName, Machines: nowhere{}, Beyond: c.driver, Credentials: insecure.NewCredentials(), Log: p.log,
	}))
	p.controller = c
	c.ended.Go(func() { c.kube.Run(ctx) })
	if err := c.kube.Fleet.Wait(ctx); err != nil {
		p.Fatal(err)
	}
	p.serve(ctx, c)
}

func (p *plant) serve(ctx context.Context, c *controller) {
	server := admin.NewServer(admin.Config{
		About: admin.About{Version: "test", Driver: driverName}, Control: p.mem, Gate: c.gate, Book: p.book, History: noHistory{},
		Board: admin.NewBoard(""), Checking: func(volume.ID) string { return "" }, Log: p.log,
	})
	socket := must(wire.Listen(filepath.Join(p.dir, "admin.sock")))
	c.ended.Go(func() { _ = server.Serve(ctx, socket); socket.Close() })
	c.ended.Go(func() { _ = c.router.Services().Serve(ctx, p.endpoint()) })
}

func (p *plant) endpoint() string { return "unix://" + filepath.Join(p.dir, "csi.sock") }

// noHistory is kept by nobody here.
type noHistory struct{}

func (noHistory) Read(context.Context, volume.ID) (history.History, error) {
	return history.History{}, nil
}

// stop ends the controller's process.
func (c *controller) stop() {
	c.cancel()
	c.gate.Close()
	c.ended.Wait()
	_ = c.router.Close()
}

// keepAttacher runs the attacher, and runs it again whenever it ends, as kubelet would.
func (p *plant) keepAttacher() {
	flags := append(must(attacherFlags()), "--csi-address="+filepath.Join(p.dir, "csi.sock"), "--kubeconfig="+kubeconfig(p.T, p.belay))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	p.Cleanup(func() { cancel(); <-ended })
	log := must(os.Create(filepath.Join(p.dir, "attacher.log")))
	p.Cleanup(func() { p.tell(log) })
	go func() {
		defer close(ended)
		for ; ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
			c := exec.CommandContext(ctx, "csi-attacher", flags...)
			c.Stdout, c.Stderr = log, log
			if err := c.Start(); err != nil {
				p.Errorf("attacher: %v", err)
				return
			}
			p.mu.Lock()
			p.attacher = c.Process
			p.mu.Unlock()
			_ = c.Wait()
		}
	}()
}

// killAttacher ends it without a word.
func (p *plant) killAttacher() {
	p.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.attacher.Kill(); err != nil {
		p.Fatal(err)
	}
}
