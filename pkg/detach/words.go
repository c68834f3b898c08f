package detach

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
)

// The sentences of machine.go: each names the volume or node, the cause, and what to do next.

func done(because string) func(Facts) Decision {
	return func(Facts) Decision { return Decision{Action: Done, Because: because, Next: "nothing"} }
}

func closing(because string) func(Facts) Decision {
	return func(Facts) Decision {
		return Decision{Action: Close, Because: because, Next: "ControllerUnpublishVolume"}
	}
}

func finish(because string) func(Facts) Decision {
	return func(f Facts) Decision {
		return Decision{Action: Finish, Because: because + " on node " + string(f.Open.Node), Next: "wait"}
	}
}

func finishForgotten(f Facts) Decision {
	_, because := Finishable(f.Node)
	return finish(because)(f)
}

func force(f Facts) Decision {
	return Decision{Action: Force, Kill: true, Because: "an operator's override names epoch " + fmt.Sprint(f.Open.Epoch), Next: "wait"}
}

func lost(f Facts) Decision {
	return Decision{Action: Fence, Kill: f.Lost != "" || f.Presumed == "", Because: cmp.Or(f.Lost, f.Presumed), Next: "wait"}
}

func fenceUntraced(f Facts) Decision {
	because := fmt.Sprintf("node %s has no entry in its stage journal and no living device of the volume", f.Open.Node)
	return Decision{Action: Fence, Because: because, Next: "wait"}
}

func tooFew(f Facts) Decision {
	return Decision{Action: Unavailable, Because: f.Unavailable, Next: fmt.Sprintf("bring the missing replicas back; nothing was touched and nothing is lost. belay salvage %s shows what each store holds", f.Volume)}
}

func quarantined(f Facts) Decision {
	return Decision{Action: Quarantined, Because: f.Quarantined, Next: escape(f, fmt.Sprintf("look at the copies (belay salvage %s), bring the right one back, or let go of it", f.Volume))}
}

func badReceipt(f Facts) Decision {
	return Decision{Action: Held, Because: f.ReceiptFault, Next: escape(f, "give the keyring back the key that signed it, or let go of it")}
}

func silent(f Facts) Decision {
	return Decision{
		Action:  Wait,
		Because: fmt.Sprintf("node %s does not answer (%s) and nothing says that it is lost", f.Open.Node, f.Quiet),
		Next:    escape(f, "bring the node back, or declare it lost (out-of-service taint)"),
	}
}

func held(f Facts) Decision {
	return Decision{Action: Held, Because: heldText(f), Next: heldNext(f)}
}

func heldText(f Facts) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s holds it: ", f.Open.Node)
	switch {
	case !f.journalled() && f.Node.Error != "":
		b.WriteString(f.Node.Error)
	case !f.journalled():
		fmt.Fprintf(&b, "its device %s lives, and the stage journal has no entry for it", f.Node.Path)
	default:
		_, why := Finishable(f.Node)
		fmt.Fprintf(&b, "staged at %s, %s", f.Node.Entry.Staging, why)
	}
	if users := users(f.Node); len(users) > 0 {
		fmt.Fprintf(&b, " (in use: %s)", few(users))
	}
	return b.String()
}

// users are the holders that a person can end: not the mounts that the journal knows, nor what the kernel keeps for mounts.
func users(s NodeStatus) (list []string) {
	for _, h := range s.Holders {
		if !strings.HasPrefix(h, "filesystem ") && !journalled(s, h) {
			list = append(list, h)
		}
	}
	return list
}

// journalled says that the holder is a mount at a path of the journal's, in whatever mount namespace.
func journalled(s NodeStatus, holder string) bool {
	if s.Entry == nil {
		return false
	}
	known := func(path string) bool {
		return holder == "mount "+path || strings.HasPrefix(holder, "mount "+path+" (")
	}
	return known(s.Entry.Staging) || slices.ContainsFunc(s.Entry.Targets, func(t Target) bool { return known(t.Path) })
}

func heldNext(f Facts) string {
	switch {
	case !f.journalled():
		return escape(f, "NodeUnstageVolume on that node, or let go of it")
	case len(f.Node.Entry.Targets) > 0:
		return "end what uses it, then NodeUnpublishVolume and NodeUnstageVolume on that node"
	}
	return "NodeUnstageVolume on that node"
}

func escape(f Facts, first string) string {
	return fmt.Sprintf("%s: belay fence %s --epoch %d --reason …", first, f.Volume, f.Open.Epoch)
}

func paths(targets []Target) string {
	all := make([]string, len(targets))
	for i, t := range targets {
		all[i] = t.Path
	}
	return few(all)
}

// few names the first of many.
func few(all []string) string {
	const most = 3
	if rest := len(all) - most; rest > 0 {
		all = append(slices.Clone(all[:most]), fmt.Sprintf("%d more", rest))
	}
	return strings.Join(all, ", ")
}

func ago(d time.Duration) string { return d.Truncate(time.Second).String() }

func unresolvedText(u []engine.Finding) string {
	return fmt.Sprintf("%d ranges for which no copy can win, the first at offset %d, %v: %s", len(u), int64(u[0].Offset), u[0].Length, u[0].Cause)
}

func differText(one, other engine.ReplicaID) string {
	if other == "" {
		return fmt.Sprintf("replica %s does not hold what the engine expects", one)
	}
	return fmt.Sprintf("replicas %s and %s hold different content", one, other)
}

func undurableText(e engine.Evidence) string {
	return fmt.Sprintf("replica %s is in sync and has not confirmed that it is durable", e.ID)
}

func tooFewText(b engine.Barrier, confirmed int) string {
	return fmt.Sprintf("%d of %d replicas confirm the same content, %d are needed", confirmed, b.Replicas, majority(b.Replicas))
}

func passText(b engine.Barrier, confirmed int) string {
	return fmt.Sprintf("%d of %d replicas confirm the same content on stable media", confirmed, b.Replicas)
}

// progressText says how far a job is: "verify 120 MiB of 256 MiB, running for 3s".
func progressText(s JobStatus, now time.Time) string {
	since := "running for " + ago(now.Sub(s.Since))
	text := since
	if p := s.Progress; p.Phase != "" {
		text = p.Phase + ", " + since
		if p.Total > 0 {
			text = fmt.Sprintf("%s %v of %v, %s", p.Phase, p.Done, p.Total, since)
		}
	}
	if s.Failed != "" {
		text += "; the run before failed: " + s.Failed
	}
	return text
}
