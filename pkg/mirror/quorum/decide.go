package quorum

import (
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// Errors of a decision.
var (
	// ErrNoMajority: fewer than a majority of the voters answered with a record that can be trusted.
	ErrNoMajority = errors.New("no majority")
	// ErrNoMember: a majority answered, but no member of the newest configuration that may be the source.
	ErrNoMember = errors.New("no member of the newest configuration")
	// ErrAllLossy: every member of the newest configuration was reached, and none may be the source of a warm take-over.
	ErrAllLossy = errors.New("every member of the newest configuration lost its cache")
)

// Answer is what one voter said when it was asked. A voter that did not answer, whose record is damaged, or that is
// of another incarnation has Known false: it neither votes nor can be a source.
type Answer struct {
	Known    bool
	Promised volume.Epoch
	Config   Config
	// Lossy: it lost its cache with unsynced writes in it since it last joined.
	Lossy bool
}

// Newest returns the newest configuration of the answers that are known. ok is false where none is.
func Newest(answers []Answer) (c Config, ok bool) {
	for _, a := range answers {
		if a.Known && (!ok || a.Config.Newer(c)) {
			c, ok = a.Config, true
		}
	}
	return c, ok
}

// NextEpoch is an epoch newer than everything in the answers.
func NextEpoch(answers []Answer) volume.Epoch {
	var e volume.Epoch
	for _, a := range answers {
		if a.Known {
			e = max(e, a.Promised, a.Config.Epoch)
		}
	}
	if mutant.EpochUsedTwice {
		return max(e, 1)
	}
	return e + 1
}

// Elect decides an attach once every voter that can be reached has promised the epoch (DESIGN.md §3.1, §3.2): newest is the
// configuration to go on from, sources the promised members of it that may be the source, any of which holds
// everything reported stable. warm: the guest's device is still alive, so acknowledged but unflushed writes count
// too, and a lossy member is no source.
func Elect(answers []Answer, warm bool) (newest Config, sources Set, err error) {
	newest, ok := Newest(answers)
	if !ok {
		return newest, 0, fmt.Errorf("%w: none of the replicas' records can be read", ErrNoMajority)
	}
	known, usable := Set(0), Set(0)
	for i, a := range answers {
		if !a.Known || i >= len(newest.Voters) {
			continue
		}
		known = known.With(i)
		if newest.Members.Has(i) && !(warm && a.Lossy && !mutant.LossySource) {
			usable = usable.With(i)
		}
	}
	if mutant.AnySource {
		usable = known
	}
	if need := Majority(len(newest.Voters)); known.Len() < need {
		return newest, 0, fmt.Errorf("%w: %d of %d replicas answer, %d are needed", ErrNoMajority, known.Len(), len(newest.Voters), need)
	}
	if warm && usable == 0 && newest.Members.Without(known) == 0 {
		return newest, 0, fmt.Errorf("%w: configuration %s has members %v", ErrAllLossy, newest, newest.Members.Indexes())
	}
	if usable == 0 {
		return newest, 0, fmt.Errorf("%w: configuration %s has members %v, reached are %v", ErrNoMember, newest, newest.Members.Indexes(), known.Indexes())
	}
	return newest, usable, nil
}

// Committed says whether acceptance by these voters puts a configuration of n voters in force.
func Committed(accepted Set, n int) bool { return accepted.Len() >= Majority(n) }

// Outcome says what follows from an operation that was sent to every member.
type Outcome int

// Outcomes. Acknowledge: every member did it. Exclude: some failed; their removal must be committed at a majority before
// anything is acknowledged. Refuse: none did it, so nothing changed anywhere and the guest gets the error. Lost: the last member failed.
const (
	Acknowledge Outcome = iota
	Exclude
	Refuse
	Lost
)

// Acknowledgement decides what may be told to the guest after an operation: failed are the members that did not
// do it, harmless whether all their failures left them as they were (a full disk).
func Acknowledgement(members, failed Set, harmless bool) Outcome {
	failed &= members
	switch {
	case failed == 0:
		return Acknowledge
	case failed != members:
		return Exclude
	case harmless:
		return Refuse
	}
	return Lost
}

// Version orders the writes to a block: by the writer's epoch, then by its sequence.
type Version struct {
	Epoch    uint32
	Sequence uint64
}

// Newer says whether v is after o.
func (v Version) Newer(o Version) bool {
	return v.Epoch > o.Epoch || v.Epoch == o.Epoch && v.Sequence > o.Sequence
}

// Hash is a block's keyed checksum; zero for a block of zeros.
type Hash [16]byte

// Copy is what one replica holds of a block.
type Copy struct {
	Replica int
	Read    bool // the block could be read
	Data    Hash // checksum of what was read
	Entry   bool // its own record of the block is sound
	Stored  Hash // checksum in that record
	Version Version
}

// Match says that the copy agrees with its own record.
func (c Copy) Match() bool { return c.Read && c.Entry && c.Data == c.Stored }

// Rule says why a copy won.
type Rule string

// The rules, strongest first (DESIGN.md §3.9). They are never modification time or file size.
const (
	ByChecksum    Rule = "matches its own checksum"
	ByVersion     Rule = "newer acknowledged version"
	ByExpectation Rule = "is what the engine expects"
	ByMajority    Rule = "strict majority"
	BySource      Rule = "unflushed, any copy will do"
	ByNobody      Rule = ""
)

// Winner picks the copy of a block that is right. expected is what the engine knows the block to be, nil where it
// cannot know. Where it does know, only a copy that is that wins: a majority of equal wrong copies is still wrong.
func Winner(copies []Copy, expected *Hash) (index int, rule Rule) {
	if expected != nil {
		return expectedCopy(copies, *expected)
	}
	if i, rule, tie := matchingCopy(copies); rule != ByNobody || tie {
		return i, rule
	}
	return majorityCopy(copies)
}

// Recovered picks the copy of a block in a dirty region after a writer died: as Winner, but where no copy matches its
// record the block was written and not flushed, so that the guest was promised nothing of it and the first
// source's copy serves. (A warm take-over relies on it too: an acknowledged write is on every source.)
func Recovered(copies []Copy, sources Set) (index int, rule Rule) {
	if i, rule, tie := matchingCopy(copies); rule != ByNobody || tie {
		return i, rule
	}
	if i, rule := majorityCopy(copies); rule != ByNobody {
		return i, rule
	}
	for i, c := range copies {
		if c.Read && sources.Has(c.Replica) {
			return i, BySource
		}
	}
	return -1, ByNobody
}

func expectedCopy(copies []Copy, expected Hash) (int, Rule) {
	for i, c := range copies {
		if c.Read && c.Data == expected {
			return i, ByExpectation
		}
	}
	return -1, ByNobody
}

// matchingCopy picks the newest copy that agrees with its own record. tie: two match, are of one version, and differ.
// Nothing that they say tells them apart, and neither does the number of copies that do not even match.
func matchingCopy(copies []Copy) (best int, rule Rule, tie bool) {
	best = -1
	for i, c := range copies {
		switch {
		case !c.Match():
		case best < 0:
			best, rule = i, ByChecksum
		case c.Version.Newer(copies[best].Version):
			best, rule, tie = i, ByVersion, false
		case copies[best].Version.Newer(c.Version):
			rule = ByVersion
		default:
			tie = tie || c.Data != copies[best].Data
		}
	}
	if tie {
		return -1, ByNobody, true
	}
	return best, rule, false
}

func majorityCopy(copies []Copy) (int, Rule) {
	for i, c := range copies {
		n := 0
		for _, o := range copies {
			if c.Read && o.Read && o.Data == c.Data {
				n++
			}
		}
		if n > 1 && n >= Majority(len(copies)) {
			return i, ByMajority
		}
	}
	return -1, ByNobody
}
