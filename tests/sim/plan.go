package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// plan is what a seed makes of a run: how many copies, what goes wrong and how often. Each seed has only some kinds of faults, so
// that each kind is met alone and beside any other (swarm testing: Groce et al., ISSTA 2012).
type plan struct {
	profile  string
	replicas int
	stores   int
	regions  int64         // size of the volume
	streams  int           // of the guest
	sectors  bool          // the guest writes parts of blocks
	think    time.Duration // at most, between two requests of a stream
	rests    bool          // a stream does nothing for seconds now and then
	rounds   int           // attachments
	stay     time.Duration // at most, of each
	every    time.Duration // between two faults, on the average
	horizon  time.Duration // when nothing goes wrong any more
	verify   time.Duration // pace of the background verifier; 0: off
	pages    bool          // few pages of checksums stay in memory
	faults   []fault       // that the actor of faults draws from
	liar     int           // the store that lies; -1: none
	lies     map[fault]int
	boots    int // power cuts at most
}

// profile is a group of faults that may come together.
type profile struct {
	name   string
	odds   int // of its weight among all
	faults []fault
	lies   []fault
	copies int // of the volume at least
}

// Disks that fail and disks that lie do not come together: with both, the last good copy of a block may be a lie that nobody can know
// of. For the same reason no engine dies beside a disk that loses writes: what was acknowledged and not flushed is known to checksums in the
// memory of the engine alone. Bits may rot beside anything but torn blocks of good copies. And that a disk has lost its cache, and takes no record of
// that, is known to its engine alone, which nobody kills before it has said so (pkg/mirror/DESIGN.md, Unsettled blocks).
var profiles = []profile{
	{"failures", 6, join(deaths, people, asked, failures), nil, 1},
	{"lies", 1, join([]fault{hostKilled, hostKilledAt, serverKilled, serverKilledAt, nodeSilent, detachForgotten, detachInUse, detachAbandoned, stagedAgain, straggler}, asked), []fault{lostWrite, misdirected, tornWrite, bitRot}, 2},
	{"takeovers", 1, []fault{engineKilled, engineKilledAt, takeOverCut, syncError, diskAway}, nil, 1},
	{"resets", 1, []fault{cacheLost, diskAway, diskSlow, serverKilled, serverKilledAt, hostKilled, nodeSilent, detachForgotten, stagedAgain, straggler}, nil, 1},
	{"rot", 1, join(deaths, people, asked, []fault{bitRot}), []fault{bitRot}, 3},
	{ruin, 1, join([]fault{hostKilled, serverKilled, serverKilledAt, nodeSilent, detachForgotten, detachInUse}, asked, []fault{bitRot}), []fault{bitRot}, 1},
}

// ruin is the profile in which the last good copy of a block may rot. Nobody can mend that, and it must be told.
const ruin = "ruin"

var (
	deaths   = []fault{engineKilled, engineKilledAt, engineStopped, takeOverCut, hostKilled, hostKilledAt, serverKilled, serverKilledAt, bothKilled, powerCut}
	failures = []fault{writeError, syncError, readError, diskFull, diskSick, diskAway, diskSlow, diskReplaced, diskStale, diskForged}
	asked    = []fault{askedVerify, askedRebuild, askedExpand, askedElsewhere, askedAbout}
	people   = []fault{upgradeGood, upgradeBad, nodeSilent, nodeLost, detachForgotten, detachInUse, detachAbandoned, stagedAgain, straggler}
)

var oneProfile = flag.String("sim.profile", "", "draw the faults of every seed from this group")

func join(parts ...[]fault) []fault { return slices.Concat(parts...) }

func newPlan(d *dice) *plan {
	r := d.stream("plan")
	x := pickProfile(r)
	p := &plan{
		profile: x.name, replicas: max(x.copies, pick(r, []int{1, 2, 3, 3, 3, 3, 3, 4, 5})), regions: 4 + r.Int64N(2), streams: 1 + r.IntN(3),
		sectors: r.IntN(4) > 0, think: between(r, 20*time.Millisecond, 800*time.Millisecond), rounds: 1 + r.IntN(3), stay: between(r, 300*time.Millisecond, 8*time.Second),
		every: between(r, 50*time.Millisecond, 4*time.Second), pages: r.IntN(2) == 0, liar: -1, lies: map[fault]int{}, boots: r.IntN(3),
		horizon: between(r, 2*time.Second, 25*time.Second),
	}
	if p.profile == ruin {
		p.replicas = 1 + r.IntN(2)
	}
	p.rests = r.IntN(2) == 0
	p.stores = min(p.replicas+r.IntN(2), 5)
	if r.IntN(2) == 0 {
		p.verify = between(r, time.Second, 40*time.Second)
	}
	if len(x.lies) > 0 {
		p.liar = r.IntN(p.replicas)
	}
	for _, f := range x.lies {
		if r.IntN(2) == 0 {
			p.lies[f] = 1 + r.IntN(40)
		}
	}
	odds := 1 + r.IntN(3)
	for _, f := range x.faults {
		if r.IntN(3) < odds {
			p.faults = append(p.faults, f)
		}
	}
	if p.lies[bitRot] > 0 {
		p.faults = append(p.faults, bitRot)
	}
	return p
}

func pickProfile(r *rand.Rand) profile {
	total := 0
	for _, x := range profiles {
		if x.name == *oneProfile {
			return x
		}
		total += x.odds
	}
	n := r.IntN(total)
	for _, x := range profiles {
		if n -= x.odds; n < 0 {
			return x
		}
	}
	panic("unreachable")
}

func (p *plan) has(f fault) bool {
	for _, x := range p.faults {
		if x == f {
			return true
		}
	}
	return false
}

func (p *plan) String() string {
	names := make([]string, len(p.faults))
	for i, f := range p.faults {
		names[i] = string(f)
	}
	return fmt.Sprintf("%s: %d replicas on %d stores, %d regions, %d streams, think %v, %d rounds of %v, a fault every %v for %v, verify %v, few pages %t, liar %d %v, faults: %s",
		p.profile, p.replicas, p.stores, p.regions, p.streams, p.think, p.rounds, p.stay, p.every, p.horizon, p.verify, p.pages, p.liar, p.lies, strings.Join(names, ", "))
}
