package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/mtls"
	"github.com/belay-storage/belay/pkg/telemetry"
)

const nodeLong = `Run the driver on a machine of a cluster: what "belay serve" is on a single one, and beside it the services that "belay controller" asks over
the network, with mutual TLS.

Volumes live on the machine that they were made on, and the cluster calls them VOLUME@NODE. The machine decides about its volumes alone; the controller only asks.

It waits for its certificate in --tls-dir (ca.crt, tls.crt, tls.key) while it serves the local orchestrator already, and takes a new one as soon as it is there.`

const nodeExample = `  belay node --nodeid "$NODE_NAME" --endpoint unix:///csi/csi.sock --store /var/lib/belay/stores/a --store /var/lib/belay/stores/b \
      --require-host --install-dir /var/lib/belay/bin`

// Defaults of `belay node` and `belay controller`.
const (
	defaultClusterEndpoint = ":9811"
	defaultTLSDir          = "/etc/belay/tls"
)

// clusterConfig is what a machine of a cluster has beyond a single one.
type clusterConfig struct {
	Endpoint    string
	TLSDir      string
	RequireHost bool
	InstallDir  string
}

func (c *clusterConfig) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Endpoint, "cluster-endpoint", defaultClusterEndpoint, "address on which belay controller is answered, with mutual TLS")
	f.StringVar(&c.TLSDir, "tls-dir", defaultTLSDir, "directory with ca.crt, tls.crt and tls.key; read again when they change")
	f.BoolVar(&c.RequireHost, "require-host", false, "wait for the host of this machine (belay host) and start none")
	f.StringVar(&c.InstallDir, "install-dir", "", "directory to copy this program to, as belay-VERSION, for engines to be run from there (default: it is run where it is)")
}

func (c *clusterConfig) validate() error {
	if _, _, err := net.SplitHostPort(c.Endpoint); err != nil {
		return fmt.Errorf("--cluster-endpoint %q: want HOST:PORT or :PORT", c.Endpoint)
	}
	for flag, dir := range map[string]string{"tls-dir": c.TLSDir, "install-dir": c.InstallDir} {
		if dir != "" && !filepath.IsAbs(dir) {
			return fmt.Errorf("--%s %q: want an absolute path", flag, dir)
		}
	}
	return nil
}

func newNode() *cobra.Command {
	c := &serveConfig{cluster: &clusterConfig{}}
	cmd := &cobra.Command{
		Use: "node", Short: "run the driver on a machine of a cluster", Long: nodeLong, Example: nodeExample, GroupID: "roles",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(c.validate(), c.cluster.validate()); err != nil {
				return usageError{err}
			}
			log, err := telemetry.NewLogger(cmd.ErrOrStderr(), c.LogFormat, c.Verbosity)
			if err != nil {
				return usageError{err}
			}
			return serve(cmd.Context(), c, log.With("role", "node"))
		},
	}
	c.addFlags(cmd.Flags())
	c.cluster.addFlags(cmd.Flags())
	for _, flag := range []string{"store", "state", "tls-dir", "install-dir"} {
		_ = cmd.MarkFlagDirname(flag)
	}
	return cmd
}

// Protocols on a cluster endpoint, told apart by ALPN: CSI is gRPC, the API of operators is HTTP.
const (
	protocolCSI   = "h2"
	protocolAdmin = "http/1.1"
)

// serveCluster answers the controller until ctx ends.
func (s *service) serveCluster(ctx context.Context) error {
	files := mtls.Open(s.config.cluster.TLSDir)
	if err := files.Wait(ctx, func(err error) {
		s.log.Warn("waiting for a certificate; the controller cannot reach this node", "error", err)
	}); err != nil {
		return nil //nolint:nilerr // it waited until the end
	}
	refused := func(from net.Addr, err error) { s.log.Warn("a peer was refused", "from", from, "error", err) }
	parts := mtls.Split(s.cluster, files.Server(mtls.Controller, protocolCSI, protocolAdmin), refused, protocolCSI, protocolAdmin)
	s.log.Info("serving the controller", "endpoint", s.cluster.Addr())
	g, ctx := errgroup.WithContext(ctx)
	services := driver.Services{Identity: s.driver, Controller: s.driver, Log: s.log, Observe: s.metrics.Call}
	g.Go(func() error { return services.ServeOn(ctx, parts[protocolCSI]) })
	g.Go(func() error { return s.adminServer().Serve(ctx, parts[protocolAdmin]) })
	return g.Wait()
}

// waitForHost waits for a host that somebody else keeps.
func (s *service) waitForHost(ctx context.Context) error {
	const every = time.Second
	for told := false; ; {
		about, err := s.host.About(ctx)
		if err == nil {
			s.welcome(about)
			return nil
		}
		if !told {
			s.log.Warn("waiting for the host of this machine", "error", err)
			told = true
		}
		if ended := pause(ctx, every); ended != nil {
			return fmt.Errorf("waiting for the host of this machine: %w", errors.Join(err, ended))
		}
	}
}
