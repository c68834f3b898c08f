package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

const fenceLong = `Let go of a volume although the gate says no, for instance because its copies disagree or its node will never come back.

Every writer of the attachment is shut out, alive or not: what it had not synced may be gone, and whoever still uses the volume sees errors.
The receipt is "forced"; it keeps the reason and who answers for it, for good. Nothing overrides a lack of replicas: where too few
answer, nobody can be shut out.

The epoch of the open attachment must be named. "belay why VOLUME" shows it, and whether a better way is left.`

func newFence(o *options) *cobra.Command {
	var epoch uint64
	var reason string
	cmd := &cobra.Command{
		Use: "fence VOLUME --epoch N --reason TEXT", Short: "let go of a volume although the gate says no", Long: fenceLong,
		Example: `  belay why pvc-1a2b
  belay fence pvc-1a2b --epoch 12 --reason "ticket 4711: disks of node n1 destroyed"`,
		Args: oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			if epoch == 0 || strings.TrimSpace(reason) == "" {
				return usageError{errors.New("--epoch and --reason are required; `belay why` shows the epoch")}
			}
			r, err := o.client().Fence(cmd.Context(), args[0], detach.Override{Epoch: volume.Epoch(epoch), Reason: reason, Actor: actor()})
			if err != nil {
				return err
			}
			return o.printReceipt(cmd.OutOrStdout(), r)
		},
	}
	cmd.Flags().Uint64Var(&epoch, "epoch", 0, "epoch of the attachment to end (required)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, kept in the receipt (required)")
	return cmd
}

// printReceipt writes the receipt that a decision has left.
func (o *options) printReceipt(w io.Writer, r receipt.Receipt) error {
	if o.output == outJSON {
		return printJSON(w, r)
	}
	var b strings.Builder
	writeReceipt(&b, r)
	_, err := io.WriteString(w, b.String())
	return err
}

// actorFor is who answers for a decision that is passed on for somebody else.
func actorFor(by string) string {
	if by == "" {
		return actor()
	}
	return by + ", by way of " + actor()
}

// actor is who answers for it, as well as this machine can tell. The socket lets in root and the server's own user only.
func actor() string {
	name := fmt.Sprintf("user %d", os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if real := os.Getenv("SUDO_USER"); real != "" {
		name = real + " as " + name
	}
	if host, err := os.Hostname(); err == nil {
		name += " on " + host
	}
	return name
}
