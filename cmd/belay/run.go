package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// closeWithin bounds what waits for disks at the end, all of which can be left to the next start.
const closeWithin = 20 * time.Second

// ownProgram is this very program as another process finds it.
func ownProgram() string { return fmt.Sprintf("/proc/%d/exe", os.Getpid()) }

// self is this very program, also where its file was replaced by a newer one since it started.
const self = "/proc/self/exe"

// service is everything that `belay serve` runs.
type service struct {
	config  *serveConfig
	log     *slog.Logger
	metrics *telemetry.Metrics
	book    *receipt.Book
	history *history.Book
	board   *admin.Board
	tell    teller
	host    *host.Client
	keeping chan struct{} // closed when no host is looked after any more; nil before
	unkeep  context.CancelFunc
	engine  *mirror.Engine
	agent   *detach.Agent
	gate    *detach.Gate
	mounter *mount.Mounter
	driver  *driver.Driver
	admin   net.Listener
	http    net.Listener // nil where not asked for
	cluster net.Listener // nil on a single machine
}

// serve runs the driver until ctx ends.
func serve(ctx context.Context, c *serveConfig, log *slog.Logger) error {
	log.Info("starting", "version", version, "config", c)
	klog.SetSlogLogger(log) // mount-utils speaks through it
	s := &service{config: c, log: log, metrics: telemetry.New(c.DriverName, version)}
	err := s.start(ctx)
	if err == nil {
		err = s.run(ctx)
	}
	log.Info("stopping")
	return errors.Join(err, s.close())
}

// start opens everything in the order of who rests on whom. The stores' locks come before the sockets: a second server
// on the same stores must not take a socket from the first.
func (s *service) start(ctx context.Context) error {
	for _, step := range []func(context.Context) error{s.startState, s.startHost, s.startEngine, s.startDetach, s.startDriver, s.listen} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) startState(context.Context) error {
	if err := os.MkdirAll(s.config.State, 0o700); err != nil {
		return fmt.Errorf("--state: %w", err)
	}
	keys, err := receipt.OpenKeyring(vfs.OS(), filepath.Join(s.config.State, "keys"))
	if err != nil {
		return err
	}
	s.book = receipt.NewBook(keys, time.Now)
	s.history, err = history.Open(history.Config{FS: vfs.OS(), Dir: filepath.Join(s.config.State, "history"), Log: s.log})
	s.board = admin.NewBoard(s.config.node)
	s.tell = teller{s.metrics, s.history, s.board}
	return err
}

// startHost finds the host of this machine, or starts one, and starts another where it dies. It outlives this process.
func (s *service) startHost(ctx context.Context) error {
	s.host = host.NewClient(s.config.State)
	if s.config.cluster != nil && s.config.cluster.RequireHost {
		return s.waitForHost(ctx)
	}
	about, err := s.host.Ensure(ctx, s.config.launch())
	if err != nil {
		return err
	}
	s.welcome(about)
	keep, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.keeping, s.unkeep = make(chan struct{}), cancel
	go func() {
		defer close(s.keeping)
		s.host.Keep(keep, s.config.launch(), func(err error) { s.log.Error("no host answers, and none can be started", "error", err) })
	}()
	return nil
}

func (s *service) welcome(about host.About) {
	s.log.Info("host", "process", about.PID, "version", about.Version, "since", about.Started)
	if about.Version != version {
		s.log.Warn("the host is of another version; end its process to have it replaced, engines and workloads do not notice",
			"process", about.PID, "host", about.Version, "server", version)
	}
}

func (s *service) startEngine(ctx context.Context) error {
	program := ownProgram()
	if c := s.config.cluster; c != nil && c.InstallDir != "" {
		var err error
		if program, err = install(c.InstallDir); err != nil {
			return err
		}
	}
	e, err := mirror.New(mirror.Config{
		FS: vfs.OS(), Stores: s.config.Stores, State: s.config.State, Node: s.config.node, Overcommit: s.config.Overcommit,
		Host: s.host, Executable: program, Log: s.log, Events: s.tell.mirror(),
	})
	if err != nil {
		return err
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	s.engine = e
	return nil
}

func (s *service) startDetach(ctx context.Context) error {
	journal, err := detach.OpenJournal(vfs.OS(), filepath.Join(s.config.State, "stages"))
	if err != nil {
		return err
	}
	s.mounter = mount.New(mount.Config{Log: s.log})
	events := s.tell.detach()
	s.agent, err = detach.NewAgent(detach.AgentConfig{
		Node: s.config.node, Engine: s.engine, Control: s.engine, Journal: journal, Releaser: mount.NewReleaser(s.mounter),
		Book: s.book, Log: s.log, Events: events, ForgottenAfter: s.config.ForgottenAfter,
	})
	if err != nil {
		return err
	}
	s.gate, err = detach.NewGate(detach.GateConfig{Control: s.engine, Book: s.book, Agents: s.agentOf, Log: s.log, Events: events})
	if err != nil {
		return err
	}
	// A damaged entry concerns its own volume, which stays attached and says so; the others are served.
	if err := s.agent.Resume(ctx); err != nil {
		s.log.Error("the stage journal has damaged entries; their volumes stay attached until they are seen to", "error", err)
	}
	return nil
}

// agentOf is the gate's way to a node. On a single machine there is this one.
func (s *service) agentOf(node volume.NodeID) (detach.AgentClient, error) {
	if node == s.config.node {
		return s.agent, nil
	}
	return nil, fmt.Errorf("node %s: this server has no way to it, it serves node %s", node, s.config.node)
}

func (s *service) startDriver(context.Context) (err error) {
	s.driver, err = driver.New(driver.Config{
		Version: version, NodeID: s.config.node, Name: s.config.DriverName, Control: s.engine, Engine: s.engine,
		Gate: s.gate, Agent: s.agent, Mounter: s.mounter, Log: s.log, Observe: s.metrics.Call, Events: s.tell.driver(),
		Local: s.config.cluster != nil, VolumesMax: s.config.volumesMax(),
	})
	return err
}

func (s *service) listen(context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.config.csiSocket), 0o750); err != nil {
		return fmt.Errorf("--endpoint: %w", err)
	}
	control, err := wire.Listen(s.config.AdminSocket)
	if err != nil {
		return fmt.Errorf("--admin-socket: %w", err)
	}
	s.admin = control
	if c := s.config.cluster; c != nil {
		if s.cluster, err = net.Listen("tcp", c.Endpoint); err != nil {
			return fmt.Errorf("--cluster-endpoint: %w", err)
		}
	}
	if s.config.HTTPEndpoint == "" {
		return nil
	}
	web, err := net.Listen("tcp", s.config.HTTPEndpoint)
	if err != nil {
		return fmt.Errorf("--http-endpoint: %w", err)
	}
	s.http = web
	return nil
}

// run serves until ctx ends or a server fails; the others end with it.
func (s *service) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.driver.Serve(ctx, s.config.Endpoint) })
	g.Go(func() error { return s.adminServer().Serve(ctx, s.admin) })
	if s.cluster != nil {
		g.Go(func() error { return s.serveCluster(ctx) })
	}
	if s.http != nil {
		g.Go(func() error { return telemetry.Serve(ctx, s.http, s.metrics.Handler(healthy)) })
	}
	return g.Wait()
}

func (s *service) adminServer() *wire.Server {
	return admin.NewServer(admin.Config{
		About: admin.About{
			Version: version, Node: s.config.node, Driver: s.config.DriverName, Stores: s.config.Stores,
			PID: os.Getpid(), Started: time.Now().UTC(),
		},
		Control: s.engine, Gate: s.gate, Book: s.book, History: s.history, Board: s.board, Checking: s.driver.Checking, Log: s.log,
	})
}

// healthy says that the process answers. It does not look at the stores: a restart, which is what a failed liveness probe brings, heals
// no disk.
func healthy(context.Context) error { return nil }

// close ends everything in the reverse order of start. Jobs stop first, since they rest on the engine; what they left is in the journal.
func (s *service) close() error {
	for _, l := range []net.Listener{s.admin, s.http, s.cluster} {
		if l != nil {
			l.Close()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	var errs []error
	if s.driver != nil {
		errs = append(errs, s.driver.Close(ctx))
	}
	if s.gate != nil {
		s.gate.Close()
	}
	if s.agent != nil {
		s.agent.Close()
	}
	if s.unkeep != nil {
		s.unkeep()
		<-s.keeping
	}
	if s.engine != nil {
		if err := s.engine.Close(context.Background()); err != nil {
			errs = append(errs, fmt.Errorf("closing the stores: %w", err))
		}
	}
	if s.history != nil {
		errs = append(errs, s.history.Close(ctx)) // last: the others may still tell of something
	}
	return errors.Join(errs...)
}
