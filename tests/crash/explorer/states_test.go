package explorer

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/belay-storage/belay/pkg/vfs"
)

// state is one way in which a point may end. Its text is what -explore.state takes: "17/all/+-a3" is point 17, all disks lose
// what was not synced but for the first change and parts of the third and fourth.
type state struct {
	point int
	off   int    // the disk that loses its cache; allDisks, noDisk
	fates string // one for each change that is not synced on the disks that are off, oldest first, disk by disk
}

const (
	noDisk   = -1
	allDisks = -2
)

// What becomes of a change. A digit tears it at random, the digit being the seed.
const (
	kept       = '+'
	gone       = '-'
	firstHalf  = 'a'
	secondHalf = 'z'
)

func (s state) String() string {
	off := fmt.Sprint("disk", s.off)
	switch s.off {
	case noDisk:
		off = "kill"
	case allDisks:
		off = "all"
	}
	return fmt.Sprintf("%d/%s/%s", s.point, off, s.fates)
}

func parseState(text string) (s state, err error) {
	part := strings.SplitN(text, "/", 3)
	if len(part) != 3 {
		return s, fmt.Errorf("state %q: want point/kill, point/diskN or point/all, and the fates", text)
	}
	if s.point, err = strconv.Atoi(part[0]); err != nil {
		return s, err
	}
	s.fates = part[2]
	switch {
	case part[1] == "kill":
		s.off = noDisk
	case part[1] == "all":
		s.off = allDisks
	default:
		s.off, err = strconv.Atoi(strings.TrimPrefix(part[1], "disk"))
	}
	return s, err
}

// fits says why the state is none of the recording.
func (s state) fits(points []point) error {
	if s.point < 0 || s.point >= len(points) {
		return fmt.Errorf("state %s: the recording has %d points", s, len(points))
	}
	if n := len(pendingOf(&points[s.point], s.off)); n != len(s.fates) {
		return fmt.Errorf("state %s: %d changes are not synced there, %d have a fate; is it the same seed and the same program?", s, n, len(s.fates))
	}
	return nil
}

func (s state) kind() crashKind {
	switch s.off {
	case noDisk:
		return killed
	case allDisks:
		return allOff
	}
	return oneOff
}

// sort says which kind of state it is in the summary.
func (s state) sort() string {
	switch {
	case s.off == noDisk:
		return "kill"
	case strings.ContainsAny(s.fates, "az0123456789"):
		return "torn"
	case strings.ContainsRune(s.fates, kept) && strings.ContainsRune(s.fates, gone):
		return "subset"
	}
	return "prefix"
}

// draw is a number below n, always the same for a state.
func (s state) draw(n int) int {
	h := fnv.New32a()
	fmt.Fprint(h, n, s)
	return int(h.Sum32() % uint32(n))
}

// isOff says that the disk loses what was not synced.
func (s state) isOff(disk int) bool { return s.off == allDisks || s.off == disk }

// unread are changes that nobody ever reads: who held a lock, for people. They stay.
func unread(c vfs.Change) bool { return strings.HasSuffix(c.Name, "/lock") }

// disks makes the disks of the state.
func (s state) disks(p *point) *disks {
	d := &disks{names: p.names, root: vfs.NewMem()}
	left := s.fates
	for i, image := range p.images {
		if !s.isOff(i) {
			d.mems = append(d.mems, image.Restart())
			continue
		}
		all := image.Pending()
		fates := make([]vfs.Fate, len(all))
		for k, c := range all {
			if fates[k].Survives = true; !unread(c) {
				fates[k] = fateOf(left[0], c.Sectors())
				left = left[1:]
			}
		}
		d.mems = append(d.mems, image.Crash(func(k int) vfs.Fate { return fates[k] }))
	}
	return d
}

func fateOf(f byte, sectors int) vfs.Fate {
	switch f {
	case kept:
		return vfs.Fate{Survives: true}
	case gone:
		return vfs.Fate{}
	case firstHalf:
		return vfs.Fate{Survives: true, Torn: func(i int) bool { return i < (sectors+1)/2 }}
	case secondHalf:
		return vfs.Fate{Survives: true, Torn: func(i int) bool { return i >= (sectors+1)/2 }}
	}
	rng := rand.New(rand.NewPCG(uint64(f), 6))
	return vfs.Fate{Survives: true, Torn: func(int) bool { return rng.IntN(2) == 0 }}
}

// pendingOf is what was not synced at the point on the disks that are off, and that counts.
func pendingOf(p *point, off int) (out []vfs.Change) {
	for i, image := range p.images {
		if !(state{off: off}).isOff(i) {
			continue
		}
		for _, c := range image.Pending() {
			if !unread(c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// subsetsMax is up to how many changes all subsets of them are looked at.
const subsetsMax = 10

// sampled is how many random subsets of more there are.
const sampled = 32

// enumerate lists the states of a recording: those of every prefix first, then the subsets, then the torn ones. Subsets are made where
// something is about to be made durable: there the most is not yet.
func enumerate(points []point, rng *rand.Rand) (prefixes, subsets, torn []state) {
	for n := range points {
		p := &points[n]
		prefixes = append(prefixes, state{point: n, off: noDisk})
		for _, off := range offs(len(p.images)) {
			changes := pendingOf(p, off)
			add := func(to *[]state, fates string) { *to = append(*to, state{n, off, fates}) }
			add(&prefixes, strings.Repeat(string(kept), len(changes)))
			if len(changes) == 0 {
				continue
			}
			add(&prefixes, strings.Repeat(string(gone), len(changes)))
			if p.syncs {
				eachSubset(len(changes), rng, func(fates string) { add(&subsets, fates) })
				eachTear(changes, func(fates string) { add(&torn, fates) })
			}
		}
	}
	return prefixes, subsets, torn
}

// offs are the disks of n that can be off: each, and all.
func offs(n int) []int {
	if n == 1 {
		return []int{allDisks}
	}
	out := []int{allDisks}
	for i := range n {
		out = append(out, i)
	}
	return out
}

// eachSubset calls add with every subset of n changes that is neither none nor all of them, or where there are many, with those
// that lack one, those that have one, and some random ones.
func eachSubset(n int, rng *rand.Rand, add func(string)) {
	fates := make([]byte, n)
	if n <= subsetsMax {
		for set := 1; set < 1<<n-1; set++ {
			for i := range fates {
				fates[i] = "-+"[set>>i&1]
			}
			add(string(fates))
		}
		return
	}
	for i := range n {
		for _, f := range []string{"-+", "+-"} {
			all := []byte(strings.Repeat(f[1:], n))
			all[i] = f[0]
			add(string(all))
		}
	}
	for range sampled {
		add(randomFates(make([]int, n), rng))
	}
}

// eachTear calls add with each write torn in some ways, the others there or not.
func eachTear(changes []vfs.Change, add func(string)) {
	for i, c := range changes {
		if c.Sectors() == 1 {
			continue
		}
		for _, others := range []string{string(kept), string(gone)} {
			for _, tear := range []byte{firstHalf, secondHalf, '0', '1'} {
				fates := []byte(strings.Repeat(others, len(changes)))
				fates[i] = tear
				add(string(fates))
			}
		}
	}
}

// randomFates draws a fate for each change, of which the sectors are given: with 2 or more it may be torn. How many survive differs from draw to draw.
func randomFates(sectors []int, rng *rand.Rand) string {
	fates := make([]byte, len(sectors))
	bias := rng.IntN(9)
	for i, n := range sectors {
		switch {
		case n > 1 && rng.IntN(3) == 0:
			fates[i] = byte('0' + rng.IntN(10))
		case rng.IntN(8) < bias:
			fates[i] = kept
		default:
			fates[i] = gone
		}
	}
	return string(fates)
}

// random draws a state of the recording.
func random(points []point, rng *rand.Rand) state {
	s := state{point: rng.IntN(len(points))}
	p := &points[s.point]
	all := offs(len(p.images))
	s.off = all[rng.IntN(len(all))]
	var sectors []int
	for _, c := range pendingOf(p, s.off) {
		sectors = append(sectors, c.Sectors())
	}
	s.fates = randomFates(sectors, rng)
	return s
}
