package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/belay-storage/belay/pkg/admin"
)

// installDir is where the pods of nodes put the program of their own version: see deploy/, belay node --install-dir.
const installDir = "/var/lib/belay/bin"

// given are the flags of the verb itself that were given, as words.
func given(cmd *cobra.Command) (out []string) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if cmd.InheritedFlags().Lookup(f.Name) == nil {
			out = append(out, flagArgs(f)...)
		}
	})
	return out
}

// asked makes a verb of belay one that the controller's pod answers, with the same flags.
func (k *plugin) asked(verb *cobra.Command, needs, example string) *cobra.Command {
	name := verb.Name()
	verb.Long, verb.Example = strings.ReplaceAll(verb.Long, `"belay `, `"kubectl belay `), example
	verb.ValidArgsFunction = k.completeVolume
	verb.RunE = func(cmd *cobra.Command, args []string) error {
		v, err := k.volume(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return k.pass(cmd, nil, needs, k.exec(name, append(given(cmd), v)...))
	}
	return verb
}

func (k *plugin) newWhy() *cobra.Command {
	return k.asked(newWhy(&k.options), needsAsking, `  kubectl belay why pvc/data -n shop
  kubectl belay why pvc-1a2b@n1 -o json | jq .next`)
}

func (k *plugin) newHistory() *cobra.Command {
	return k.asked(newHistory(&k.options), needsAsking, `  kubectl belay history pvc/data -n shop
  kubectl belay history pv/pvc-1a2b --last 10
  kubectl belay history pvc/data -o json | jq '.entries[] | select(.kind == "checked")'`)
}

func (k *plugin) newReceipts() *cobra.Command {
	return k.asked(newReceipts(&k.options), needsAsking, `  kubectl belay receipts pvc/data -n shop
  kubectl belay receipts pvc/data -o json | jq '.receipts[-1].receipt.kind'`)
}

func (k *plugin) newVerify() *cobra.Command {
	return k.asked(newVerify(&k.options), needsExec, `  kubectl belay verify pvc/data -n shop
  kubectl belay verify pvc/data -o json > found.json || echo "exit $?"`)
}

// newSalvage passes a decision on with the name of who makes it, and the terminal, where there is one, for the question.
func (k *plugin) newSalvage() *cobra.Command {
	verb := k.asked(newSalvage(&k.options), needsExec, `  kubectl belay salvage pvc/data -n shop
  kubectl belay salvage pvc/data -n shop --read           # read every block, and count those that are wrong
  kubectl belay salvage pvc/data -n shop --from /srv/a --reason "ticket 4711: disks of /srv/b and /srv/c destroyed"`)
	verb.Flags().Lookup("by").Hidden = true
	ask := verb.RunE
	verb.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("from") {
			return k.salvageFrom(cmd, args[0])
		}
		return ask(cmd, args)
	}
	return verb
}

func (k *plugin) salvageFrom(cmd *cobra.Command, arg string) error {
	v, err := k.volume(cmd.Context(), arg)
	if err != nil {
		return err
	}
	user, err := k.whoami(cmd.Context())
	if err != nil {
		return err
	}
	if err := cmd.Flags().Set("by", user); err != nil {
		return err
	}
	args := k.exec("salvage", append(given(cmd), v)...)
	if in, ok := terminal(cmd); ok && !cmd.Flags().Changed("yes") {
		return k.pass(cmd, in, needsExec, append([]string{"exec", "--stdin", "--tty"}, args[1:]...))
	}
	return k.pass(cmd, nil, needsExec, args)
}

// whoami is the operator's name, as the API server knows it.
func (k *plugin) whoami(ctx context.Context) (string, error) {
	type review struct {
		Status struct {
			UserInfo struct {
				Username string `json:"username"`
			} `json:"userInfo"`
		} `json:"status"`
	}
	found, err := objects[review](ctx, k, needsWhoami, "auth", "whoami")
	if err != nil {
		return "", err
	}
	if len(found) != 1 || found[0].Status.UserInfo.Username == "" {
		return "", fmt.Errorf("the API server does not say who you are: see `kubectl auth whoami`; a decision is made in somebody's name")
	}
	return found[0].Status.UserInfo.Username, nil
}

const kubectlUpgradeLong = `Have another version of the engine serve a volume that is in use. The workload sees a pause of some milliseconds and nothing else.

Without --to it is the version of the controller, which the pods of the nodes put to ` + installDir + `/belay-VERSION on their machines: update Belay
first, then upgrade the engines. A new version that does not start, hangs, or dies within its first seconds is rolled back, and the command says why; the first
that is rolled back ends it.`

func (k *plugin) newUpgrade() *cobra.Command {
	f := &upgradeFlags{}
	cmd := &cobra.Command{
		Use: "upgrade VOLUME|--all|--node NODE [--to BINARY]", Short: "have another version of the engine serve a volume in use", Long: kubectlUpgradeLong,
		Example: `  kubectl belay upgrade pvc/data -n shop
  kubectl belay upgrade --node n1 --pace 10s
  kubectl belay upgrade --all --keep-going -o json
  kubectl belay upgrade --all --to ` + installDir + `/belay-1.2     # back to the version before`,
		Args: usageArgs(f.checkWhich), ValidArgsFunction: k.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error { return k.upgrade(cmd, f, args) },
	}
	f.add(cmd)
	cmd.Flags().Lookup("to").Usage = "the program to upgrade to, on the volume's machine (default: " + installDir + "/belay-VERSION of the controller)"
	_ = cmd.RegisterFlagCompletionFunc("node", k.completeFlag("get", "nodes", "-o", "name"))
	return cmd
}

func (k *plugin) upgrade(cmd *cobra.Command, f *upgradeFlags, args []string) error {
	if f.to != "" && !path.IsAbs(f.to) {
		return usageError{fmt.Errorf("--to %q: want an absolute path on the volume's machine", f.to)}
	}
	for i, arg := range args {
		v, err := k.volume(cmd.Context(), arg)
		if err != nil {
			return err
		}
		args[i] = v
	}
	if f.to == "" {
		v, err := k.controller(cmd.Context())
		if err != nil {
			return err
		}
		if err := cmd.Flags().Set("to", path.Join(installDir, "belay-"+path.Base(v.Version))); err != nil {
			return err
		}
	}
	return k.pass(cmd, nil, needsUpgrade, k.exec("upgrade", append(given(cmd), args...)...))
}

// controller asks the controller for its version.
func (k *plugin) controller(ctx context.Context) (v versions, err error) {
	raw, err := k.read(ctx, needsAsking, k.exec("version", "--output=json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(raw, &v); err != nil || v.Version == "" {
		return v, fmt.Errorf("what the controller says of its version is not understood: %q", raw)
	}
	return v, nil
}

// pluginVersions is what `kubectl belay version -o json` prints.
type pluginVersions struct {
	versions
	Controller *versions `json:"controller,omitempty"`
	Error      string    `json:"error,omitempty"` // why the controller's is not known
}

func (k *plugin) newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version of this program and of the controller", Long: "Print the version of this program, and of the controller where it answers.",
		Example: "  kubectl belay version\n  kubectl belay version -o json | jq -r .controller.version",
		Args:    usageArgs(cobra.NoArgs), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := pluginVersions{versions: versions{Version: version, Go: runtime.Version()}}
			there, err := k.controller(cmd.Context())
			if v.Controller = &there; err != nil {
				v.Controller, v.Error = nil, err.Error()
			}
			return k.printVersions(cmd.OutOrStdout(), v)
		},
	}
}

func (k *plugin) printVersions(w io.Writer, v pluginVersions) error {
	if k.output == outJSON {
		return printJSON(w, v)
	}
	line := "does not answer: " + v.Error
	if v.Controller != nil {
		line = fmt.Sprintf("%s (%s) in namespace %s", v.Controller.Version, v.Controller.Go, k.belay)
	}
	_, err := fmt.Fprintf(w, "kubectl belay %s (%s)\ncontroller: %s\n", v.Version, v.Go, line)
	return err
}

// claimed is a volume and the claim it is of.
type claimed struct {
	admin.Volume
	Claim string `json:"claim,omitempty"` // namespace/name
}

const kubectlVolumesLong = `List the volumes of all machines.

CLAIM is the namespace and name of the volume's claim, where you may list PersistentVolumes. USE is "attached" from the moment a writer may exist until a
receipt is in force, "published" where the orchestrator holds the volume and no writer has attached, and "detached" otherwise. IN SYNC counts the replicas that hold
everything acknowledged. RECEIPT is the newest one in force: its kind and when it was signed.

Exit code 1 where a machine does not answer, so that its volumes are not listed.`

func (k *plugin) newVolumes() *cobra.Command {
	return &cobra.Command{
		Use: "volumes", Short: "list the volumes of all machines, and their claims", Long: kubectlVolumesLong,
		Example: "  kubectl belay volumes\n  kubectl belay volumes -o json | jq -r '.[] | select(.state != \"Healthy\") | .claim'",
		Args:    usageArgs(cobra.NoArgs), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, away := k.listing(cmd)
			if all == nil && away != nil {
				return away
			}
			pvs, err := objects[persistentVolume](cmd.Context(), k, needsViewer, "get", "pv")
			if err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "claims are not shown: %v\n", err)
			}
			if err := k.printClaimed(cmd.OutOrStdout(), all, k.claims(pvs)); err != nil {
				return err
			}
			return away
		},
	}
}

// claims are the claims of Belay's volumes, by handle.
func (k *plugin) claims(pvs []persistentVolume) map[string]string {
	out := map[string]string{}
	for _, p := range pvs {
		if h := p.handle(k.driver); h != "" {
			out[h] = p.claim()
		}
	}
	return out
}

func (k *plugin) printClaimed(w io.Writer, all []admin.Volume, claims map[string]string) error {
	if k.output == outJSON {
		out := make([]claimed, len(all))
		for i, v := range all {
			out[i] = claimed{v, claims[nameOf(v)]}
		}
		return printJSON(w, out)
	}
	claim := column{"CLAIM", func(v admin.Volume) string { return orDash(claims[nameOf(v)]) }}
	return printTable(w, all, append([]column{volumeColumns[0], claim}, volumeColumns[1:]...))
}
