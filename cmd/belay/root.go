package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
)

const rootLong = `Belay is replicated block storage for Kubernetes that never lets go of a volume before its data is provably safe.

"belay serve" runs the driver on this machine. The other commands ask it what it knows. Called kubectl-belay, this program is the
plugin of kubectl that asks the machines of a cluster: see "kubectl belay --help".

Exit codes: 0 done; 1 refused or failed; 2 the command line cannot be understood; 3 verify found differences.`

const rootExample = `  belay serve --store /srv/a --store /srv/b --store /srv/c    # three copies, best on three disks
  belay volumes
  belay why pvc-1a2b                    # what holds this volume, who said what, what to do next
  belay history pvc-1a2b                # what became of it: engines that died, checks, receipts, and why
  belay receipts pvc-1a2b               # the signed proof of every finished detach
  belay verify pvc-1a2b                 # read everything again and compare with the newest receipt
  belay salvage pvc-1a2b                # what each store holds, and what may be decided where it does not come up`

// Forms of output.
const (
	outText = "text"
	outJSON = "json"
)

// options are the flags that the verbs share.
type options struct {
	socket string
	output string
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use: "belay", Short: "replicated block storage that proves a detach before it lets go",
		Long: rootLong, Example: rootExample, SilenceErrors: true, SilenceUsage: true, Version: version,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddGroup(&cobra.Group{ID: "roles", Title: "Roles:"}, &cobra.Group{ID: "verbs", Title: "Questions to a running belay serve:"})
	root.AddCommand(newServe(), newController(), newNode(), newHost(), newEngine(), newPrestop())
	for _, verb := range []*cobra.Command{newVolumes(o), newWhy(o), newHistory(o), newReceipts(o), newVerify(o)} {
		verb.GroupID = "verbs"
		addShared(verb, o)
		root.AddCommand(verb)
	}
	for _, other := range []*cobra.Command{newFence(o), newSalvage(o), newUpgrade(o), newVersion(o)} {
		addShared(other, o)
		root.AddCommand(other)
	}
	return root
}

func addShared(cmd *cobra.Command, o *options) {
	cmd.Flags().StringVar(&o.socket, "socket", admin.DefaultSocket, "admin socket of belay serve")
	addOutput(cmd, o)
}

func addOutput(cmd *cobra.Command, o *options) {
	cmd.Flags().StringVarP(&o.output, "output", "o", outText, "form of the output: text or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outText, outJSON}, cobra.ShellCompDirectiveNoFileComp))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains([]string{outText, outJSON}, o.output) {
			return usageError{fmt.Errorf("output %q: want %s or %s", o.output, outText, outJSON)}
		}
		return run(cmd, args)
	}
}

func (o *options) client() *admin.Client { return admin.NewClient(o.socket) }

// usageArgs makes a complaint about arguments an error of usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// oneVolume checks that exactly one volume is named.
var oneVolume = usageArgs(func(_ *cobra.Command, args []string) error {
	if len(args) != 1 || strings.TrimSpace(args[0]) == "" {
		return fmt.Errorf("name one volume, by its ID or the orchestrator's name; got %d", len(args))
	}
	return nil
})

// printJSON writes v for machines: one indented document, as the API has it.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
