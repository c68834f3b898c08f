package detach

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		_, err := w.gate.Why(w.ctx(), vol)
		w.refused(err, engine.ErrNotFound, string(vol))
		w.use()
		w.show(podA)
		why(w, Held, "pvc-1 (the claim)", "to node node-a", "mounted at "+podA, "Healthy", "memory-2", "receipts   none", "NodeUnpublishVolume")
		w.hide(podA)
		w.must(w.agent.Unstage(w.ctx(), vol, staging))
		why(w, Close, "sealed: nobody can write", "the newest clean of 2000-01-01", "ControllerUnpublishVolume")
		w.must(w.unpublish())
		if r := why(w, Done, "attached   no"); !r.Detached || r.Receipts != 1 || r.Receipt.Kind != receipt.Clean {
			t.Errorf("report %+v", r)
		}
		for doubt, word := range map[engine.Doubt]string{engine.Unchecked: "ext4, not checked", engine.Damaged: "ext4, DAMAGED"} {
			w.must(w.mem.SetFormat(w.ctx(), vol, engine.Format{Stage: engine.Formatted, FSType: "ext4", Doubt: doubt}))
			why(w, Done, "filesystem "+word)
		}
		w.mem.Down(w.mem.Replicas()[0])
		w.mem.Down(w.mem.Replicas()[1])
		if r := why(w, Unavailable, "cannot be told", "Unreachable", "bring the missing replicas back"); r.Detached {
			t.Error("detached, says a minority")
		}
	})
}

func why(w *world, want Action, words ...string) Report {
	w.t.Helper()
	r, err := w.gate.Why(w.ctx(), vol)
	w.must(err)
	if r.Answer != want {
		w.t.Errorf("answer %s, want %s", r.Answer, want)
	}
	text := r.Text()
	for _, word := range words {
		if !strings.Contains(text, word) {
			w.t.Errorf("does not say %q:\n%s", word, text)
		}
	}
	if lines := strings.Count(text, "\n"); lines > 24 {
		w.t.Errorf("%d lines are more than a screen:\n%s", lines, text)
	}
	if _, err := json.Marshal(r); err != nil {
		w.t.Error(err)
	}
	return r
}

// A refusal names who a person can end, and not the mounts that the journal names already.
func TestHeldNamesUsers(t *testing.T) {
	f := Facts{Volume: "data", Open: &volume.Attachment{Volume: "data", Node: "n1", Epoch: 2}, Staged: true, Found: true, Reach: Answers, Node: NodeStatus{
		Entry:  &Entry{Attachment: volume.Attachment{Volume: "data", Node: "n1", Epoch: 2}, Staging: "/staging", Targets: []Target{{Path: "/target"}}},
		Device: DeviceAlive,
		Holders: []string{"mount /staging", "mount /target", "mount /target (process 1, init)", "mount /data (process 7, sh)", "filesystem /proc/fs/ext4/loop0",
			"process /data/a (process 8, a)", "process /data/b (process 9, b)", "process /data/c (process 10, c)"},
	}}
	d := Decide(f)
	if want := "(in use: mount /data (process 7, sh), process /data/a (process 8, a), process /data/b (process 9, b), 1 more)"; d.Action != Held || !strings.Contains(d.Because, want) {
		t.Errorf("%s: %s", d.Action, d.Because)
	}
}
