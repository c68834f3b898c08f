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
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/credentials"
	"k8s.io/klog/v2"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/mtls"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// dialWithin bounds how long a machine may take to take a connection.
const dialWithin = 5 * time.Second

// controller is everything that `belay controller` runs.
type controller struct {
	config  *controllerConfig
	log     *slog.Logger
	metrics *telemetry.Cluster
	files   *mtls.Files
	api     *kube.API
	kube    *kube.Controllers
	router  *driver.Router
	admin   *wire.Listener
	http    net.Listener // nil where not asked for
}

func runController(ctx context.Context, c *controllerConfig, log *slog.Logger) error {
	log.Info("starting", "version", version, "config", *c)
	klog.SetSlogLogger(log) // client-go speaks through it
	k := &controller{config: c, log: log, metrics: telemetry.NewCluster(c.DriverName, version), files: mtls.Open(c.certificates())}
	err := errors.Join(k.connect(), k.route(), k.listen())
	if err == nil {
		err = k.run(ctx)
	}
	log.Info("stopping")
	return errors.Join(err, k.close())
}

func (k *controller) connect() error {
	c := k.config
	var err error
	k.api, err = kube.Connect(kube.Options{
		Kubeconfig: c.Kubeconfig, QPS: c.QPS, Burst: c.Burst, UserAgent: "belay-controller/" + version,
		Requests: func(r kube.Request) { k.metrics.Request(r.Method, r.Resource, r.Code, r.Took) },
	})
	if err != nil {
		return err
	}
	k.kube, err = kube.NewControllers(kube.ControllersConfig{
		Config: kube.Config{API: k.api, Driver: c.DriverName, Namespace: c.Namespace, Service: c.NodeService, Log: k.log},
		Peers:  k.peer, Identity: holder(), Alone: !c.LeaderElection, Certificates: c.ManageCertificates, FenceExpiredLeases: c.FenceExpiredLeases,
		Hooks: kube.Hooks{Told: k.metrics.Told, Override: k.metrics.Override, Leading: k.metrics.Leading},
	})
	return err
}

func (k *controller) route() (err error) {
	if k.kube == nil {
		return nil // connect has said why
	}
	k.router, err = driver.NewRouter(driver.RouterConfig{
		Version: version, Name: k.config.DriverName, Machines: k.kube.Fleet, Log: k.log, Observe: k.metrics.Call,
		Credentials: credentials.NewTLS(k.files.Client(mtls.Node)), Events: driver.RouterEvents{Refused: k.refused},
	})
	return err
}

// refused tells of a machine that could not be asked: that passes when it is back. What a machine itself says it tells by a notice.
func (k *controller) refused(handle string, node volume.NodeID, cause error) {
	if driver.Away(cause) {
		k.kube.Reporter.Refused(handle, node, kube.Waiting(cause))
	}
}

func (k *controller) listen() (err error) {
	if err := os.MkdirAll(filepath.Dir(strings.TrimPrefix(k.config.Endpoint, "unix://")), 0o750); err != nil {
		return fmt.Errorf("--endpoint: %w", err)
	}
	if k.admin, err = wire.Listen(k.config.AdminSocket); err != nil {
		return fmt.Errorf("--admin-socket: %w", err)
	}
	if k.config.HTTPEndpoint != "" {
		if k.http, err = net.Listen("tcp", k.config.HTTPEndpoint); err != nil {
			return fmt.Errorf("--http-endpoint: %w", err)
		}
	}
	return nil
}

// run serves until ctx ends or a part fails; the others end with it.
func (k *controller) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { k.kube.Run(ctx); return nil })
	if k.config.ManageCertificates {
		g.Go(func() error {
			kube.FetchCertificate(ctx, k.api, k.config.Namespace, k.config.certificates(), k.log)
			return nil
		})
	}
	if k.http != nil {
		g.Go(func() error { return telemetry.Serve(ctx, k.http, k.metrics.Handler(healthy)) })
	}
	g.Go(func() error { return k.adminServer().Serve(ctx, k.admin) })
	g.Go(func() error { return k.serveCSI(ctx) })
	return g.Wait()
}

// serveCSI waits until calls can be answered: sidecars wait for the socket, and take an answer for what it says.
func (k *controller) serveCSI(ctx context.Context) error {
	told := func(err error) {
		k.log.Warn("waiting for a certificate; no machine can be asked without", "error", err)
	}
	if err := errors.Join(k.kube.Fleet.Wait(ctx), k.files.Wait(ctx, told)); err != nil {
		return nil //nolint:nilerr // it waited until the end
	}
	return k.router.Services().Serve(ctx, k.config.Endpoint)
}

// holder names this process in the Lease.
func holder() string {
	name := os.Getenv("POD_NAME")
	if name == "" {
		name, _ = os.Hostname()
	}
	return fmt.Sprintf("%s_%d", name, os.Getpid())
}

// peer is none for the empty name: every engine so far is bound to a machine, so this process has no gate of its own.
func (k *controller) peer(node volume.NodeID) kube.Peer {
	if node == "" {
		return nil
	}
	return k.client(node)
}

// client asks the machine's server, wherever its pod is at the time of the call.
func (k *controller) client(node volume.NodeID) *admin.Client {
	return admin.NewDialClient(node, func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialWithin)
		defer cancel()
		address, err := k.kube.Fleet.Address(ctx, node)
		if err != nil {
			return nil, err
		}
		return (&tls.Dialer{Config: k.files.Client(mtls.Node, protocolAdmin)}).DialContext(ctx, "tcp", address)
	})
}

func (k *controller) adminServer() *wire.Server {
	return admin.NewFleetServer(admin.FleetConfig{
		About: admin.About{Version: version, Driver: k.config.DriverName, PID: os.Getpid(), Started: time.Now().UTC()},
		Nodes: k.kube.Fleet.List, Client: k.client, Log: k.log,
	})
}

func (k *controller) close() error {
	if k.admin != nil {
		k.admin.Close()
	}
	if k.http != nil {
		k.http.Close()
	}
	if k.router == nil {
		return nil
	}
	return k.router.Close()
}
