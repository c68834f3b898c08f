package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/telemetry"
)

const hostLong = `Keep the devices of this machine open and look after the engine processes that serve them, one for each attached volume.

"belay serve" starts a host by itself where none answers, so there is no need to run this by hand. Run it as a service of its own where
a supervisor ends everything that "belay serve" has started together with it.

The host holds every device open and starts the next engine where one dies, so that the workload sees a pause and no error. Where the
host itself is killed or ended, engines go on serving, and the next host takes them over. Only where both die is a device lost: its
volume must then be staged again, and nothing is lost that was synced.

SIGTERM and SIGINT end the host and leave devices and engines as they are. Drain the machine first where they shall go too.`

const hostExample = `  belay host                                   # for belay serve with the default --state
  belay host --state /srv/belay/state`

// hostConfig is what the flags of `belay host` say.
type hostConfig struct {
	State         string
	LogFormat     string
	Verbosity     int
	WhileNeeded   bool
	WithoutResend bool
	Respawn       bool
}

func newHost() *cobra.Command {
	c := &hostConfig{}
	cmd := &cobra.Command{
		Use: "host", Short: "keep the devices of this machine open", Long: hostLong, Example: hostExample, GroupID: "roles",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !filepath.IsAbs(c.State) {
				return usageError{fmt.Errorf("--state %q: want an absolute path", c.State)}
			}
			if c.Respawn {
				return respawnHost(cmd, c)
			}
			return runHost(cmd, c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.State, "state", defaultState, "directory of this machine's own state, the same as that of belay serve")
	f.BoolVar(&c.WhileNeeded, "while-needed", false, "end once no device is left and no server has asked for a while")
	f.BoolVar(&c.WithoutResend, "without-resend", false, "behave as on a kernel before 6.9")
	f.BoolVar(&c.Respawn, "respawn", false, "start another host in the place of one that dies: for a container, whose end takes the engines along")
	_ = f.MarkHidden("without-resend")
	addLogFlags(f, &c.LogFormat, &c.Verbosity)
	_ = cmd.MarkFlagDirname("state")
	return cmd
}

// respawnHost needs a command line of its own process.
func respawnHost(cmd *cobra.Command, c *hostConfig) error {
	log, err := telemetry.NewLogger(cmd.ErrOrStderr(), c.LogFormat, c.Verbosity)
	if err != nil {
		return usageError{err}
	}
	return respawn(cmd.Context(), without(os.Args[1:], "--respawn"), log.With("role", "host"))
}

func runHost(cmd *cobra.Command, c *hostConfig) error {
	log, err := telemetry.NewLogger(cmd.ErrOrStderr(), c.LogFormat, c.Verbosity)
	if err != nil {
		return usageError{err}
	}
	if err := tellEngines(c.LogFormat, c.Verbosity); err != nil {
		return err
	}
	log = log.With("role", "host")
	h, err := host.New(host.Config{
		State: c.State, Version: version, Machine: host.ThisMachine(device.FUSE{WithoutResend: c.WithoutResend}), WhileNeeded: c.WhileNeeded, Log: log,
	})
	if errors.Is(err, host.ErrRunning) {
		return fmt.Errorf("%w; it serves as well", err)
	}
	if err != nil {
		return err
	}
	log.Info("host starts", "version", version, "state", c.State)
	return h.Serve(cmd.Context())
}

// launch is how a server starts a host where none answers.
func (c *serveConfig) launch() host.Launch {
	args := []string{"belay", "host", "--while-needed", "--state", c.State, "--log-format", c.LogFormat, "-v", strconv.Itoa(c.Verbosity)}
	if c.WithoutResend {
		args = append(args, "--without-resend")
	}
	return host.Launch{Executable: self, Args: args, Log: os.Stderr}
}
