package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

const upgradeLong = `Have another version of the engine serve a volume that is in use. The workload sees a pause of some milliseconds and nothing else.

The new engine is started and checked first; then requests are held, those in flight are answered, and it takes the volume over under a newer
epoch. A new version that does not start, hangs, cannot read the volume's format, does not answer, or dies within its first seconds is
rolled back: the version before serves on, and the command says why. Where requests in flight take too long nothing is changed.

With --all every attached volume is upgraded, with --node those of one machine, one after the other, with a pause between two, and the first
that is rolled back ends it.

Which versions can follow each other: host and engine must speak a common protocol, and the new engine must read the format on disk that the
volume has now; both are checked before anything is touched. "belay serve" gives its own version to volumes that are attached later. The host
is replaced by ending it: the next one, which belay serve starts, takes the devices back.

Exit code 1 where a volume was not upgraded.`

const upgradeExample = `  belay upgrade pvc-1a2b --to /usr/local/bin/belay-1.3
  belay upgrade --all --to /usr/local/bin/belay-1.3 --pace 10s
  belay upgrade --all --to /usr/local/bin/belay-1.3 --keep-going -o json`

// paceDefault leaves a new version some time with each volume before the next one gets it.
const paceDefault = 2 * time.Second

type upgradeFlags struct {
	to        string
	all       bool
	node      string
	pace      time.Duration
	keepGoing bool
}

// upgradeOutcome is what is told of one volume.
type upgradeOutcome struct {
	engine.Upgrade
	Name  string `json:"name,omitempty"`
	Error string `json:"error,omitempty"` // empty: upgraded
}

// errNotUpgraded is how upgrade says that it has told of volumes that were not upgraded.
var errNotUpgraded = errors.New("not every volume was upgraded")

func newUpgrade(o *options) *cobra.Command {
	f := &upgradeFlags{}
	cmd := &cobra.Command{
		Use: "upgrade VOLUME|--all|--node NODE --to BINARY", Short: "have another version of the engine serve a volume in use", Long: upgradeLong, Example: upgradeExample,
		Args: usageArgs(f.check), ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := filepath.Abs(f.to)
			if err != nil {
				return usageError{err}
			}
			f.to = to
			todo, err := f.volumes(cmd.Context(), o.client(), args)
			if err != nil {
				return err
			}
			return f.run(cmd, o, todo)
		},
	}
	f.add(cmd)
	_ = cmd.MarkFlagFilename("to")
	return cmd
}

func (f *upgradeFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.to, "to", "", "the program to upgrade to (required)")
	cmd.Flags().BoolVar(&f.all, "all", false, "every attached volume, one after the other")
	cmd.Flags().StringVar(&f.node, "node", "", "every attached volume that is served on this node, one after the other")
	cmd.Flags().DurationVar(&f.pace, "pace", paceDefault, "how long to wait between two volumes")
	cmd.Flags().BoolVar(&f.keepGoing, "keep-going", false, "go on after a volume that was not upgraded")
}

func (f *upgradeFlags) check(cmd *cobra.Command, args []string) error {
	if f.to == "" {
		return errors.New("--to is missing: name the program to upgrade to")
	}
	return f.checkWhich(cmd, args)
}

// checkWhich checks all flags but --to.
func (f *upgradeFlags) checkWhich(_ *cobra.Command, args []string) error {
	several := f.all || f.node != ""
	switch {
	case f.all && f.node != "":
		return errors.New("either --all or --node, not both")
	case several && len(args) > 0:
		return fmt.Errorf("either --all, --node or one volume, not both: %s", strings.Join(args, " "))
	case !several && len(args) != 1:
		return fmt.Errorf("name one volume, by its ID or the orchestrator's name, or --all or --node; got %d", len(args))
	case f.pace < 0:
		return fmt.Errorf("--pace %v: want 0 or more", f.pace)
	}
	return nil
}

// volumes are those to be upgraded.
func (f *upgradeFlags) volumes(ctx context.Context, c *admin.Client, args []string) ([]string, error) {
	if len(args) > 0 {
		return args, nil
	}
	all, err := c.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	if f.node != "" {
		all = onNode(all, volume.NodeID(f.node))
	}
	var out []string
	for _, v := range all.Volumes {
		if v.Attachment != nil && v.Staged && !v.Sealed {
			out = append(out, nameOf(v))
		}
	}
	return out, all.Err()
}

// onNode is the part of a listing that is of one machine.
func onNode(all admin.Listing, node volume.NodeID) (out admin.Listing) {
	for _, v := range all.Volumes {
		if v.At == node || v.At == "" && v.Attachment != nil && v.Attachment.Node == node {
			out.Volumes = append(out.Volumes, v)
		}
	}
	for _, a := range all.Away {
		if a.Node == node {
			out.Away = append(out.Away, a)
		}
	}
	return out
}

func (f *upgradeFlags) run(cmd *cobra.Command, o *options, todo []string) error {
	outcomes, failed := []upgradeOutcome{}, false
	for i, name := range todo {
		if i > 0 {
			select {
			case <-cmd.Context().Done():
				return context.Cause(cmd.Context())
			case <-time.After(f.pace):
			}
		}
		u := f.one(cmd, o, name, i, len(todo))
		outcomes = append(outcomes, u)
		if failed = failed || u.Error != ""; u.Error != "" && !f.keepGoing {
			break
		}
	}
	if err := f.print(cmd.OutOrStdout(), o, outcomes, len(todo)); err != nil {
		return err
	}
	if failed {
		return errNotUpgraded
	}
	return nil
}

// one upgrades a volume and says meanwhile how far it is.
func (f *upgradeFlags) one(cmd *cobra.Command, o *options, name string, i, n int) upgradeOutcome {
	phase := ""
	u, err := o.client().Upgrade(cmd.Context(), name, f.to, func(p engine.Progress) {
		if p.Phase != phase {
			phase = p.Phase
			fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d, volume %s: %s\n", i+1, n, name, upgradePhase(phase))
		}
	})
	out := upgradeOutcome{Upgrade: u, Name: name}
	if err != nil {
		out.Error = err.Error()
	}
	return out
}

func upgradePhase(phase string) string {
	switch phase {
	case "start":
		return "starting the new engine"
	case "drain":
		return "requests are held, the new engine takes over"
	case "watch":
		return "served by the new engine; watching it for some seconds"
	}
	return phase
}

func (f *upgradeFlags) print(w io.Writer, o *options, outcomes []upgradeOutcome, n int) error {
	if o.output == outJSON {
		return printJSON(w, outcomes)
	}
	if n == 0 {
		_, err := io.WriteString(w, "no volume is attached\n")
		return err
	}
	for _, u := range outcomes {
		line := fmt.Sprintf("volume %s: upgraded from %s to %s; requests waited %s\n", u.Name, u.From, u.To, u.Pause.Round(time.Millisecond/10))
		if u.Error != "" {
			line = fmt.Sprintf("volume %s: NOT upgraded: %s\n", u.Name, u.Error)
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	if left := n - len(outcomes); left > 0 {
		fmt.Fprintf(w, "%s not tried; --keep-going goes on after one that fails\n", plural(left, "volume"))
	}
	return nil
}
