package detach

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/quick"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

var open = volume.Attachment{Volume: vol, Node: nodeA, Epoch: 7}

// inUse are the facts of a volume that a pod on nodeA uses.
func inUse() Facts {
	return Facts{
		Volume: vol, Asked: nodeA, Found: true, Open: &open, Staged: true, Reach: Answers,
		Node: NodeStatus{
			Node: nodeA, Device: DeviceAlive, ForgottenAfter: time.Minute,
			Entry: &Entry{Attachment: open, Staging: staging, Access: Mount, Phase: Staged, Targets: []Target{{Path: podA}}, Published: true},
		},
	}
}

func TestDecide(t *testing.T) {
	other := volume.Attachment{Volume: vol, Node: nodeB, Epoch: 7}
	older := Entry{Attachment: volume.Attachment{Volume: vol, Node: nodeA, Epoch: 3}, Staging: staging, Phase: Unstaging}
	cases := []struct {
		name   string
		change func(*Facts)
		want   Action
		says   string
	}{
		{"in use", func(*Facts) {}, Held, podA},
		{"unknown volume", func(f *Facts) { *f = Facts{Volume: vol} }, Done, ""},
		{"unavailable beats everything known", func(f *Facts) { f.Unavailable, f.Receipt, f.Override = "1 of 3", true, true }, Unavailable, "1 of 3"},
		{"unavailable beats not published", func(f *Facts) { f.Unavailable, f.Open = "1 of 3", nil }, Unavailable, "1 of 3"},
		{"not published", func(f *Facts) { f.Open = nil }, Done, ""},
		{"published elsewhere", func(f *Facts) { f.Open = &other }, Done, ""},
		{"any node", func(f *Facts) { f.Open, f.Asked = &other, "" }, Held, ""},
		{"never staged", func(f *Facts) { f.Staged = false }, Close, ""},
		{"never staged, quarantined", func(f *Facts) { f.Staged, f.Quarantined = false, "x" }, Close, ""},
		{"receipt", func(f *Facts) { f.Receipt = true }, Close, ""},
		{"receipt beats override", func(f *Facts) { f.Receipt, f.Override = true, true }, Close, ""},
		{"override", func(f *Facts) { f.Override = true }, Force, ""},
		{"override beats quarantine", func(f *Facts) { f.Override, f.Quarantined = true, "x" }, Force, ""},
		{"override beats a bad receipt", func(f *Facts) { f.Override, f.ReceiptFault = true, "x" }, Force, ""},
		{"override of a silent node", func(f *Facts) { f.Override, f.Reach = true, Silent }, Force, ""},
		{"quarantined", func(f *Facts) { f.Quarantined = "blocks 1" }, Quarantined, "blocks 1"},
		{"bad receipt", func(f *Facts) { f.ReceiptFault = "unknown key" }, Held, "unknown key"},
		{"unasked", func(f *Facts) { f.Reach, f.Node = Unasked, NodeStatus{} }, Ask, ""},
		{"silent", func(f *Facts) { f.Reach, f.Quiet, f.Node = Silent, "refused", NodeStatus{} }, Wait, "refused"},
		{"lost", func(f *Facts) { f.Reach, f.Lost, f.Node = Silent, "taint", NodeStatus{} }, Fence, "taint"},
		{"lost by a policy", func(f *Facts) { f.Reach, f.Presumed, f.Node = Silent, "lease", NodeStatus{} }, Fence, "lease"},
		{"lost by a policy and answers", func(f *Facts) { f.Presumed = "lease" }, Held, podA},
		{"lost and answers", func(f *Facts) { f.Lost = "taint" }, Held, podA},
		{"barrier running", func(f *Facts) { f.Node.Job.Running = true }, Finish, ""},
		{"unstaging", func(f *Facts) { f.Node.Entry.Phase = Unstaging }, Finish, ""},
		{"unstaging, device unknown", func(f *Facts) { f.Node.Entry.Phase, f.Node.Device = Unstaging, DeviceUnknown }, Finish, ""},
		{"no entry, no device", func(f *Facts) { f.Node.Entry, f.Node.Device = nil, DeviceNone }, Fence, "no entry"},
		{"no entry, lost device", func(f *Facts) { f.Node.Entry, f.Node.Device = nil, DeviceLost }, Fence, "no entry"},
		{"no entry, living device", func(f *Facts) { f.Node.Entry = nil }, Held, "no entry"},
		{"damaged entry, no device", func(f *Facts) { f.Node.Entry, f.Node.Device, f.Node.Error = nil, DeviceNone, "damaged" }, Held, "damaged"},
		{"entry of an older attachment, no device", func(f *Facts) { f.Node.Entry, f.Node.Device = &older, DeviceNone }, Fence, "no entry"},
		{"entry of an older attachment, living device", func(f *Facts) { f.Node.Entry = &older }, Held, "no entry"},
		{"lost under a pod", func(f *Facts) { f.Node.Device = DeviceLost }, Held, podA},
		{"lost, no target", func(f *Facts) { f.Node.Device, f.Node.Entry.Targets = DeviceLost, nil }, Finish, "gone"},
		{"restarted machine", func(f *Facts) { f.Node.Device, f.Node.Rebooted = DeviceNone, true }, Finish, "gone"},
		{"idle for long", func(f *Facts) { f.Node.Entry.Targets, f.Node.Idle = nil, time.Hour }, Finish, "1h0m0s ago"},
		{"idle for a moment", func(f *Facts) { f.Node.Entry.Targets, f.Node.Idle = nil, time.Second }, Held, "1s ago"},
		{"idle, clock went back", func(f *Facts) { f.Node.Entry.Targets, f.Node.Idle = nil, -time.Hour }, Held, ""},
		{"idle, device unknown", func(f *Facts) {
			f.Node.Entry.Targets, f.Node.Idle, f.Node.Device = nil, time.Hour, DeviceUnknown
		}, Held, "cannot be told"},
		{"never published", func(f *Facts) {
			f.Node.Entry.Targets, f.Node.Idle, f.Node.Entry.Published = nil, time.Hour, false
		}, Held, "not published yet"},
		{"being staged for long", func(f *Facts) {
			f.Node.Entry.Targets, f.Node.Idle, f.Node.Entry.Phase, f.Node.Device = nil, time.Hour, Staging, DeviceNone
		}, Finish, "gone"},
		{"just being staged", func(f *Facts) {
			f.Node.Entry.Targets, f.Node.Entry.Phase, f.Node.Device = nil, Staging, DeviceNone
		}, Held, "being staged"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := inUse()
			c.change(&f)
			d := Decide(f)
			if d.Action != c.want || !strings.Contains(d.Because, c.says) {
				t.Errorf("%s because %q, want %s because %q", d.Action, d.Because, c.want, c.says)
			}
			if d.Action != Ask && (d.Because == "" || d.Next == "") {
				t.Errorf("%s says neither why nor what next: %+v", d.Action, d)
			}
		})
	}
}

// TestDecideSafely draws facts at random and holds the decision against what must never happen, whatever the order of
// the rules.
func TestDecideSafely(t *testing.T) {
	check := func(seed uint64) bool {
		f := randomFacts(rand.New(rand.NewPCG(seed, 1)))
		d := Decide(f)
		return mayNot(f, d) == "" || !t.Failed() && fail(t, f, d)
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 20_000}); err != nil {
		t.Error(err)
	}
}

func fail(t *testing.T, f Facts, d Decision) bool {
	t.Errorf("%s\n%+v\n%+v", mayNot(f, d), f, d)
	return false
}

// mayNot says why d is wrong for f; it knows nothing of rules.
func mayNot(f Facts, d Decision) string {
	certain := f.Unavailable == ""
	proven := certain && (f.Open == nil || f.Asked != "" && f.Open.Node != f.Asked)
	used := f.Reach == Answers && f.Node.Entry != nil && len(f.Node.Entry.Targets) > 0 && !f.Node.Rebooted
	switch {
	case d.Action == Done && f.Found && !proven:
		return "OK without a proof"
	case d.Action == Close && !(certain && (f.Receipt || !f.Staged)):
		return "closed without a receipt although a writer attached"
	case d.Action == Fence && d.Kill && !(f.Reach == Silent && f.Lost != ""):
		return "a writer may be killed without a reason to believe it lost"
	case d.Action == Fence && f.Reach == Answers && f.Node.Device == DeviceAlive:
		return "a living writer is fenced"
	case d.Action == Force && !f.Override:
		return "forced without an override"
	case d.Action == Finish && f.Node.Entry.Phase == Staged && used && !f.Node.Job.Running:
		return "finished under a pod"
	case f.Quarantined != "" && (d.Action == Fence || d.Action == Finish):
		return "a quarantined volume is touched"
	case !certain && f.Found && d.Action != Unavailable:
		return "something else than UNAVAILABLE on the word of a minority"
	}
	return ""
}

func randomFacts(r *rand.Rand) Facts {
	text := func(chance int) string {
		if r.IntN(chance) == 0 {
			return "some cause"
		}
		return ""
	}
	yes := func() bool { return r.IntN(2) == 0 }
	f := Facts{Volume: vol, Found: r.IntN(8) > 0, Unavailable: text(8), Quarantined: text(8), Staged: r.IntN(8) > 0,
		Receipt: r.IntN(6) == 0, ReceiptFault: text(8), Override: r.IntN(8) == 0, Lost: text(2), Presumed: text(2), Quiet: "quiet"}
	f.Reach = []Reach{Unasked, Answers, Answers, Answers, Silent}[r.IntN(5)]
	f.Asked = []volume.NodeID{"", nodeA, nodeB}[r.IntN(3)]
	if r.IntN(8) > 0 {
		f.Open = &volume.Attachment{Volume: vol, Node: nodeA, Epoch: 7}
	}
	f.Node = NodeStatus{Device: []DeviceState{DeviceAlive, DeviceNone, DeviceLost, DeviceUnknown}[r.IntN(4)], Rebooted: r.IntN(4) == 0,
		Idle: time.Duration(r.IntN(120)) * time.Second, ForgottenAfter: time.Minute, Job: JobStatus{Running: r.IntN(6) == 0}, Error: text(6)}
	if r.IntN(5) > 0 {
		f.Node.Entry = &Entry{Attachment: volume.Attachment{Volume: vol, Node: nodeA, Epoch: 7 - volume.Epoch(r.IntN(2))}, Staging: staging,
			Phase: []Phase{Staging, Staged, Staged, Unstaging}[r.IntN(4)], Published: yes()}
		if yes() {
			f.Node.Entry.Targets = []Target{{Path: podA}}
		}
	}
	if f.Node.Job.Running && f.Node.Entry == nil {
		f.Node.Entry = &Entry{Attachment: open, Staging: staging, Phase: Unstaging}
	}
	return f
}

func digest(content string) engine.Digest {
	return engine.Digest{Algorithm: "test", Scope: "full", Bytes: size, Sum: engine.HexBytes(content)}
}

func says(id string, content string) engine.Evidence {
	return engine.Evidence{
		Replica: engine.Replica{ID: engine.ReplicaID(id), State: engine.InSync}, Durable: true,
		Digest: digest(content), DigestBy: engine.AttestReplica,
	}
}

func TestJudge(t *testing.T) {
	good := func() engine.Barrier {
		return engine.Barrier{Attachment: open, Clean: true, Replicas: 3, Expected: digest("x"),
			Evidence: []engine.Evidence{says("a", "x"), says("b", "x"), says("c", "x")}}
	}
	cases := []struct {
		name   string
		change func(*engine.Barrier)
		want   Outcome
		kind   receipt.Kind
		says   string
	}{
		{"all agree", func(*engine.Barrier) {}, Pass, receipt.Clean, "3 of 3"},
		{"the writer was shut out", func(b *engine.Barrier) { b.Clean = false }, Pass, receipt.Fenced, ""},
		{"one replica gone", func(b *engine.Barrier) { b.Evidence = b.Evidence[:2] }, Pass, receipt.Degraded, "2 of 3"},
		{"one unreachable", func(b *engine.Barrier) { b.Evidence[1].State = engine.Unreachable }, Pass, receipt.Degraded, ""},
		{"one stale, of other content", func(b *engine.Barrier) {
			b.Evidence[1] = says("b", "y")
			b.Evidence[1].State = engine.Stale
		}, Pass, receipt.Degraded, ""},
		{"one gone and the writer shut out", func(b *engine.Barrier) { b.Clean, b.Evidence = false, b.Evidence[:2] }, Pass, receipt.Fenced, ""},
		{"a byte was repaired", func(b *engine.Barrier) { b.Repairs = make([]engine.Repair, 1) }, Pass, receipt.Clean, ""},
		{"two replicas gone", func(b *engine.Barrier) { b.Evidence = b.Evidence[:1] }, TooFew, "", "1 of 3"},
		{"nobody answers", func(b *engine.Barrier) { b.Evidence = nil }, TooFew, "", "0 of 3"},
		{"one replica counted twice", func(b *engine.Barrier) { b.Evidence = []engine.Evidence{says("a", "x"), says("a", "x")} }, TooFew, "", "1 of 3"},
		{"one replica of one", func(b *engine.Barrier) { b.Replicas, b.Evidence = 1, b.Evidence[:1] }, Pass, receipt.Clean, ""},
		{"half of two", func(b *engine.Barrier) { b.Replicas, b.Evidence = 2, b.Evidence[:1] }, TooFew, "", "2 are needed"},
		{"how many there should be is not told", func(b *engine.Barrier) { b.Replicas = 0 }, TooFew, "", ""},
		{"one is not durable", func(b *engine.Barrier) { b.Evidence[2].Durable = false }, TooFew, "", "replica c"},
		{"one could not answer", func(b *engine.Barrier) { b.Evidence[2].Error = "EIO" }, Pass, receipt.Degraded, ""},
		{"one differs", func(b *engine.Barrier) { b.Evidence[2] = says("c", "y") }, Disagree, "", "replica c"},
		{"all differ from the engine", func(b *engine.Barrier) { b.Expected = digest("y") }, Disagree, "", "replica a"},
		{"the engine cannot know", func(b *engine.Barrier) { b.Expected = engine.Digest{} }, Pass, receipt.Clean, ""},
		{"the engine cannot know and one differs", func(b *engine.Barrier) {
			b.Expected, b.Evidence[1] = engine.Digest{}, says("b", "y")
		}, Disagree, "", "replicas a and b"},
		{"no digests", func(b *engine.Barrier) {
			for i := range b.Evidence {
				b.Evidence[i].Digest = engine.Digest{}
			}
		}, TooFew, "", "0 of 3"},
		{"nobody attests two of the digests", func(b *engine.Barrier) {
			b.Evidence[0].DigestBy, b.Evidence[1].DigestBy = engine.AttestNone, engine.AttestNone
		}, TooFew, "", "1 of 3"},
		{"digests that do not compare", func(b *engine.Barrier) {
			b.Evidence[0].Digest.Scope, b.Evidence[1].Digest.Algorithm = "delta:x", "other"
		}, TooFew, "", "1 of 3"},
		{"digests of another size", func(b *engine.Barrier) {
			for i := range b.Evidence {
				b.Evidence[i].Digest.Bytes--
			}
		}, TooFew, "", "0 of 3"},
		{"ranges for which no copy can win", func(b *engine.Barrier) {
			b.Unresolved = []engine.Finding{{Offset: 4096, Length: 4096, Cause: "rot"}}
		}, Disagree, "", "rot"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := good()
			c.change(&b)
			v := Judge(b)
			if v.Outcome != c.want || c.want == Pass && v.Kind != c.kind || !strings.Contains(v.Because, c.says) {
				t.Errorf("%+v, want %s, %s, %q", v, c.want, c.kind, c.says)
			}
		})
	}
}

// TestJudgeAgainstObvious compares Judge with the promise written down once more, slowly and without a thought of how
// Judge does it.
func TestJudgeAgainstObvious(t *testing.T) {
	seen := map[Outcome]int{}
	for seed := range uint64(20_000) {
		b := randomBarrier(rand.New(rand.NewPCG(seed, 2)))
		got, want := Judge(b).Outcome, obvious(b)
		if got != want {
			t.Fatalf("seed %d: %s, want %s for %+v", seed, got, want, b)
		}
		seen[got]++
		rand.New(rand.NewPCG(seed, 3)).Shuffle(len(b.Evidence), reflect.Swapper(b.Evidence))
		if again := Judge(b).Outcome; again != got {
			t.Fatalf("seed %d: %s, and %s in another order", seed, got, again)
		}
	}
	for _, o := range []Outcome{Pass, TooFew, Disagree} {
		if seen[o] < 500 {
			t.Errorf("%s came up %d times only", o, seen[o])
		}
	}
}

// obvious tries every content that the detach could be about.
func obvious(b engine.Barrier) Outcome {
	if len(b.Unresolved) > 0 {
		return Disagree
	}
	contents := map[string]map[engine.ReplicaID]bool{}
	kinds := map[string]map[string]bool{} // kind of digest: the sums seen
	key := func(d engine.Digest) string { return fmt.Sprint(d.Algorithm, "/", d.Scope, "/", int64(d.Bytes)) }
	see := func(d engine.Digest) {
		if kinds[key(d)] == nil {
			kinds[key(d)] = map[string]bool{}
		}
		kinds[key(d)][d.Sum.String()] = true
	}
	if b.Expected.Algorithm != "" {
		see(b.Expected)
	}
	undurable := false
	anybody := false
	for _, e := range b.Evidence {
		if e.State != engine.InSync || e.Error != "" {
			continue
		}
		undurable = undurable || !e.Durable
		if e.Digest.Algorithm == "" || e.DigestBy == "" {
			continue
		}
		anybody = true
		see(e.Digest)
		content := key(e.Digest) + "=" + e.Digest.Sum.String()
		if contents[content] == nil {
			contents[content] = map[engine.ReplicaID]bool{}
		}
		contents[content][e.ID] = true
	}
	for kind, sums := range kinds {
		if len(sums) > 1 && (anybody || kind == "") {
			return Disagree
		}
	}
	if undurable {
		return TooFew
	}
	for content, who := range contents {
		isExpected := b.Expected.Algorithm == "" || content == key(b.Expected)+"="+b.Expected.Sum.String()
		if isExpected && 2*len(who) > b.Replicas {
			return Pass
		}
	}
	return TooFew
}

func randomBarrier(r *rand.Rand) engine.Barrier {
	b := engine.Barrier{Attachment: open, Clean: r.IntN(4) > 0, Replicas: 1 + r.IntN(5)}
	if r.IntN(3) > 0 {
		b.Expected = digest("x")
	}
	if r.IntN(30) == 0 {
		b.Unresolved = make([]engine.Finding, 1)
	}
	for i := range b.Replicas {
		e := says(string(rune('a'+i)), "x")
		switch r.IntN(24) {
		case 0:
			e.Digest = digest("y")
		case 1:
			e.Durable = false
		case 2:
			e.Error = "EIO"
		case 3, 4, 5, 6:
			e.State = []engine.ReplicaState{engine.Stale, engine.Unreachable, engine.Rebuilding, engine.Unknown}[r.IntN(4)]
		case 7:
			e.Digest.Scope = "delta:x"
		case 8:
			e.DigestBy = engine.AttestNone
		case 9:
			e.Digest = engine.Digest{}
		case 10:
			continue
		}
		b.Evidence = append(b.Evidence, e)
	}
	return b
}
