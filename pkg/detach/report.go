package detach

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Report is what Why found.
type Report struct {
	Volume       engine.Volume    `json:"volume"`
	Node         *NodeStatus      `json:"node,omitempty"`         // nil: not asked, or silent
	NodeError    string           `json:"nodeError,omitempty"`    // why the node is silent
	Receipts     int              `json:"receipts"`               // in force
	Receipt      *receipt.Receipt `json:"receipt,omitempty"`      // the newest in force
	ReceiptError string           `json:"receiptError,omitempty"` // why it cannot be read or trusted
	Working      *JobStatus       `json:"working,omitempty"`      // what the gate itself is doing
	Detached     bool             `json:"detached"`               // nothing holds the volume
	Answer       Action           `json:"answer"`                 // what a ControllerUnpublish would come to now
	Because      string           `json:"because"`
	Next         string           `json:"next"`
}

// Why tells who holds the volume, who said what, and what to do next. It changes nothing. engine.ErrNotFound.
func (g *Gate) Why(ctx context.Context, id volume.ID) (Report, error) {
	s, err := g.survey(ctx, id, "")
	if err != nil {
		return Report{}, err
	}
	if !s.facts.Found {
		return Report{}, fmt.Errorf("volume %s: %w", id, engine.ErrNotFound)
	}
	r := Report{Volume: s.volume, Answer: s.decision.Action, Because: s.decision.Because, Next: s.decision.Next}
	r.Volume.ID = id
	r.Detached = s.facts.Open == nil && s.facts.Unavailable == ""
	if job := g.jobs.status(id); job != (JobStatus{}) {
		r.Working = &job
	}
	g.reportNode(ctx, &s, &r)
	g.reportReceipts(ctx, id, &r)
	return r, nil
}

// reportNode asks the node also where the decision did not need it: people want to see it.
func (g *Gate) reportNode(ctx context.Context, s *survey, r *Report) {
	if s.facts.Open == nil {
		return
	}
	if s.facts.Reach == Unasked {
		g.askNode(ctx, s)
	}
	if s.facts.Reach == Answers {
		r.Node = &s.facts.Node
	}
	r.NodeError = s.facts.Quiet
}

func (g *Gate) reportReceipts(ctx context.Context, id volume.ID, r *Report) {
	raws, err := g.c.Control.Receipts(ctx, id)
	if err != nil {
		r.ReceiptError = err.Error()
		return
	}
	if r.Receipts = len(raws); r.Receipts == 0 {
		return
	}
	last, err := g.c.Book.Verify(raws[len(raws)-1])
	if err != nil {
		r.ReceiptError = err.Error()
		return
	}
	r.Receipt = &last
}

// Text is the report on one screen.
func (r Report) Text() string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s "+format+"\n", append([]any{key}, args...)...)
	}
	v := r.Volume
	line("volume", "%s", strings.TrimSpace(string(v.ID)+" "+bracket(v.Name)))
	line("state", "%s%s, %v", v.State, because(v.Reason), v.Size)
	if text := doubtText(v.Format); text != "" {
		line("filesystem", "%s", text)
	}
	line("attached", "%s", r.attachedText())
	r.nodeText(line)
	for _, c := range v.Replicas {
		line("replica", "%s at %s: %s%s", c.ID, c.Place, c.State, because(c.Reason))
	}
	line("receipts", "%s", r.receiptText())
	if r.Working != nil && r.Working.Failed != "" {
		line("tried", "%s", r.Working.Failed)
	}
	line("detach", "%s: %s", r.Answer, r.Because)
	line("next", "%s", r.Next)
	return b.String()
}

// doubtText says what is held against the volume's filesystem, "" for nothing.
func doubtText(f engine.Format) string {
	switch f.Doubt {
	case engine.Unchecked:
		return f.FSType + ", not checked since a writer died or was shut out before it had flushed; the next stage checks it before it is mounted"
	case engine.Damaged:
		return f.FSType + ", DAMAGED: not mounted until somebody has repaired it; every stage checks it anew"
	}
	return ""
}

func (r Report) attachedText() string {
	a := r.Volume.Attachment
	switch {
	case a == nil && r.Detached:
		return "no"
	case a == nil:
		return "cannot be told"
	case !r.Volume.Staged:
		return fmt.Sprintf("to node %s (epoch %d), never staged", a.Node, a.Epoch)
	case r.Volume.Sealed:
		return fmt.Sprintf("to node %s (epoch %d), sealed: nobody can write", a.Node, a.Epoch)
	}
	return fmt.Sprintf("to node %s (epoch %d), writer epoch %d", a.Node, a.Epoch, r.Volume.Writer)
}

func (r Report) nodeText(line func(string, string, ...any)) {
	if r.NodeError != "" {
		line("node", "does not answer: %s", r.NodeError)
	}
	n := r.Node
	if n == nil {
		return
	}
	line("node", "%s: device %s %s%s", n.Node, n.Path, n.Device, because(cmp.Or(n.Error, n.Stalled)))
	if n.Process != nil {
		line("engine", "%s", processText(*n.Process))
	}
	if e := n.Entry; e != nil {
		line("staged", "%s at %s%s", e.Phase, e.Staging, because(paths(e.Targets)))
	}
	for _, h := range n.Holders {
		line("in use", "%s", h)
	}
	if n.Job.Running {
		line("barrier", "%s %v of %v", n.Job.Progress.Phase, n.Job.Progress.Done, n.Job.Progress.Total)
	}
	if n.Job.Failed != "" {
		line("tried", "%s", n.Job.Failed)
	}
}

func processText(p engine.Process) string {
	text := fmt.Sprintf("version %s, process %d since %s", p.Version, p.PID, p.Since.Format("2006-01-02 15:04:05"))
	if p.PID == 0 {
		text = "none serves now"
	}
	if p.Deaths > 0 {
		text += fmt.Sprintf("; %d died before and were followed", p.Deaths)
	}
	if p.Pause > 0 {
		text += fmt.Sprintf("; the last change kept requests waiting %v", p.Pause.Round(time.Millisecond/10))
	}
	return text
}

func (r Report) receiptText() string {
	switch {
	case r.ReceiptError != "":
		return fmt.Sprintf("%d, the newest not to be trusted: %s", r.Receipts, r.ReceiptError)
	case r.Receipt == nil:
		return "none"
	}
	return fmt.Sprintf("%d, the newest %s of %s (writer epoch %d)", r.Receipts, r.Receipt.Kind, r.Receipt.At.Format("2006-01-02 15:04:05"), r.Receipt.Writer)
}

func because(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func bracket(s string) string { return strings.TrimSpace(because(s)) }
