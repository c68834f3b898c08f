package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
)

// planText is the report for people: the verdict, what each store holds, what may be decided.
func planText(p admin.SalvagePlan) string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", key, fmt.Sprintf(format, args...))
	}
	line("volume", "%s", strings.TrimSpace(fmt.Sprintf("%s %s, %v", p.Volume, bracketed(p.Name), p.Size)))
	line("outlook", "%s: %s", strings.ToUpper(string(p.Outlook)), p.Because)
	for _, w := range p.WaitsFor {
		line("waits for", "store %s: %s", replicaName(w.ID, w.Place), w.Reason)
	}
	line("newest", "%s", newestText(p))
	line("receipt", "%s", proofText(p))
	if p.Salvaged != nil {
		line("salvaged", "%s", salvagedText(*p.Salvaged)+pendingText(p.Pending))
	}
	for _, c := range p.Copies {
		b.WriteByte('\n')
		writeCopy(&b, c, p)
	}
	b.WriteString("\n" + adviceText(p))
	for _, c := range p.Choices {
		b.WriteByte('\n')
		writeChoice(&b, c)
	}
	return b.String()
}

func bracketed(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

func newestText(p admin.SalvagePlan) string {
	if p.Newest == "" {
		return "no record can be read"
	}
	sure := "a newer one may be on stores that cannot be read"
	if p.Certain {
		sure = "a majority says so, there is no newer one"
	}
	return fmt.Sprintf("configuration %s (%s), writer epoch %d%s", p.Newest, sure, p.Writer, sinceText(p.Since))
}

func sinceText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " since " + t.Local().Format(time.DateTime)
}

func proofText(p admin.SalvagePlan) string {
	switch {
	case p.ProofError != "":
		return "NOT BELIEVED: " + p.ProofError
	case p.Proof != nil:
		return fmt.Sprintf("%s, %s, of writer epoch %d, digest %s", p.Proof.Kind, p.Proof.At.Local().Format(time.DateTime), p.Proof.Writer, shortDigest(p.Proof.Expected.Sum.String()))
	case len(p.Head) > 0:
		return fmt.Sprintf("the newest, %.16s…, is on none of the stores that are there", p.Head)
	}
	return "none yet"
}

func salvagedText(s engine.Salvaged) string {
	text := fmt.Sprintf("at epoch %d from store %s, which was at configuration %s of %s", s.Epoch, replicaName(s.From, s.Place), s.Configuration, s.Newest)
	if s.Lost != "" {
		text += "; " + s.Lost
	}
	return text
}

func pendingText(pending bool) string {
	if pending {
		return " (NOT FINISHED)"
	}
	return ""
}

// writeCopy tells of one replica.
func writeCopy(b *strings.Builder, c engine.SalvageCopy, p admin.SalvagePlan) {
	line := func(key, format string, args ...any) {
		fmt.Fprintf(b, "  %-13s %s\n", key, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(b, "store %s: %s\n", replicaName(c.ID, c.Place), standingText(c))
	if c.Reason != "" && c.State != engine.Stale { // that is said already
		line("because", "%s", c.Reason)
	}
	if c.Incarnation != "" {
		line("incarnation", "%.8s, %s", c.Incarnation, either(c.Admitted, "admitted", "NOT ADMITTED: it neither votes nor serves"))
	}
	if !c.Readable {
		return
	}
	line("configuration", "%s%s, promised to epoch %d", c.Configuration, either(c.Doubtful, " by what is left of its record", ""), c.Promised)
	line("writer", "epoch %d%s, %s%s", c.Writer, sinceText(c.Since), either(c.Clean, "had flushed", "HAD NOT FLUSHED"), either(c.Sealed, ", sealed", ""))
	line("state", "%s being written, %s%s", plural(c.Dirty, "region"), either(c.Lossy, "LOST ITS CACHE with writes in it", "no cache lost"), fmt.Sprintf(", %s on disk", c.Allocated))
	line("content", "%s%s", contentText(c, p), differsText(c))
	if p.Read > 0 {
		line("read", "%s not what their checksum says, %d unreadable", plural(c.Wrong, "block"), c.Unreadable)
	}
}

func standingText(c engine.SalvageCopy) string {
	switch {
	case !c.Readable && c.Configuration == "" && c.State == engine.Unreachable:
		return "NOT THERE" + either(c.Member, ", a member of the newest configuration", "")
	case !c.Readable:
		return "CANNOT BE READ"
	case c.Member:
		return "member of the newest configuration"
	case c.Admitted:
		return "STALE: not a member of the newest configuration"
	}
	return "not part of the volume any more"
}

// contentText compares with the newest receipt. What is being written has no digest yet.
func contentText(c engine.SalvageCopy, p admin.SalvagePlan) string {
	digest := "digest " + shortDigest(c.Digest.Sum.String())
	switch {
	case c.AsReceipt:
		return digest + ", as in the newest receipt"
	case c.Dirty > 0:
		return "no digest of the regions being written"
	case len(p.Head) > 0:
		return digest + ", NOT that of the newest receipt"
	}
	return digest
}

func differsText(c engine.SalvageCopy) string {
	switch {
	case c.DiffersFrom == "":
		return ""
	case c.DiffersRegions == 0:
		return fmt.Sprintf("; the same as %.8s", c.DiffersFrom)
	}
	return fmt.Sprintf("; %s in %s differ from %.8s", plural(c.DiffersBlocks, "block"), plural(c.DiffersRegions, "region"), c.DiffersFrom)
}

func either(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func adviceText(p admin.SalvagePlan) string {
	switch {
	case p.Outlook == engine.OutlookComesUp:
		return "nothing to decide: attach it\n"
	case p.Pending:
		return fmt.Sprintf("finish it: belay salvage %s --from %s --reason …\n", p.Volume, p.Salvaged.From)
	case p.Outlook == engine.OutlookInUse && len(p.Choices) == 0:
		return "nothing to decide while it is in use\n"
	case p.Outlook == engine.OutlookInUse:
		return "if the missing stores never come back, give its device up with --kill, and decide for one of these:\n"
	case len(p.Choices) == 0:
		return "nothing to choose from: no store that is there can be read\n"
	case p.Outlook == engine.OutlookWaits:
		return "bring the missing stores back: nothing is lost by waiting. Only if they never come, decide for one of these:\n"
	}
	return "decide for one of these:\n"
}

// writeChoice tells what is lost or risked by a choice.
func writeChoice(b *strings.Builder, c engine.SalvageChoice) {
	fmt.Fprintf(b, "--from %s   configuration %s, %s known to be given up\n", c.Place, c.Configuration, plural(c.LostBlocks, "block"))
	for _, l := range c.Loses {
		fmt.Fprintf(b, "  - %s\n", l)
	}
	if len(c.Loses) == 0 {
		b.WriteString("  - nothing that is known of is lost\n")
	}
}
