package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/wire"
)

// versions is what `belay version -o json` prints.
type versions struct {
	Version string       `json:"version"`
	Go      string       `json:"go"`
	Server  *admin.About `json:"server,omitempty"`
}

func newVersion(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version of this binary and of the running server",
		Long:    "Print the version of this binary, and what is running behind the admin socket where somebody answers there.",
		Example: "  belay version\n  belay version -o json", Args: usageArgs(cobra.NoArgs), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
			defer cancel()
			v := versions{Version: version, Go: runtime.Version()}
			about, err := o.client().About(ctx)
			if err == nil {
				v.Server = &about
			}
			if o.output == outJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "belay %s (%s)\n%s\n", v.Version, v.Go, serverLine(v.Server, err))
			return nil
		},
	}
}

func serverLine(a *admin.About, err error) string {
	switch {
	case errors.Is(err, wire.ErrNotRunning):
		return "server: " + err.Error()
	case err != nil:
		return "server: does not answer: " + err.Error()
	}
	return fmt.Sprintf("server: %s, %s on node %s, process %d since %s", a.Version, a.Driver, a.Node, a.PID, a.Started.Local().Format("2006-01-02 15:04:05"))
}
