package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/telemetry"
)

const controllerLong = `Run the controller of a Kubernetes cluster: the CSI controller service for the sidecars, and what Belay does with the cluster's own objects.

It keeps nothing and decides nothing about a detach: it asks the machine on which a volume lives ("belay node"), over mutual TLS. A machine that does not answer
makes a call UNAVAILABLE, never OK. Several can run; one of them leads, and writes Events, conditions, certificates and the outcome of overrides.

It never deletes a VolumeAttachment.`

const controllerExample = `  belay controller --endpoint unix:///csi/csi.sock                    # in a pod, as its service account
  belay controller --endpoint unix:///tmp/csi.sock --kubeconfig ~/.kube/config --namespace belay-system --leader-election=false`

// Defaults of `belay controller`.
const (
	defaultControllerEndpoint = "unix:///csi/csi.sock"
	defaultControllerAdmin    = "/csi/admin/admin.sock" // in a directory of its own: that of the CSI socket is the pod's
	defaultNamespace          = "belay-system"
)

// controllerConfig is what the flags of `belay controller` say.
type controllerConfig struct {
	Endpoint           string
	DriverName         string
	Namespace          string
	NodeService        string
	TLSDir             string
	ManageCertificates bool
	LeaderElection     bool
	Kubeconfig         string
	FenceExpiredLeases bool
	AdminSocket        string
	HTTPEndpoint       string
	QPS                float32
	Burst              int
	LogFormat          string
	Verbosity          int
}

func (c *controllerConfig) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Endpoint, "endpoint", defaultControllerEndpoint, "CSI socket, as unix:///PATH")
	f.StringVar(&c.DriverName, "drivername", driver.Name, "name of the driver in StorageClass and CSIDriver objects")
	f.StringVar(&c.Namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), defaultNamespace), "namespace of Belay itself (default: $POD_NAMESPACE)")
	f.StringVar(&c.NodeService, "node-service", kube.DefaultService, "headless Service of the machines' pods")
	f.StringVar(&c.TLSDir, "tls-dir", defaultTLSDir, "with --manage-certificates=false: directory with ca.crt, tls.crt and tls.key; read again when they change")
	f.BoolVar(&c.ManageCertificates, "manage-certificates", true, "fill and renew the Secrets with the certificates of controller and nodes; false where something else does")
	f.BoolVar(&c.LeaderElection, "leader-election", true, "write to the cluster only while holding the Lease "+kube.LeaseName)
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "how the API server is reached (default: as the pod's service account)")
	f.BoolVar(&c.FenceExpiredLeases, "fence-expired-leases", false, "count a node as lost whose lease has expired for long, though nobody has tainted it")
	f.StringVar(&c.AdminSocket, "admin-socket", defaultControllerAdmin, "socket that the other commands, and kubectl belay, ask")
	f.StringVar(&c.HTTPEndpoint, "http-endpoint", "", "address of /metrics and /healthz, as :9810 (default: none)")
	f.Float32Var(&c.QPS, "kube-api-qps", kube.DefaultQPS, "requests to the API server in a second")
	f.IntVar(&c.Burst, "kube-api-burst", kube.DefaultBurst, "requests to the API server at once")
	addLogFlags(f, &c.LogFormat, &c.Verbosity)
}

// certificates is the directory with the controller's own certificate: one that it keeps itself where it manages them.
func (c *controllerConfig) certificates() string {
	if c.ManageCertificates {
		return filepath.Join(filepath.Dir(c.AdminSocket), "tls")
	}
	return c.TLSDir
}

func (c *controllerConfig) validate() error {
	path, ok := strings.CutPrefix(c.Endpoint, "unix://")
	switch {
	case !ok || !filepath.IsAbs(path):
		return fmt.Errorf("--endpoint %q: want unix:///PATH", c.Endpoint)
	case !filepath.IsAbs(c.AdminSocket):
		return fmt.Errorf("--admin-socket %q: want an absolute path", c.AdminSocket)
	case filepath.Clean(path) == filepath.Clean(c.AdminSocket):
		return errors.New("--endpoint and --admin-socket are the same path")
	case !driverName.MatchString(c.DriverName):
		return fmt.Errorf("--drivername %q: want at most 63 of letters, digits, '-' and '.', starting and ending in a letter or digit", c.DriverName)
	case !filepath.IsAbs(c.TLSDir):
		return fmt.Errorf("--tls-dir %q: want an absolute path", c.TLSDir)
	case c.Namespace == "" || c.NodeService == "":
		return errors.New("--namespace and --node-service must not be empty")
	case c.QPS <= 0 || c.Burst <= 0:
		return fmt.Errorf("--kube-api-qps %v, --kube-api-burst %d: want more than 0", c.QPS, c.Burst)
	}
	return nil
}

func newController() *cobra.Command {
	c := &controllerConfig{}
	cmd := &cobra.Command{
		Use: "controller", Short: "run the controller of a Kubernetes cluster", Long: controllerLong, Example: controllerExample, GroupID: "roles",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.validate(); err != nil {
				return usageError{err}
			}
			log, err := telemetry.NewLogger(cmd.ErrOrStderr(), c.LogFormat, c.Verbosity)
			if err != nil {
				return usageError{err}
			}
			return runController(cmd.Context(), c, log.With("role", "controller"))
		},
	}
	c.addFlags(cmd.Flags())
	_ = cmd.MarkFlagDirname("tls-dir")
	return cmd
}
