package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/volume"
)

// Defaults of `belay serve`.
const (
	defaultEndpoint = "unix:///run/belay/csi.sock" // beside the admin socket; kubelet's plugin directory where there is a kubelet
	defaultState    = "/var/lib/belay"             // survives reboots, unlike /run
	// defaultOvercommit promises what is there: a thin volume that cannot be written is an outage.
	defaultOvercommit = 1.0
	// defaultHTTP is off: nothing listens on the network unless asked to.
	defaultHTTP = ""
)

// serveConfig is what the flags of `belay serve` say.
type serveConfig struct {
	Endpoint       string
	NodeID         string
	DriverName     string
	Stores         []string
	State          string
	AdminSocket    string
	HTTPEndpoint   string
	Overcommit     float64
	MaxVolumes     int64
	ForgottenAfter time.Duration
	LogFormat      string
	Verbosity      int
	WithoutResend  bool

	cluster   *clusterConfig // nil on a single machine
	csiSocket string         // Endpoint as a path
	node      volume.NodeID  // NodeID, checked
}

func (c *serveConfig) addFlags(f *pflag.FlagSet) {
	f.StringVar(&c.Endpoint, "endpoint", defaultEndpoint, "CSI socket, as unix:///PATH")
	f.StringVar(&c.NodeID, "nodeid", "", "name of this machine as the orchestrator knows it (default: the host name)")
	f.StringVar(&c.DriverName, "drivername", driver.Name, "name of the driver in StorageClass and CSIDriver objects")
	f.StringArrayVar(&c.Stores, "store", nil, "directory that keeps one copy of each volume, best on a disk of its own; repeat for each copy (required)")
	f.StringVar(&c.State, "state", defaultState, "directory of this machine's own state: signing key, stage journal, sockets of engines")
	f.StringVar(&c.AdminSocket, "admin-socket", admin.DefaultSocket, "socket that the other commands ask")
	f.StringVar(&c.HTTPEndpoint, "http-endpoint", defaultHTTP, "address of /metrics and /healthz, as :8080 (default: none)")
	f.Float64Var(&c.Overcommit, "overcommit", defaultOvercommit, "how much is promised to volumes for each byte the stores have; volumes are thin")
	f.Int64Var(&c.MaxVolumes, "max-volumes", driver.VolumesMax, "how many volumes may be in use on this machine at once, each with an engine process of its own; 0: no limit")
	f.DurationVar(&c.ForgottenAfter, "forgotten-after", detach.ForgottenAfter, "how long after its last target went a staged volume counts as forgotten by the orchestrator")
	f.BoolVar(&c.WithoutResend, "without-resend", false, "start a host that behaves as on a kernel before 6.9")
	_ = f.MarkHidden("without-resend")
	addLogFlags(f, &c.LogFormat, &c.Verbosity)
}

func addLogFlags(f *pflag.FlagSet, format *string, verbosity *int) {
	f.StringVar(format, "log-format", telemetry.Text, "form of the log: text or json")
	f.IntVarP(verbosity, "verbosity", "v", 0, "0 logs changes of state, 1 and more everything")
}

// volumesMax is the limit as the driver wants it: negative for none.
func (c *serveConfig) volumesMax() int64 {
	if c.MaxVolumes == 0 {
		return -1
	}
	return c.MaxVolumes
}

var driverName = regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9.]{0,61}[a-zA-Z0-9])?$`)

// validate checks the flags and fills in what follows from them. Every complaint names its flag.
func (c *serveConfig) validate() error {
	for _, check := range []func() error{c.checkNode, c.checkSockets, c.checkStores, c.checkRest} {
		if err := check(); err != nil {
			return usageError{err}
		}
	}
	return nil
}

func (c *serveConfig) checkNode() (err error) {
	if c.NodeID == "" {
		if c.NodeID, err = os.Hostname(); err != nil {
			return fmt.Errorf("--nodeid is missing and the host name cannot be told: %w", err)
		}
	}
	if c.node, err = volume.ParseNodeID(c.NodeID); err != nil {
		return fmt.Errorf("--nodeid: %w", err)
	}
	if !driverName.MatchString(c.DriverName) {
		return fmt.Errorf("--drivername %q: want at most 63 of letters, digits, '-' and '.', starting and ending in a letter or digit", c.DriverName)
	}
	return nil
}

func (c *serveConfig) checkSockets() error {
	path, ok := strings.CutPrefix(c.Endpoint, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return fmt.Errorf("--endpoint %q: want unix:///PATH", c.Endpoint)
	}
	c.csiSocket = filepath.Clean(path)
	if !filepath.IsAbs(c.AdminSocket) {
		return fmt.Errorf("--admin-socket %q: want an absolute path", c.AdminSocket)
	}
	if c.csiSocket == filepath.Clean(c.AdminSocket) {
		return errors.New("--endpoint and --admin-socket are the same path")
	}
	return nil
}

func (c *serveConfig) checkStores() error {
	if len(c.Stores) == 0 {
		return errors.New("--store is missing: name a directory for each copy that volumes should have, best on different disks")
	}
	if !filepath.IsAbs(c.State) {
		return fmt.Errorf("--state %q: want an absolute path", c.State)
	}
	for i, dir := range c.Stores {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("--store %q: want an absolute path", dir)
		}
		if !utf8.ValidString(dir) { // which store was where is remembered as text
			return fmt.Errorf("--store %q: want a path in UTF-8", dir)
		}
		c.Stores[i] = filepath.Clean(dir)
		if slices.Contains(c.Stores[:i], c.Stores[i]) {
			return fmt.Errorf("--store %s is named twice: two copies in one place are one", dir)
		}
	}
	return nil
}

func (c *serveConfig) checkRest() error {
	switch {
	case !(c.Overcommit >= 1 && c.Overcommit <= 1000): // refuses NaN too
		return fmt.Errorf("--overcommit %v: want 1 to 1000", c.Overcommit)
	case c.MaxVolumes < 0:
		return fmt.Errorf("--max-volumes %d: want 0 or more", c.MaxVolumes)
	case c.ForgottenAfter <= 0:
		return fmt.Errorf("--forgotten-after %v: want a positive duration", c.ForgottenAfter)
	case c.Verbosity < 0:
		return fmt.Errorf("-v %d: want 0 or more", c.Verbosity)
	case c.LogFormat != telemetry.Text && c.LogFormat != telemetry.JSON:
		return fmt.Errorf("--log-format %q: want %s or %s", c.LogFormat, telemetry.Text, telemetry.JSON)
	}
	return nil
}

// LogValue is what the log says at the start, so that a later reader knows what was in force.
func (c *serveConfig) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("endpoint", c.Endpoint), slog.String("nodeid", c.NodeID), slog.String("drivername", c.DriverName),
		slog.Any("store", c.Stores), slog.String("state", c.State), slog.String("admin-socket", c.AdminSocket),
		slog.String("http-endpoint", c.HTTPEndpoint), slog.Float64("overcommit", c.Overcommit), slog.Int64("max-volumes", c.MaxVolumes),
		slog.Duration("forgotten-after", c.ForgottenAfter), slog.Int("v", c.Verbosity),
	)
}
