package quorum

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/belay-storage/belay/pkg/volume"
)

func voters(n int) (out []Voter) {
	for i := range n {
		out = append(out, Voter{Store: UUID{byte(i + 1)}, Incarnation: UUID{byte(i + 1), 1}})
	}
	return out
}

func config(n int, epoch volume.Epoch, step uint32, members ...int) Config {
	return Config{Epoch: epoch, Step: step, Voters: voters(n), Members: SetOf(members...)}
}

func says(c Config) Answer { return Answer{Known: true, Promised: c.Epoch, Config: c} }

func TestElect(t *testing.T) {
	all := config(3, 4, 1, 0, 1, 2)
	less := config(3, 4, 2, 0, 1)
	alone := config(3, 4, 3, 0)
	lossy := says(all)
	lossy.Lossy = true
	lossyAlone := says(alone)
	lossyAlone.Lossy = true
	silent := Answer{}
	for _, c := range []struct {
		name    string
		answers []Answer
		warm    bool
		newest  Config
		sources Set
		err     error
	}{
		{"all answer", []Answer{says(all), says(all), says(all)}, false, all, SetOf(0, 1, 2), nil},
		{"a majority answers", []Answer{says(all), silent, says(all)}, false, all, SetOf(0, 2), nil},
		{"one of three is no majority", []Answer{says(all), silent, silent}, false, all, 0, ErrNoMajority},
		{"nobody answers", []Answer{silent, silent, silent}, false, Config{}, 0, ErrNoMajority},
		{"the newest configuration counts", []Answer{silent, says(less), says(all)}, false, less, SetOf(1), nil},
		{"a majority without a member of the newest", []Answer{silent, says(alone), says(all)}, false, alone, 0, ErrNoMember},
		{"the excluded one is no source", []Answer{says(less), silent, says(all)}, false, less, SetOf(0), nil},
		{"cold: a lossy member may be the source", []Answer{lossy, lossy, silent}, false, all, SetOf(0, 1), nil},
		{"warm: it may not", []Answer{lossy, says(all), silent}, true, all, SetOf(1), nil},
		{"warm: all lossy", []Answer{lossy, lossy, lossy}, true, all, 0, ErrAllLossy},
		{"warm: those that answer are lossy", []Answer{lossy, lossy, silent}, true, all, 0, ErrNoMember},
		{"warm: the only member is lossy", []Answer{lossyAlone, says(all), silent}, true, alone, 0, ErrAllLossy},
		{"warm: the only member is lossy, and no majority says that it is the only one", []Answer{lossyAlone, silent, silent}, true, alone, 0, ErrNoMajority},
	} {
		t.Run(c.name, func(t *testing.T) {
			newest, sources, err := Elect(c.answers, c.warm)
			if !errors.Is(err, c.err) || !newest.Same(c.newest) || sources != c.sources {
				t.Errorf("got %v, sources %v, %v; want %v, %v, %v", newest, sources.Indexes(), err, c.newest, c.sources.Indexes(), c.err)
			}
		})
	}
}

// TestElectSeesEveryCommit: whatever a majority has accepted is seen by every later election, for every number of voters:
// any two majorities meet (I7).
func TestElectSeesEveryCommit(t *testing.T) {
	for n := 1; n <= ReplicasMax; n++ {
		old, committed := config(n, 2, 1, All(n).Indexes()...), config(n, 4, 1, All(n).Indexes()...)
		for accepted := range All(n) + 1 {
			for reached := range All(n) + 1 {
				if !Committed(accepted, n) || reached.Len() < Majority(n) {
					continue
				}
				answers := make([]Answer, n)
				for _, i := range reached.Indexes() {
					answers[i] = says(old)
					if accepted.Has(i) {
						answers[i] = says(committed)
					}
				}
				if newest, _, err := Elect(answers, false); err != nil || !newest.Same(committed) {
					t.Fatalf("%d voters, accepted by %v, reached %v: %v, %v", n, accepted.Indexes(), reached.Indexes(), newest, err)
				}
			}
		}
	}
}

// TestElectWarm: for every state of three voters, a source of a warm take-over is a member that has the newest configuration seen and kept its
// cache, and that there is none is final only where no member was missed.
func TestElectWarm(t *testing.T) {
	for members := SetOf(0); members <= All(3); members++ {
		newest, older := config(3, 4, 2, members.Indexes()...), config(3, 4, 1, 0, 1, 2)
		kept, lost := says(newest), says(newest)
		lost.Lossy = true
		states := []Answer{{}, kept, lost, says(older)}
		for n := range len(states) * len(states) * len(states) {
			answers := []Answer{states[n%4], states[n/4%4], states[n/16]}
			seen, sources, err := Elect(answers, true)
			if err == nil && sources == 0 || err != nil && sources != 0 {
				t.Fatalf("members %v, answers %+v: sources %v, %v", members.Indexes(), answers, sources.Indexes(), err)
			}
			missed := 0
			for i, a := range answers {
				if want := err == nil && a.Known && !a.Lossy && seen.Members.Has(i); sources.Has(i) != want {
					t.Fatalf("members %v, answers %+v: voter %d is a source: %v", members.Indexes(), answers, i, sources.Has(i))
				}
				if seen.Members.Has(i) && !a.Known {
					missed++
				}
			}
			if errors.Is(err, ErrAllLossy) && missed > 0 || errors.Is(err, ErrNoMember) && missed == 0 {
				t.Fatalf("members %v, answers %+v, of the members %d missed: %v", members.Indexes(), answers, missed, err)
			}
		}
	}
}

func TestNextEpoch(t *testing.T) {
	promised := says(config(3, 4, 1, 0))
	promised.Promised = 9
	unknown := Answer{Promised: 50}
	if e := NextEpoch([]Answer{says(config(3, 5, 7, 0)), promised, unknown}); e != 10 {
		t.Errorf("got %d, want 10: above every promise that can be trusted", e)
	}
}

func TestAcknowledgement(t *testing.T) {
	members := SetOf(0, 1, 2)
	for _, c := range []struct {
		failed   Set
		harmless bool
		want     Outcome
	}{
		{0, false, Acknowledge}, {SetOf(3), false, Acknowledge}, // a target that fails holds up nobody
		{SetOf(1), false, Exclude}, {SetOf(1), true, Exclude}, {SetOf(0, 2), false, Exclude},
		{members, true, Refuse}, {members, false, Lost}, {members.With(4), false, Lost},
	} {
		if got := Acknowledgement(members, c.failed, c.harmless); got != c.want {
			t.Errorf("failed %v, harmless %v: got %v, want %v", c.failed.Indexes(), c.harmless, got, c.want)
		}
	}
}

func held(replica int, data, stored byte, version uint64) Copy {
	return Copy{Replica: replica, Read: true, Data: Hash{data}, Entry: true, Stored: Hash{stored}, Version: Version{1, version}}
}

func TestWinner(t *testing.T) {
	unread := Copy{Replica: 2}
	noEntry := func(r int, data byte) Copy { return Copy{Replica: r, Read: true, Data: Hash{data}} }
	right, wrong := Hash{7}, Hash{9}
	for _, c := range []struct {
		name     string
		copies   []Copy
		expected *Hash
		index    int
		rule     Rule
	}{
		{"one matches its checksum", []Copy{held(0, 1, 7, 3), held(1, 7, 7, 3), held(2, 2, 7, 3)}, nil, 1, ByChecksum},
		{"two equal wrong copies lose to one that matches", []Copy{held(0, 1, 7, 3), held(1, 1, 7, 3), held(2, 7, 7, 3)}, nil, 2, ByChecksum},
		{"newer version", []Copy{held(0, 5, 5, 3), held(1, 7, 7, 4), held(2, 5, 5, 3)}, nil, 1, ByVersion},
		{"newer version, seen last", []Copy{held(0, 7, 7, 4), held(1, 5, 5, 3)}, nil, 0, ByVersion},
		{"a newer epoch beats a longer sequence", []Copy{{Read: true, Data: right, Entry: true, Stored: right, Version: Version{2, 1}}, held(1, 5, 5, 99)}, nil, 0, ByVersion},
		{"two matching copies of one version that differ", []Copy{held(0, 5, 5, 3), held(1, 7, 7, 3)}, nil, -1, ByNobody},
		{"none matches, two are equal", []Copy{held(0, 1, 7, 3), held(1, 2, 7, 3), held(2, 2, 7, 3)}, nil, 1, ByMajority},
		{"none matches, all differ", []Copy{held(0, 1, 7, 3), held(1, 2, 7, 3), held(2, 3, 7, 3)}, nil, -1, ByNobody},
		{"two of four are no strict majority", []Copy{held(0, 1, 7, 3), held(1, 1, 7, 3), held(2, 2, 7, 3), held(3, 3, 7, 3)}, nil, -1, ByNobody},
		{"a single copy is no majority of itself", []Copy{held(0, 1, 7, 3)}, nil, -1, ByNobody},
		{"entries lost, content equal", []Copy{noEntry(0, 1), noEntry(1, 1), unread}, nil, 0, ByMajority},
		{"expected", []Copy{held(0, 1, 7, 3), held(1, 7, 1, 3)}, &right, 1, ByExpectation},
		{"what is expected beats a checksum", []Copy{held(0, 1, 1, 9), held(1, 7, 7, 3)}, &right, 1, ByExpectation},
		{"equal wrong copies are still wrong", []Copy{held(0, 1, 7, 3), held(1, 1, 7, 3), held(2, 1, 7, 3)}, &wrong, -1, ByNobody},
		{"nothing could be read", []Copy{unread}, nil, -1, ByNobody},
	} {
		t.Run(c.name, func(t *testing.T) {
			if i, rule := Winner(c.copies, c.expected); i != c.index || rule != c.rule {
				t.Errorf("got %d %q, want %d %q", i, rule, c.index, c.rule)
			}
		})
	}
}

func TestRecoveredTakesASourceWhereNothingWasPromised(t *testing.T) {
	copies := []Copy{held(0, 1, 7, 3), held(1, 2, 7, 3), held(2, 3, 7, 3)}
	if i, rule := Recovered(copies, SetOf(1, 2)); i != 1 || rule != BySource {
		t.Errorf("got %d %q, want the first source", i, rule)
	}
	copies[0] = held(0, 7, 7, 3) // flushed there
	if i, rule := Recovered(copies, SetOf(1, 2)); i != 0 || rule != ByChecksum {
		t.Errorf("got %d %q, want the flushed copy", i, rule)
	}
}

// obvious is Winner without an expectation, written the long way.
func obvious(copies []Copy) map[Hash]bool {
	best, good := Version{}, map[Hash]bool{}
	for _, c := range copies {
		if c.Match() && c.Version.Newer(best) {
			best = c.Version
		}
	}
	anyMatch := false
	for _, c := range copies {
		anyMatch = anyMatch || c.Match()
		if c.Match() && c.Version == best {
			good[c.Data] = true
		}
	}
	if anyMatch {
		return good
	}
	count := map[Hash]int{}
	for _, c := range copies {
		if c.Read {
			count[c.Data]++
		}
	}
	for h, n := range count {
		if 2*n > len(copies) && n > 1 {
			good[h] = true
		}
	}
	return good
}

// TestWinnerAgainstTheObvious: a winner is the one content that the long way allows; where that allows none or two, nobody wins.
func TestWinnerAgainstTheObvious(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		copies := make([]Copy, 1+rng.IntN(ReplicasMax))
		for i := range copies {
			copies[i] = Copy{
				Replica: i, Read: rng.IntN(8) > 0, Entry: rng.IntN(8) > 0, Data: Hash{byte(rng.IntN(3))}, Stored: Hash{byte(rng.IntN(3))},
				Version: Version{1 + uint32(rng.IntN(2)), 1 + uint64(rng.IntN(2))},
			}
		}
		want := obvious(copies)
		i, rule := Winner(copies, nil)
		switch {
		case rule == ByNobody && len(want) == 1:
			t.Fatalf("%s: nobody won, want %v", show(copies), want)
		case rule != ByNobody && (len(want) != 1 || !want[copies[i].Data]):
			t.Fatalf("%s: %d won by %q, want %v", show(copies), i, rule, want)
		}
	}
}

func show(copies []Copy) string { return fmt.Sprintf("%+v", copies) }

func TestUUIDText(t *testing.T) {
	var u UUID
	if err := u.UnmarshalText([]byte("0102030405060708090a0b0c0d0e0f10")); err != nil || u[15] != 16 {
		t.Fatal(u, err)
	}
	for _, bad := range []string{"", "01", "zz02030405060708090a0b0c0d0e0f10", u.String() + "00"} {
		if err := u.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
