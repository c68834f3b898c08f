package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
)

const receiptsLong = `Show the receipts of a volume, oldest first: the signed proof of every finished detach.

Signatures are checked against the keys this machine knows, the chain of hashes against the engine's own record. A receipt's kind is
"clean", "degraded" (fewer replicas than the volume should have), "fenced" (the writer was shut out before it had flushed:
what it had not synced may be gone) or "forced" (an operator overrode the gate).

Exit code 1 where a signature or the chain does not hold.`

func newReceipts(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "receipts VOLUME", Short: "show the signed proof of every finished detach", Long: receiptsLong,
		Example: "  belay receipts pvc-1a2b\n  belay receipts pvc-1a2b -o json | jq '.receipts[-1].receipt.kind'",
		Args:    oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := o.client().Receipts(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if o.output == outJSON {
				err = printJSON(cmd.OutOrStdout(), r)
			} else {
				err = printReceipts(cmd.OutOrStdout(), r)
			}
			if err == nil && !r.Good() {
				err = fmt.Errorf("volume %s: %d of its receipts do not hold", r.Volume, len(r.Breaks))
			}
			return err
		},
	}
}

func printReceipts(w io.Writer, r admin.Receipts) error {
	var b strings.Builder
	if len(r.Entries) == 0 {
		fmt.Fprintf(&b, "volume %s has no receipt: no writer has been detached yet\n", r.Volume)
	}
	for i, e := range r.Entries {
		if i > 0 {
			b.WriteByte('\n')
		}
		writeEntry(&b, e)
	}
	for _, broken := range r.Breaks {
		fmt.Fprintf(&b, "\nBROKEN at receipt %d: it %s\n", broken.Index+1, broken.Cause)
	}
	if len(r.Entries) > 0 && r.Good() {
		fmt.Fprintf(&b, "\n%s in one chain, every signature good\n", plural(len(r.Entries), "receipt"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeEntry(b *strings.Builder, e admin.ReceiptEntry) {
	fmt.Fprintf(b, "receipt %.16s\n", e.Hash)
	if e.Error != "" {
		fmt.Fprintf(b, "  NOT BELIEVED: %s\n", e.Error)
		return
	}
	writeReceipt(b, e.Receipt)
}

func writeReceipt(b *strings.Builder, r receipt.Receipt) {
	line := func(key, format string, args ...any) {
		fmt.Fprintf(b, "  %-9s %s\n", key, fmt.Sprintf(format, args...))
	}
	line("kind", "%s%s", r.Kind, kindMeans(r.Kind))
	line("detached", "%s", r.At.Local().Format(time.RFC3339))
	line("from", "node %s, attachment epoch %d, writer epoch %d, configuration %s", r.Attachment.Node, r.Attachment.Epoch, r.Writer, r.View)
	line("content", "%s, digest %s", r.Size, shortDigest(r.Expected.Sum.String()))
	line("read back", "%s from all replicas together", r.Verified)
	for _, e := range r.Evidence {
		line("replica", "%s", replicaLine(e, r))
	}
	for _, m := range r.Repairs {
		line("repaired", "%s at %d, replica %s, from %s: %s", m.Length, int64(m.Offset), m.Replica, m.From, m.Cause)
	}
	if more := r.RepairCount - len(r.Repairs); more > 0 {
		line("repaired", "and %d more", more)
	}
	if r.UnresolvedCount > 0 {
		line("LOST", "%s for which no copy could win", plural(r.UnresolvedCount, "range"))
	}
	if r.Salvaged != nil {
		line("SALVAGED", "%s", salvagedText(*r.Salvaged))
	}
	if r.Reason != "" {
		line("reason", "%s", strings.TrimSpace(r.Reason+" "+by(r.Actor)))
	}
	line("signed by", "key %s, after %s", r.Key, orFirst(r.Previous.String()))
}

func kindMeans(k receipt.Kind) string {
	switch k {
	case receipt.Degraded:
		return " (fewer replicas in sync than the volume should have)"
	case receipt.Fenced:
		return " (NOT CLEAN: what the writer had not synced may be gone)"
	case receipt.Forced:
		return " (an operator overrode the gate)"
	}
	return ""
}

func replicaLine(e receipt.Replica, r receipt.Receipt) string {
	words := []string{replicaName(e.ID, e.Place), string(e.State)}
	switch {
	case e.Error != "":
		return strings.Join(append(words, e.Error), ", ")
	case e.Digest.Equal(r.Expected):
		words = append(words, "digest equal")
	default:
		words = append(words, "DIGEST "+shortDigest(e.Digest.Sum.String()))
	}
	if e.Durable {
		words = append(words, "on stable media")
	}
	return strings.Join(append(words, fmt.Sprintf("%s read back", e.Verified)), ", ")
}

// replicaName is the place of a replica, which people know, and enough of its ID to tell it from another at that place.
func replicaName(id engine.ReplicaID, place string) string {
	if place == "" {
		return string(id)
	}
	return fmt.Sprintf("%.8s at %s", id, place)
}

func shortDigest(s string) string {
	if len(s) > 16 {
		return s[:16] + "…"
	}
	return orDash(s)
}

func by(actor string) string {
	if actor == "" {
		return ""
	}
	return "(by " + actor + ")"
}

func orFirst(previous string) string {
	if previous == "" {
		return "none: the first"
	}
	return "receipt " + previous[:16]
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
