package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/volume"
)

// reasons name, for metrics, why a detach was refused. The first that fits is taken.
var reasons = []struct {
	err  error
	word string
}{
	{detach.ErrDataLoss, "data-loss"}, {engine.ErrQuarantined, "data-loss"}, {detach.ErrInProgress, "in-progress"},
	{detach.ErrHeld, "held"}, {detach.ErrNodeSilent, "node-silent"}, {detach.ErrOverride, "override"}, {detach.ErrJournal, "journal"},
	{engine.ErrUnavailable, "unavailable"}, {engine.ErrBusy, "busy"},
}

func reasonOf(cause error) string {
	for _, r := range reasons {
		if errors.Is(cause, r.err) {
			return r.word
		}
	}
	return "unknown"
}

// teller tells what happens to the metrics, to the volumes' histories and to whoever watches.
type teller struct {
	metrics *telemetry.Metrics
	history *history.Book
	board   *admin.Board
}

func (t teller) detach() detach.Events {
	m, h := t.metrics, t.history
	return detach.Events{
		DetachRefused: func(id volume.ID, _ volume.NodeID, cause error) {
			m.DetachRefused(reasonOf(cause))
			t.refused(id, cause)
		},
		BarrierStarted: func(a volume.Attachment) {
			m.BarrierStarted(a.Volume)
			t.board.Post(admin.Notice{Kind: admin.Started, Volume: a.Volume, Epoch: a.Epoch, Message: "flushing, reading back and comparing the replicas"})
		},
		BarrierProgress: func(a volume.Attachment, p engine.Progress) {
			if p.Phase == "verify" {
				m.BarrierVerified(a.Volume, p.Done)
			}
		},
		ReceiptWritten: func(a volume.Attachment, r receipt.Receipt) {
			m.Receipt(a.Volume, string(r.Kind))
			if s := r.Salvaged; s != nil {
				h.Append(a.Volume, history.Entry{Kind: history.Salvaged, Epoch: s.Epoch, Text: salvageText(*s)})
			}
			h.Append(a.Volume, history.Entry{Kind: history.Detached, Epoch: r.Writer, Text: receiptText(r)})
			t.board.Post(admin.Notice{Kind: noticeOf(r.Kind), Volume: a.Volume, Epoch: a.Epoch, Message: receiptText(r), Receipt: &r})
		},
		Fenced: func(a volume.Attachment, p engine.FenceProof, reason string) {
			m.Fenced()
			h.Append(a.Volume, history.Entry{Kind: history.Fenced, Epoch: a.Epoch, Text: fmt.Sprintf("every writer before epoch %d is shut out: %s", p.Epoch, reason)})
		},
		Quarantined: func(a volume.Attachment, cause string) {
			m.Quarantined()
			h.Append(a.Volume, history.Entry{Kind: history.Quarantined, Epoch: a.Epoch, Text: cause})
			t.board.Post(admin.Notice{Kind: admin.Quarantined, Volume: a.Volume, Epoch: a.Epoch, Message: cause})
		},
	}
}

// refused tells of a detach that was not let through, or not yet.
func (t teller) refused(id volume.ID, cause error) {
	kind := admin.Refused
	if errors.Is(cause, detach.ErrInProgress) || errors.Is(cause, engine.ErrBusy) {
		kind = admin.Waiting
	}
	t.board.Post(admin.Notice{Kind: kind, Volume: id, Message: cause.Error()})
}

func noticeOf(k receipt.Kind) admin.NoticeKind {
	switch k {
	case receipt.Forced:
		return admin.Forced
	case receipt.Fenced:
		return admin.Fenced
	}
	return admin.Finished
}

func receiptText(r receipt.Receipt) string {
	insync := 0
	for _, e := range r.Evidence {
		if e.State == engine.InSync {
			insync++
		}
	}
	text := fmt.Sprintf("%s receipt: %d of %d replicas in sync, %s read back", r.Kind, insync, r.Replicas, r.Verified)
	if r.RepairCount > 0 {
		text += ", " + plural(r.RepairCount, "range") + " mended"
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	return strings.TrimSpace(text + " " + by(r.Actor))
}

func salvageText(s engine.Salvaged) string {
	text := fmt.Sprintf("by an operator's decision it is what replica %s held, configuration %s; the newest seen was %s", replicaName(s.From, s.Place), s.Configuration, s.Newest)
	if s.LostBlocks > 0 {
		text += "; " + plural(s.LostBlocks, "block") + " lost"
	}
	return text
}

func (t teller) driver() driver.Events {
	m, h := t.metrics, t.history
	return driver.Events{
		Created: func(v engine.Volume) {
			h.Remove(v.ID) // of an older volume of that name
			h.Append(v.ID, history.Entry{Kind: history.Created, Text: fmt.Sprintf("%s, %s", v.Size, plural(len(v.Replicas), "replica"))})
		},
		Deleted: h.Remove,
		Published: func(a volume.Attachment) {
			h.Append(a.Volume, history.Entry{Kind: history.Published, Epoch: a.Epoch, Text: "to node " + string(a.Node)})
		},
		Staged: func(e detach.Entry, d engine.Device) {
			h.Append(e.Attachment.Volume, history.Entry{Kind: history.Attached, Epoch: d.Writer, Text: stagedText(e, d)})
			t.board.Post(admin.Notice{Kind: admin.Restaged, Volume: e.Attachment.Volume, Epoch: e.Attachment.Epoch, Message: stagedText(e, d)})
		},
		Refused: t.refused,
		Unclean: func(e detach.Entry, d engine.Device) {
			m.Unclean()
			h.Append(e.Attachment.Volume, history.Entry{Kind: history.Unclean, Epoch: d.Writer, Text: uncleanText(e)})
			t.board.Post(admin.Notice{Kind: admin.Unclean, Volume: e.Attachment.Volume, Epoch: e.Attachment.Epoch, Message: uncleanText(e)})
		},
		Checked: func(e detach.Entry, c driver.Check) {
			m.Checked(c.Verdict(), c.Report.Took)
			h.Append(e.Attachment.Volume, history.Entry{Kind: history.Checked, Epoch: c.Writer, Took: c.Report.Took, Text: checkText(e, c)})
			if c.Verdict() != "clean" {
				t.board.Post(admin.Notice{Kind: admin.Damaged, Volume: e.Attachment.Volume, Epoch: e.Attachment.Epoch, Message: checkText(e, c)})
			}
		},
		Lost: func(a volume.Attachment, cause error) {
			h.Append(a.Volume, history.Entry{Kind: history.Lost, Epoch: a.Epoch, Text: cause.Error()})
			t.board.Post(admin.Notice{Kind: admin.Lost, Volume: a.Volume, Epoch: a.Epoch, Message: cause.Error()})
		},
	}
}

func stagedText(e detach.Entry, d engine.Device) string {
	text := "raw block device " + d.Path
	if e.Access == detach.Mount {
		text = fmt.Sprintf("%s on %s", e.FSType, d.Path)
	}
	if e.ReadOnly {
		text += ", read-only"
	}
	return text
}

func uncleanText(e detach.Entry) string {
	const text = "its last writer died or was shut out before it had flushed; "
	if e.Access == detach.Block {
		return text + "what a raw block device holds is its workload's to check"
	}
	return text + e.FSType + " is checked before it is mounted"
}

func checkText(e detach.Entry, c driver.Check) string {
	switch {
	case c.Err != nil:
		return fmt.Sprintf("%s could not be checked and is not mounted: %v", e.FSType, c.Err)
	case !c.Report.Clean:
		return fmt.Sprintf("%s is DAMAGED and is not mounted: %s", e.FSType, c.Report.Output)
	case c.Report.Left != "":
		return fmt.Sprintf("%s is consistent; before: %s", e.FSType, c.Report.Left)
	}
	return e.FSType + " is consistent"
}

func (t teller) mirror() mirror.Events {
	return mirror.Events{
		Replicas: t.metrics.Replicas,
		Repaired: func(volume.ID) { t.metrics.Repaired() },
		Scrubbed: t.metrics.Scrubbed,
		Engine:   t.metrics.Engine,
		Host:     t.host,
	}
}

// host keeps what the host tells, which it does late and again after each start.
func (t teller) host(v host.Event) {
	if kind, ok := hostKinds[v.Kind]; ok {
		t.history.AppendLate(v.Volume, history.Entry{Time: v.At, Kind: kind, Took: v.Pause, Text: hostText(v)})
	}
	if v.Kind == host.GivenUp {
		t.board.Post(admin.Notice{Kind: admin.Lost, Volume: v.Volume, Message: hostText(v)})
	}
}

// hostKinds are the events of the host that are kept. That a device is made and taken away goes with other entries.
var hostKinds = map[host.Kind]history.Kind{
	host.Died: history.EngineDied, host.TakenOver: history.TakenOver, host.GivenUp: history.Lost,
	host.Upgraded: history.Upgraded, host.RolledBack: history.RolledBack,
}

func hostText(v host.Event) string {
	text := ""
	switch {
	case v.From != "" && v.To != "":
		text = "from version " + v.From + " to " + v.To
	case v.From+v.To != "":
		text = "version " + v.From + v.To
	}
	if v.Cause != "" {
		text = strings.TrimPrefix(text+": "+v.Cause, ": ")
	}
	return text
}
