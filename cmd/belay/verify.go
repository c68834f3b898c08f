package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
)

const verifyLong = `Read every replica of a volume again, from its media, and compare each block with its checksum and with the other replicas, and
the whole with the newest receipt where nobody has attached since.

Where the volume is attached, a wrong copy is mended from a good one. Where it is not, it is reported and left
as it is: it is mended when the volume is attached and the block is read or verified.

Exit code 3 where anything differed, mended or not.`

func newVerify(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "verify VOLUME", Short: "read everything again and compare with the newest receipt", Long: verifyLong,
		Example: "  belay verify pvc-1a2b\n  belay verify pvc-1a2b -o json > found.json || echo \"exit $?\"",
		Args:    oneVolume, ValidArgsFunction: o.completeVolume,
		RunE: func(cmd *cobra.Command, args []string) error {
			show := newShow(cmd.ErrOrStderr(), "verify "+args[0])
			v, err := o.client().Verify(cmd.Context(), args[0], show.progress)
			show.end()
			if err != nil {
				return err
			}
			if o.output == outJSON {
				err = printJSON(cmd.OutOrStdout(), v)
			} else {
				_, err = io.WriteString(cmd.OutOrStdout(), verificationText(v))
			}
			if err == nil && !v.Clean() {
				err = errDiffers
			}
			return err
		},
	}
}

// show tells a person how far the reading is: a bar on a terminal, a line every tenth elsewhere.
type show struct {
	w     io.Writer
	what  string
	bar   *progressbar.ProgressBar
	tenth int64
}

func newShow(w io.Writer, what string) *show {
	s := &show{w: w, what: what, tenth: -1}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(w), progressbar.OptionShowBytes(true),
			progressbar.OptionSetDescription(what), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(), progressbar.OptionFullWidth(), progressbar.OptionSetPredictTime(true))
	}
	return s
}

func (s *show) progress(p engine.Progress) {
	if s.bar != nil {
		s.bar.ChangeMax64(max(int64(p.Total), 1))
		_ = s.bar.Set64(int64(p.Done))
		return
	}
	tenth := int64(p.Done) * 10 / max(int64(p.Total), 1)
	if tenth != s.tenth {
		s.tenth = tenth
		fmt.Fprintf(s.w, "%s: %s of %s\n", s.what, p.Done, p.Total)
	}
}

func (s *show) end() {
	if s.bar != nil {
		_ = s.bar.Finish()
	}
}

func verificationText(v admin.Verification) string {
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s, %s: %s read from all replicas together in %s\n", v.Volume, v.Size, v.Read, v.Took.Round(time.Millisecond))
	for _, e := range v.Evidence {
		fmt.Fprintf(&b, "  replica %s: %s\n", replicaName(e.ID, e.Place), evidenceText(e, v))
	}
	for _, r := range v.Repairs {
		fmt.Fprintf(&b, "  REPAIRED %s\n", repairText(r))
	}
	for _, f := range v.Findings {
		fmt.Fprintf(&b, "  WRONG %s\n", findingText(f))
	}
	for _, f := range v.Unresolved {
		fmt.Fprintf(&b, "  UNRESOLVED %s: no copy can win\n", findingText(f))
	}
	b.WriteString(comparisonText(v) + "\n" + verdict(v) + "\n")
	return b.String()
}

// evidenceText says what a replica was found to be. The digest of an attached volume moves while it is read, so it is
// compared only where the volume is sealed; its blocks are compared one by one in either case.
func evidenceText(e engine.Evidence, v admin.Verification) string {
	switch {
	case e.Error != "":
		return string(e.State) + ", " + e.Error
	case !v.Sealed || e.Digest.Algorithm == "":
		return string(e.State)
	case e.Digest.Equal(v.Expected):
		return fmt.Sprintf("%s, digest equal, %s read", e.State, e.Verified)
	}
	return fmt.Sprintf("%s, DIGEST %s, sealed was %s", e.State, shortDigest(e.Digest.Sum.String()), shortDigest(v.Expected.Sum.String()))
}

func findingText(f engine.Finding) string {
	who := "all replicas"
	if f.Replica != "" {
		who = "replica " + string(f.Replica)
	}
	return fmt.Sprintf("%s, %s at offset %d: %s", who, f.Length, int64(f.Offset), f.Cause)
}

func repairText(r engine.Repair) string {
	return findingText(r.Finding) + "; mended from " + string(r.From)
}

func comparisonText(v admin.Verification) string {
	switch v.Comparison {
	case admin.Equal:
		return fmt.Sprintf("equal to the newest receipt: %s, %s, digest %s", v.Receipt.Kind, v.Receipt.At.Local().Format(time.DateTime), shortDigest(v.Receipt.Expected.Sum.String()))
	case admin.Differs:
		return fmt.Sprintf("DIFFERS from the newest receipt: %s, %s, digest %s", v.Receipt.Kind, v.Receipt.At.Local().Format(time.DateTime), shortDigest(v.Receipt.Expected.Sum.String()))
	case admin.Grown:
		return "the volume has grown since its newest receipt; the replicas hold what the seal says"
	case admin.Since:
		return "not compared with the newest receipt: a writer has attached since, so that it no longer tells the content"
	case admin.Unreadable:
		return "not compared: the newest receipt is NOT BELIEVED: " + v.ReceiptError
	}
	return "not compared: there is no receipt yet"
}

func verdict(v admin.Verification) string {
	switch {
	case v.Clean():
		return "no difference found"
	case len(v.Unresolved) > 0:
		return fmt.Sprintf("DATA LOSS: %s for which no copy can win", plural(len(v.Unresolved), "range"))
	case len(v.Findings) > 0:
		return fmt.Sprintf("%s found and left as it is; mended from a good copy once the volume is attached and read or verified", plural(len(v.Findings), "wrong range"))
	case len(v.Repairs) > 0:
		return fmt.Sprintf("%s found and mended from the good copies", plural(len(v.Repairs), "wrong range"))
	}
	return "the replicas agree with their checksums, and not with the receipt"
}
