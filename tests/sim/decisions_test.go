package sim

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// The decisions are pure functions, and what one engine never makes of them another may. So they are drawn beside the runs: every fact, and what
// must follow from it by a second reading of DESIGN.md, which shares no code with the first.

const drawn = 200_000

// TestDecisionsDrawn: whatever the facts, a detach is answered OK, or closed, only on a proof.
func TestDecisionsDrawn(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[detach.Action]int{}
	for range drawn {
		f := drawFacts(r)
		d := detach.Decide(f)
		seen[d.Action]++
		if !admissible(f, d) {
			t.Fatalf("%+v\ncomes to %+v", f, d)
		}
		if d.Action != detach.Ask && d.Because == "" {
			t.Fatalf("%+v: nobody is told why", f)
		}
	}
	if len(seen) != 10 {
		t.Errorf("met %v: an action is missing, and the test shows less than it says", seen)
	}
}

// admissible is the second reading.
func admissible(f detach.Facts, d detach.Decision) bool {
	proof := f.Receipt || !f.Staged
	known := f.Found && f.Unavailable == "" && f.Open != nil && (f.Asked == "" || f.Asked == f.Open.Node)
	switch d.Action {
	case detach.Done:
		return !f.Found || f.Unavailable == "" && !known
	case detach.Close:
		return known && proof
	case detach.Force:
		return known && !proof && f.Override
	case detach.Fence: // only where nobody can write there any more, or somebody says that the node is lost
		gone := f.Node.Device == detach.DeviceNone || f.Node.Device == detach.DeviceLost
		return known && !proof && !f.Override && f.Quarantined == "" &&
			(f.Reach == detach.Silent && f.Lost != "" || f.Reach == detach.Answers && gone)
	case detach.Finish:
		return known && !proof && f.Reach == detach.Answers
	case detach.Unavailable:
		return f.Found && f.Unavailable != ""
	}
	return known && !proof
}

func drawFacts(r *rand.Rand) detach.Facts {
	at := volume.Attachment{Volume: volumeID, Node: nodeID, Epoch: 3}
	f := detach.Facts{Volume: volumeID, Found: r.IntN(20) > 0, Staged: r.IntN(10) > 0, Receipt: r.IntN(4) == 0, Override: r.IntN(8) == 0}
	f.Asked = pick(r, []volume.NodeID{"", nodeID, nodeID, "elsewhere"})
	f.Unavailable = pick(r, []string{"", "", "", "", "", "too few"})
	f.Quarantined = pick(r, []string{"", "", "", "", "", "copies disagree"})
	f.ReceiptFault = pick(r, []string{"", "", "", "", "", "of another writer"})
	if r.IntN(20) > 0 {
		f.Open = &at
	}
	f.Reach = pick(r, []detach.Reach{detach.Unasked, detach.Answers, detach.Answers, detach.Answers, detach.Silent})
	f.Quiet, f.Lost = "no answer", pick(r, []string{"", "its power is off"})
	f.Node = drawStatus(r, at)
	return f
}

func drawStatus(r *rand.Rand, at volume.Attachment) detach.NodeStatus {
	s := detach.NodeStatus{
		Device: pick(r, []detach.DeviceState{detach.DeviceNone, detach.DeviceAlive, detach.DeviceAlive, detach.DeviceLost, detach.DeviceUnknown}),
		Error:  pick(r, []string{"", "", "", "its journal is damaged"}), Idle: pick(r, []time.Duration{0, time.Second, time.Hour}), ForgottenAfter: time.Minute,
		Rebooted: r.IntN(4) == 0,
	}
	s.Job.Running = r.IntN(6) == 0
	if r.IntN(4) > 0 {
		e := detach.Entry{Attachment: at, Staging: staging, Phase: pick(r, []detach.Phase{detach.Staging, detach.Staged, detach.Unstaging}), Published: r.IntN(2) == 0}
		if r.IntN(5) == 0 {
			e.Attachment.Epoch = 2
		}
		if r.IntN(3) == 0 {
			e.Targets = []detach.Target{{Path: target}}
		}
		s.Entry = &e
	}
	return s
}

// TestJudgementsDrawn: whatever replicas and engine say, and however many there are, a barrier passes only where a majority of the copies that the volume should
// have durably holds one content, and nobody says anything else.
func TestJudgementsDrawn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	seen := map[detach.Outcome]int{}
	for range drawn {
		b := drawBarrier(r)
		v := detach.Judge(b)
		seen[v.Outcome]++
		if v.Outcome == detach.Pass && !proven(b) {
			t.Fatalf("%+v\npasses: %+v", b, v)
		}
	}
	if len(seen) != 3 {
		t.Errorf("met %v", seen)
	}
}

// proven is the second reading.
func proven(b engine.Barrier) bool {
	sums, ids := map[string]int{}, map[engine.ReplicaID]bool{}
	if b.Expected.Algorithm != "" {
		sums[string(b.Expected.Sum)] = 0
	}
	for _, e := range b.Evidence {
		if e.State != engine.InSync || e.Error != "" || ids[e.ID] {
			continue
		}
		ids[e.ID] = true
		if !e.Durable {
			return false
		}
		if e.DigestBy != engine.AttestNone && e.Digest.Algorithm != "" && len(e.Digest.Sum) > 0 {
			sums[string(e.Digest.Sum)]++
		}
	}
	most := 0
	for _, n := range sums {
		most = max(most, n)
	}
	return len(b.Unresolved) == 0 && len(sums) == 1 && 2*most > b.Replicas && b.Replicas > 0
}

func drawBarrier(r *rand.Rand) engine.Barrier {
	digest := func(odds int) engine.Digest {
		d := engine.Digest{Algorithm: "a", Scope: "full", Bytes: 1, Sum: []byte{1}}
		if r.IntN(odds) == 0 {
			d.Sum = []byte{2}
		}
		return d
	}
	b := engine.Barrier{Replicas: r.IntN(6), Clean: r.IntN(2) == 0}
	if r.IntN(3) > 0 {
		b.Expected = digest(12)
	}
	if r.IntN(10) == 0 {
		b.Unresolved = []engine.Finding{{}}
	}
	for i := range r.IntN(b.Replicas + 1) {
		e := engine.Evidence{Durable: r.IntN(12) > 0, Digest: digest(12), DigestBy: pick(r, []engine.Attestation{engine.AttestReplica, engine.AttestReplica, engine.AttestClaim, engine.AttestNone})}
		e.ID, e.State = engine.ReplicaID('a'+rune(max(0, i-r.IntN(2)))), pick(r, []engine.ReplicaState{engine.InSync, engine.InSync, engine.InSync, engine.Stale})
		if r.IntN(12) == 0 {
			e.Error = "no answer"
		}
		b.Evidence = append(b.Evidence, e)
	}
	return b
}

// TestElectionsDrawn: whoever answers, the configuration to go on from is the newest that any majority can have put in force, and its sources are
// members of it.
func TestElectionsDrawn(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	met := map[string]int{}
	for range drawn {
		answers, inForce, warm := drawAnswers(r)
		newest, sources, err := quorum.Elect(answers, warm)
		met[errorName(err)]++
		switch {
		case err != nil:
			continue
		case inForce.Newer(newest):
			t.Fatalf("%+v: %v is in force at a majority, and %v was elected", answers, inForce, newest)
		}
		for i := range answers {
			if sources.Has(i) && (!answers[i].Known || !newest.Members.Has(i) || warm && answers[i].Lossy) {
				t.Fatalf("%+v: %d is a source of %v", answers, i, newest)
			}
		}
		if next := quorum.NextEpoch(answers); slices.ContainsFunc(answers, func(a quorum.Answer) bool { return a.Known && (a.Promised >= next || a.Config.Epoch >= next) }) {
			t.Fatalf("%+v: epoch %d is not above what they promised", answers, next)
		}
	}
	if len(met) != 4 {
		t.Errorf("met %v", met)
	}
}

func errorName(err error) string {
	if err == nil {
		return "elected"
	}
	return err.Error()[:12]
}

// drawAnswers makes a history of configurations, each at a majority, and asks some of the voters.
func drawAnswers(r *rand.Rand) (answers []quorum.Answer, inForce quorum.Config, warm bool) {
	n := 1 + r.IntN(quorum.ReplicasMax)
	voters := make([]quorum.Voter, n)
	for i := range voters {
		voters[i].Store[0] = byte(i)
	}
	answers = make([]quorum.Answer, n)
	for step := range uint32(1 + r.IntN(4)) {
		c := quorum.Config{Epoch: 1 + volume.Epoch(step/2), Step: step, Voters: voters, Members: quorum.Set(1 + r.IntN(1<<n-1))}
		at := r.Perm(n)[:n/2+1+r.IntN(n-n/2)]
		for _, i := range at {
			answers[i].Config = c
			answers[i].Promised = max(answers[i].Promised, c.Epoch+volume.Epoch(r.IntN(2)))
		}
		inForce = c
	}
	for i := range answers {
		answers[i].Known = r.IntN(4) > 0 && len(answers[i].Config.Voters) > 0
		answers[i].Lossy = r.IntN(3) == 0
	}
	return answers, inForce, r.IntN(2) == 0
}

// TestWinnersDrawn: which copy of a block is right, by a second reading of rule 9.
func TestWinnersDrawn(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	met := map[quorum.Rule]int{}
	for range drawn {
		copies, expected, sources := drawCopies(r)
		win, rule := quorum.Winner(copies, expected)
		met[rule]++
		if right, some := rightContent(copies, expected); some != (win >= 0) || some && copies[win].Data != right || some && !copies[win].Read {
			t.Fatalf("%+v, expected %v: %d by %q; right is %v (%t)", copies, expected, win, rule, right, some)
		}
		win, rule = quorum.Recovered(copies, sources)
		met[rule]++
		right, some := rightContent(copies, nil)
		_, newest := matching(copies)
		switch {
		case some && (win < 0 || copies[win].Data != right), len(newest) > 1 && win >= 0:
			t.Fatalf("%+v: recovered %d by %q; right is %v (%t)", copies, win, rule, right, some)
		case !some && win >= 0 && (rule != quorum.BySource || !copies[win].Read || !sources.Has(copies[win].Replica)):
			t.Fatalf("%+v: recovered %d by %q", copies, win, rule)
		}
	}
	if len(met) != 6 {
		t.Errorf("met %v", met)
	}
}

// matching are the contents of those copies that agree with their own record and are of the newest version among them.
func matching(copies []quorum.Copy) (some bool, newest map[quorum.Hash]bool) {
	var best quorum.Version
	for _, c := range copies {
		if !c.Read || !c.Entry || c.Data != c.Stored {
			continue
		}
		if !some || c.Version.Newer(best) {
			best, newest = c.Version, map[quorum.Hash]bool{}
		}
		some = true
		if c.Version == best {
			newest[c.Data] = true
		}
	}
	return some, newest
}

func rightContent(copies []quorum.Copy, expected *quorum.Hash) (right quorum.Hash, some bool) {
	held := map[quorum.Hash]int{}
	for _, c := range copies {
		if c.Read {
			held[c.Data]++
		}
	}
	if expected != nil {
		return *expected, held[*expected] > 0
	}
	if any, newest := matching(copies); any {
		for h := range newest {
			right = h
		}
		return right, len(newest) == 1
	}
	for h, n := range held {
		if n > 1 && 2*n > len(copies) {
			return h, true
		}
	}
	return right, false
}

func drawCopies(r *rand.Rand) (copies []quorum.Copy, expected *quorum.Hash, sources quorum.Set) {
	hash := func() quorum.Hash { return quorum.Hash{byte(1 + r.IntN(3))} }
	for i := range 1 + r.IntN(5) {
		copies = append(copies, quorum.Copy{
			Replica: i, Read: r.IntN(6) > 0, Data: hash(), Entry: r.IntN(6) > 0, Stored: hash(), Version: quorum.Version{Epoch: uint32(r.IntN(2)), Sequence: uint64(r.IntN(2))},
		})
	}
	if r.IntN(3) == 0 {
		h := hash()
		expected = &h
	}
	return copies, expected, quorum.Set(r.IntN(32))
}
