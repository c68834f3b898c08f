package main

import (
	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/telemetry"
)

const serveLong = `Run the driver on this machine: all roles but the host and its engines, which it starts.

Each --store keeps one copy of every volume; a volume with three replicas needs three stores, best on three disks. Stores are locked:
a second server on any of them refuses to start and says who runs.

A host ("belay host", see there) keeps the devices and runs an engine process for each attached volume; where none answers one is started,
as a process of its own. Whatever becomes of this server, killed, ended or replaced by a newer one, devices are served on.

On SIGTERM or SIGINT it stops taking calls, lets running ones finish for a while, and ends. Work that is not finished then, an unstage or
a barrier, is in the stage journal, and the next start finishes it.

Killed, it loses nothing, and the next start goes on where it stopped.`

const serveExample = `  belay serve --store /srv/a --store /srv/b --store /srv/c

  # beside a kubelet
  belay serve --endpoint unix:///var/lib/kubelet/plugins/csi.belay.storage/csi.sock --nodeid "$NODE_NAME" \
      --store /srv/a --store /srv/b --http-endpoint :9810 --log-format json`

func newServe() *cobra.Command {
	c := &serveConfig{}
	cmd := &cobra.Command{
		Use: "serve", Short: "run the driver on this machine", Long: serveLong, Example: serveExample, GroupID: "roles",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.validate(); err != nil {
				return err
			}
			log, err := telemetry.NewLogger(cmd.ErrOrStderr(), c.LogFormat, c.Verbosity)
			if err != nil {
				return usageError{err}
			}
			return serve(cmd.Context(), c, log)
		},
	}
	c.addFlags(cmd.Flags())
	for _, flag := range []string{"store", "state"} {
		_ = cmd.MarkFlagDirname(flag)
	}
	return cmd
}
