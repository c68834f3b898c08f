package detach

import (
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// This file decides and nothing else: it has no clock, goroutine, disk or network. The other half is gate.go, which
// collects Facts and performs Decisions, and agent.go, which does the same on the node.
//
//	              ControllerPublish          NodeStage                    NodeUnstage, or the gate
//	 ┌──────────┐ engine.Publish ┌──────────┐ Attach ┌──────────────────┐ Barrier or Fence ┌─────────┐
//	 │ detached │ ─────────────▶ │ attached │ ─────▶ │ attached, staged │ ───────────────▶ │ stopped │
//	 └──────────┘                └──────────┘        └──────────────────┘                  └─────────┘
//	      ▲                            │                 ▲        ▲                             │ Evidence, Judge
//	      │         never staged       │                 │        └── unfinished: start over ───┤
//	      ├────────────────────────────┘          Attach │                                      │ Seal: receipt in force
//	      │         ControllerUnpublish            ┌───────────────┐                            │
//	      └─────────────────────────────────────── │ receipt held  │ ◀──────────────────────────┘
//	                                               └───────────────┘
//
// A volume is attached until a receipt covers every writer of its attachment. Each arrow is done by the engine at a
// majority, whole or not at all; a crash between two of them leaves the volume in the state before the second.

// Action is what an Unpublish comes to.
type Action string

// Actions. The first two answer OK, the next four are work after which the facts are collected again, and the rest refuse.
const (
	Done   Action = "done"   // OK: provably not attached there
	Close  Action = "close"  // close the attachment in the engine, then OK
	Ask    Action = "ask"    // ask the node first
	Finish Action = "finish" // earn the receipt on the node, from its journal
	Fence  Action = "fence"  // shut the writer out and earn the receipt without the node
	Force  Action = "force"  // the same by an operator's override, whatever the copies say

	Held        Action = "held"        // ErrHeld
	Wait        Action = "wait"        // ErrNodeSilent
	Unavailable Action = "unavailable" // engine.ErrUnavailable; nothing is touched
	Quarantined Action = "quarantined" // ErrDataLoss
)

// Reach says whether the node answered.
type Reach string

// Reaches of a node.
const (
	Unasked Reach = ""
	Answers Reach = "answers"
	Silent  Reach = "silent"
)

// Facts are all that a decision about one Unpublish rests on. The zero value is an unknown volume.
type Facts struct {
	Volume volume.ID
	Asked  volume.NodeID // whom the call names; empty: whoever has it

	Found       bool // the engine knows the volume; false only where a majority proves that it does not exist
	Unavailable string
	Quarantined string
	Open        *volume.Attachment // nil: not published
	Staged      bool               // a writer attached within Open
	// Receipt says that a verified receipt in force covers every writer of Open. ReceiptFault is why a seal is there
	// and such a receipt is not.
	Receipt      bool
	ReceiptFault string
	Override     bool // an operator's override names Open

	Reach Reach
	Quiet string // why the node is Silent
	Lost  string // why a Silent node is lost, by somebody's decision; empty: nothing says so
	// Presumed is why a Silent node is believed to be lost, by a policy; its writer may live.
	Presumed string
	Node     NodeStatus // what it said where it Answers
}

// Decision is what to do, why, and what a person can do next.
type Decision struct {
	Action  Action
	Because string
	Next    string
	Kill    bool // with Fence: the writer may be killed if it lives
}

// rule is one row of the table in DESIGN.md; the first whose condition holds decides.
type rule struct {
	name string
	when func(Facts) bool
	then func(Facts) Decision
}

var rules = []rule{
	{"unknown volume", func(f Facts) bool { return !f.Found }, done("no such volume")},
	{"too few replicas", func(f Facts) bool { return f.Unavailable != "" }, tooFew},
	{"not published", func(f Facts) bool { return f.Open == nil }, done("not published")},
	{"published elsewhere", elsewhere, done("not published to that node")},
	{"never staged", func(f Facts) bool { return !f.Staged }, closing("no writer ever attached within the attachment")},
	{"receipt in force", func(f Facts) bool { return f.Receipt }, closing("a receipt in force covers every writer of the attachment")},
	{"override", func(f Facts) bool { return f.Override }, force},
	{"quarantined", func(f Facts) bool { return f.Quarantined != "" }, quarantined},
	{"receipt not to be trusted", func(f Facts) bool { return f.ReceiptFault != "" }, badReceipt},
	{"node not asked", func(f Facts) bool { return f.Reach == Unasked }, func(Facts) Decision { return Decision{Action: Ask} }},
	{"node silent", func(f Facts) bool {
		return f.Reach == Silent && f.Lost == "" && f.Presumed == "" && !mutant.FenceOfTheSilent
	}, silent},
	{"node lost", func(f Facts) bool { return f.Reach == Silent }, lost},
	{"barrier running", func(f Facts) bool { return f.Node.Job.Running }, finish("the barrier runs")},
	{"no trace on the node", untraced, fenceUntraced},
	{"kubelet forgot", func(f Facts) bool { ok, _ := Finishable(f.Node); return ok && f.journalled() }, finishForgotten},
	{"in use", func(Facts) bool { return true }, held},
}

// Decide is the table of DESIGN.md: what a ControllerUnpublish answers or does. It is total: the last rule always holds.
func Decide(f Facts) Decision {
	for _, r := range rules {
		if r.when(f) {
			return r.then(f)
		}
	}
	panic("detach: no rule")
}

// journalled says that the node's journal speaks of the open attachment.
func (f Facts) journalled() bool { return f.Node.Entry != nil && f.Node.Entry.Attachment == *f.Open }

func elsewhere(f Facts) bool { return f.Asked != "" && f.Open.Node != f.Asked }

// untraced: the node knows neither a staging of this attachment nor a living device. Nobody on it can write any more,
// and nobody will come to unstage it.
func untraced(f Facts) bool {
	return !f.journalled() && f.Node.Error == "" && (f.Node.Device == DeviceNone || f.Node.Device == DeviceLost)
}

// Finishable says whether the journal alone shows that a volume is out of use, so that its detach may be finished
// without the orchestrator's NodeUnstage, and why or why not.
func Finishable(s NodeStatus) (bool, string) {
	switch e := s.Entry; {
	case e == nil:
		return false, "the stage journal has no entry"
	case e.Phase == Unstaging:
		return true, "unstaging has begun"
	case s.Error != "":
		return false, s.Error
	case len(e.Targets) > 0 && !s.Rebooted:
		return false, "published to " + paths(e.Targets)
	case s.Device == DeviceNone || s.Device == DeviceLost:
		return finishableDead(s)
	case s.Device != DeviceAlive:
		return false, "the state of its device cannot be told"
	}
	return finishableAlive(s)
}

func finishableDead(s NodeStatus) (bool, string) {
	// A staging that has just begun has no device yet.
	if s.Entry.Phase == Staging && !s.Rebooted && s.Idle <= s.ForgottenAfter {
		return false, "being staged since " + ago(s.Idle)
	}
	return true, "its device is gone and it is published nowhere"
}

func finishableAlive(s NodeStatus) (bool, string) {
	switch {
	case s.Entry.Phase == Staging:
		return false, "being staged"
	case !s.Entry.Published:
		return false, "staged and not published yet"
	case s.Idle <= s.ForgottenAfter:
		return false, "its last target went " + ago(s.Idle) + " ago; where nobody unstages it, it is finished from the stage journal " +
			ago(s.ForgottenAfter) + " after that"
	}
	return true, "its last target went " + ago(s.Idle) + " ago and nobody has unstaged it"
}

// Outcome is what a barrier allows.
type Outcome string

// Outcomes.
const (
	Pass     Outcome = "pass"     // the detach may finish
	TooFew   Outcome = "too few"  // not enough replicas confirm it now; nothing is lost
	Disagree Outcome = "disagree" // copies differ and nobody can tell which is right
)

// Verdict is the judgement of a barrier.
type Verdict struct {
	Outcome   Outcome
	Kind      receipt.Kind // of the receipt that Pass allows
	Confirmed int          // replicas that confirm the same content, durably
	Because   string
}

// Judge says whether a detach may finish on the word of b, at which no writer can write. It may where every replica in sync
// is durable, no two comparable digests differ, and a majority of the replicas that the volume should have hold the content
// that the engine expects.
func Judge(b engine.Barrier) Verdict {
	insync := answering(b.Evidence)
	v := Verdict{Kind: receipt.KindOf(false, b.Clean, len(insync) >= b.Replicas), Confirmed: confirmed(b.Expected, insync)}
	v.Outcome, v.Because = judge(b, insync, v.Confirmed)
	return v
}

func judge(b engine.Barrier, insync []engine.Evidence, confirmed int) (Outcome, string) {
	if len(b.Unresolved) > 0 {
		return Disagree, unresolvedText(b.Unresolved)
	}
	if one, other, differ := difference(b.Expected, insync); differ {
		return Disagree, differText(one, other)
	}
	if e, all := everyDurable(insync); !all {
		return TooFew, undurableText(e)
	}
	if b.Replicas < 1 || confirmed < majority(b.Replicas) && !(mutant.MinorityConfirms && confirmed > 0) {
		return TooFew, tooFewText(b, confirmed)
	}
	return Pass, passText(b, confirmed)
}

// answering are the replicas in sync that said something, each once.
func answering(all []engine.Evidence) (out []engine.Evidence) {
	seen := map[engine.ReplicaID]bool{}
	for _, e := range all {
		if e.State == engine.InSync && e.Error == "" && !seen[e.ID] {
			out, seen[e.ID] = append(out, e), true
		}
	}
	return out
}

func attested(e engine.Evidence) bool {
	return e.DigestBy != engine.AttestNone && e.Digest.Algorithm != "" && len(e.Digest.Sum) > 0
}

// difference finds two digests of the same kind that are not the same: the engine's and a replica's, else two replicas'.
func difference(expected engine.Digest, insync []engine.Evidence) (one, other engine.ReplicaID, differ bool) {
	for _, e := range insync {
		if attested(e) && differs(expected, e.Digest) {
			return e.ID, "", true
		}
	}
	for i, e := range insync {
		for _, o := range insync[i+1:] {
			if attested(e) && attested(o) && differs(e.Digest, o.Digest) {
				return e.ID, o.ID, true
			}
		}
	}
	return "", "", false
}

func differs(a, b engine.Digest) bool { return a.Comparable(b) && !a.Equal(b) }

// confirmed is the largest number of replicas that durably hold one content, the engine's where it knows it.
func confirmed(expected engine.Digest, insync []engine.Evidence) (most int) {
	if expected.Algorithm != "" {
		return holding(expected, insync)
	}
	for _, e := range insync {
		if attested(e) {
			most = max(most, holding(e.Digest, insync))
		}
	}
	return most
}

func holding(d engine.Digest, insync []engine.Evidence) (n int) {
	for _, e := range insync {
		if e.Durable && attested(e) && e.Digest.Equal(d) {
			n++
		}
	}
	return n
}

func everyDurable(insync []engine.Evidence) (engine.Evidence, bool) {
	for _, e := range insync {
		if !e.Durable {
			return e, false
		}
	}
	return engine.Evidence{}, true
}

func majority(n int) int { return n/2 + 1 }
