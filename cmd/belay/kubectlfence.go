package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/volume"
)

const kubectlFenceLong = `Let go of the volumes of a node, or of one volume, although the gate says no: for instance because the machine will never come back.

Every writer of the attachments is shut out, alive or not: what it had not synced may be gone, and whoever still uses a volume sees errors. Each
receipt is "forced"; it keeps the reason and your name, for good. Nothing overrides a lack of replicas: where too few answer, nobody can be shut out.

It writes an override to each VolumeAttachment, bound to the volume and the epoch of its attachment, in your name: the annotation ` + kube.AnnotationOverride + `. An admission
policy checks that you may. Belay's controller carries it out once, and what became of it is waited for. Nothing is deleted.

"kubectl belay why VOLUME" says whether a better way is left. A machine that is off is better marked with the taint ` + kube.TaintOutOfService + `.

Exit code 1 where an override was rejected, could not be set, or is still open at the end of --wait. With --wait 0 nothing is waited for, and an override
that is set counts as done.`

// fenceWait leaves the controller some tries. An override that still waits then is not forgotten: it is tried for some minutes.
const fenceWait = 2 * time.Minute

// Outcomes of a fence.
const (
	fenceReady    = ""         // to be fenced
	fenceSkipped  = "skipped"  // no writer to shut out
	fenceFailed   = "failed"   // no override could be set
	fenceOpen     = "open"     // set, and not carried out yet
	fenceDone     = "done"     // the writer is shut out, and a forced receipt is in force
	fenceRejected = "rejected" // the controller says no
	fenceDetached = "detached" // let go of meanwhile, and not by this override
)

// fenced is a volume that is fenced.
type fenced struct {
	Volume     string        `json:"volume"` // handle
	Claim      string        `json:"claim,omitempty"`
	Node       volume.NodeID `json:"node"`
	Attachment string        `json:"attachment,omitempty"` // name of the VolumeAttachment
	Epoch      volume.Epoch  `json:"epoch,omitempty"`
	Outcome    string        `json:"outcome"`
	Text       string        `json:"text,omitempty"`

	listed   admin.Volume
	override detach.Override
	pending  string // the override that is there already
}

// errNotFenced is how fence says that it has told of volumes that were not fenced.
var errNotFenced = errors.New("not every volume was fenced")

type fenceFlags struct {
	reason string
	yes    bool
	wait   time.Duration
}

func (k *plugin) newFence() *cobra.Command {
	f := &fenceFlags{}
	cmd := &cobra.Command{
		Use: "fence node/NAME|VOLUME --reason TEXT", Short: "let go of a node's volumes although the gate says no", Long: kubectlFenceLong,
		Example: `  kubectl belay fence node/n2 --reason "ticket 4711: machine has burnt down"
  kubectl belay fence pvc/data -n shop --reason "ticket 4712: copies restored from the backup"
  kubectl belay fence node/n2 --reason "ticket 4711" --yes --wait 10m -o json`,
		Args: usageArgs(f.check), ValidArgsFunction: k.completeFenced,
		RunE: func(cmd *cobra.Command, args []string) error { return k.fence(cmd, f, args[0]) },
	}
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, kept in the receipt (required)")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().DurationVar(&f.wait, "wait", fenceWait, "how long to wait for what becomes of it; 0: not")
	return cmd
}

func (f *fenceFlags) check(_ *cobra.Command, args []string) error {
	f.reason = strings.TrimSpace(f.reason)
	switch {
	case len(args) != 1 || args[0] == "":
		return fmt.Errorf("name one node or one volume, as node/NAME or pvc/NAME; got %d", len(args))
	case f.reason == "":
		return errors.New("--reason is missing: it is kept in the receipt")
	case f.wait < 0:
		return fmt.Errorf("--wait %v: want 0 or more", f.wait)
	}
	return nil
}

func (k *plugin) fence(cmd *cobra.Command, f *fenceFlags, arg string) error {
	word, targets, err := k.planFence(cmd, arg)
	if err != nil {
		return err
	}
	if err := k.overrides(cmd.Context(), targets, f.reason); err != nil {
		return err
	}
	if err := k.agree(cmd, f, word, targets); err != nil {
		return err
	}
	k.setOverrides(cmd.Context(), targets)
	k.awaitOverrides(cmd, targets, f.wait)
	if err := k.printFenced(cmd.OutOrStdout(), targets); err != nil {
		return err
	}
	return verdictOf(targets, f.wait)
}

// verdictOf is nil where nobody who was to be shut out can still write, as far as was waited for.
func verdictOf(targets []*fenced, wait time.Duration) error {
	for _, t := range targets {
		if t.Outcome == fenceFailed || t.Outcome == fenceRejected || t.Outcome == fenceOpen && wait > 0 {
			return errNotFenced
		}
	}
	return nil
}

// overrides makes the override of each target, in the operator's name. An error where it could not be written down.
func (k *plugin) overrides(ctx context.Context, targets []*fenced, reason string) error {
	user, err := k.whoami(ctx)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.Outcome != fenceReady {
			continue
		}
		t.override = detach.Override{Volume: t.listed.ID, Epoch: t.Epoch, Actor: user, Reason: reason}
		got, err := kube.ParseOverride(overrideText(t.override))
		if err == nil && got != t.override {
			err = fmt.Errorf("user name %q cannot be written in it", user)
		}
		if err != nil {
			return usageError{fmt.Errorf("--reason %q: %w", reason, err)}
		}
	}
	return nil
}

// overrideText is the override as the annotation has it: see kube.ParseOverride.
func overrideText(o detach.Override) string {
	return fmt.Sprintf("volume=%s; epoch=%d; by=%s; reason=%s", o.Volume, o.Epoch, o.Actor, o.Reason)
}

// agree shows what will be done, and asks whether it shall. The word is what a person must type.
func (k *plugin) agree(cmd *cobra.Command, f *fenceFlags, word string, targets []*fenced) error {
	w, n := cmd.ErrOrStderr(), count(targets, fenceReady)
	printPlan(w, targets)
	if n == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nThe writer of %s is shut out, alive or not. What it had not synced may be gone, and whoever still uses the volume sees errors.\n"+
		"It cannot be taken back. By %s: %s\n", plural(n, "volume"), targetsBy(targets), f.reason)
	if f.yes {
		return nil
	}
	in, ok := terminal(cmd)
	if !ok {
		return usageError{errors.New("nobody can be asked here: give --yes once you have read the above; nothing was changed")}
	}
	fmt.Fprintf(w, "Type %s to go on: ", word)
	return typed(cmd.Context(), in, word)
}

func targetsBy(targets []*fenced) string {
	for _, t := range targets {
		if t.override.Actor != "" {
			return t.override.Actor
		}
	}
	return "nobody"
}

func count(targets []*fenced, outcome string) (n int) {
	for _, t := range targets {
		if t.Outcome == outcome {
			n++
		}
	}
	return n
}

func printPlan(w io.Writer, targets []*fenced) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tCLAIM\tNODE\tEPOCH\tSTATE\tIN SYNC\tWILL BE")
	for _, f := range targets {
		state, sync, will := "-", "-", "fenced"
		if f.listed.ID != "" {
			state, sync = string(f.listed.State), inSync(f.listed.Volume)
		}
		if f.Outcome != fenceReady {
			will = "left alone: " + f.Text
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Volume, orDash(f.Claim), f.Node, epochText(f.Epoch), state, sync, will)
	}
	_ = t.Flush()
}

func (k *plugin) printFenced(w io.Writer, targets []*fenced) error {
	if k.output == outJSON {
		return printJSON(w, targets)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "VOLUME\tCLAIM\tNODE\tEPOCH\tOUTCOME\tDETAILS")
	for _, f := range targets {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", f.Volume, orDash(f.Claim), f.Node, epochText(f.Epoch), f.Outcome, orDash(strings.ReplaceAll(f.Text, "\n", "; ")))
	}
	return t.Flush()
}

func epochText(e volume.Epoch) string {
	if e == 0 {
		return "-"
	}
	return fmt.Sprint(uint64(e))
}
