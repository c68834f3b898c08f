package explorer

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

var (
	statesFlag   = flag.Int("explore.states", 0, "how many crash states to look at, all scenarios together; 0: as many as -short allows, or 40000")
	seedFlag     = flag.Uint64("explore.seed", 1, "decides the order of concurrent calls, and which states are drawn where not all are looked at")
	scenarioFlag = flag.String("explore.scenario", "", "look at this scenario only")
	stateFlag    = flag.String("explore.state", "", "with -explore.scenario: look at this state only, and tell of it")
)

// statesShort is what CI looks at.
const (
	statesShort = 12_000
	statesLong  = 40_000
)

// scenario is a run of the product's code on disks.
type scenario struct {
	name   string
	weight int // its share of the states
	// play runs in a bubble, and returns what was recorded.
	play func(t *testing.T, seed uint64) []point
	// real: the check needs real time, and no bubble.
	real bool
}

// tally counts what was looked at.
type tally struct {
	scenarios int
	points    int
	sorts     map[string]int
	opened    int
	unknown   int
	wrong     int
	took      time.Duration
}

// TestMain trades memory for time: a state is much garbage and lives a millisecond.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}

// TestExplore looks at the crash states of every scenario.
func TestExplore(t *testing.T) {
	total := *statesFlag
	switch {
	case total == 0 && testing.Short():
		total = statesShort
	case total == 0:
		total = statesLong
	}
	all := slices.DeleteFunc(scenarios(), func(s scenario) bool { return *scenarioFlag != "" && s.name != *scenarioFlag })
	if len(all) == 0 {
		t.Fatalf("no scenario %q", *scenarioFlag)
	}
	shares := 0
	for _, s := range all {
		shares += s.weight
	}
	sum, before := newSummary(t), 0
	for _, s := range all {
		before += s.weight
		sum.add(s, explore(t, s, total*before/shares-sum.all.states()))
	}
	sum.tell()
}

// explore records the scenario and looks at its states, about so many.
func explore(t *testing.T, s scenario, quota int) *tally {
	began := time.Now()
	points := record(t, s, *seedFlag)
	if t.Failed() {
		return &tally{}
	}
	states, err := choose(points, quota)
	if err != nil {
		t.Fatal(err)
	}
	out := look(t, s, points, states)
	out.points, out.took = len(points), time.Since(began)
	return out
}

// record plays the scenario. Whatever is random in the product is drawn from the seed.
func record(t *testing.T, s scenario, seed uint64) (points []point) {
	t.Run(s.name, func(t *testing.T) {
		cryptotest.SetGlobalRandom(t, seed)
		if s.real {
			points = s.play(t, seed)
			return
		}
		synctest.Test(t, func(t *testing.T) { points = s.play(t, seed) })
	})
	return points
}

// drawsMax is how many draws a random state is worth: a recording with little that is not synced has few.
const drawsMax = 4

// choose lists the states to look at, each once: those of every prefix, subsets and tears as many as there is room for, and where there is
// more room random ones. Where it finds fewer than there is room for, the next scenario has that.
func choose(points []point, quota int) ([]state, error) {
	if *stateFlag != "" {
		s, err := parseState(*stateFlag)
		if err == nil {
			err = s.fits(points)
		}
		return []state{s}, err
	}
	rng := rand.New(rand.NewPCG(*seedFlag, 8))
	prefixes, subsets, torn := enumerate(points, rng)
	rest := append(subsets, torn...)
	rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	if len(prefixes) > quota*2/3 {
		rng.Shuffle(len(prefixes), func(i, j int) { prefixes[i], prefixes[j] = prefixes[j], prefixes[i] })
		prefixes = prefixes[:quota*2/3+1]
	}
	all := append(prefixes, rest[:min(len(rest), max(0, quota-len(prefixes)))]...)
	seen := make(map[state]bool, quota)
	all = slices.DeleteFunc(all, func(s state) bool {
		again := seen[s]
		seen[s] = true
		return again
	})
	for draws := 0; len(all) < quota && draws < drawsMax*quota; draws++ {
		if s := random(points, rng); !seen[s] {
			seen[s] = true
			all = append(all, s)
		}
	}
	return all, nil
}

// failuresMax is how many wrong states of a scenario are told of.
const failuresMax = 3

// look looks at the states, on all processors.
func look(t *testing.T, s scenario, points []point, states []state) *tally {
	out := &tally{sorts: map[string]int{}}
	var mu sync.Mutex
	var next atomic.Int64
	t.Run(s.name+"/states", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker", w), func(t *testing.T) {
				t.Parallel()
				for {
					i := int(next.Add(1)) - 1
					if i >= len(states) {
						return
					}
					v, err := s.lookAt(t, &points[states[i].point], states[i])
					mu.Lock()
					out.count(states[i], v, err)
					tell := err != nil && out.wrong <= failuresMax
					mu.Unlock()
					switch {
					case tell:
						t.Errorf("%s\n%s", err, story(s, points, states[i]))
					case *stateFlag != "":
						t.Logf("as it should be\n%s", story(s, points, states[i]))
					}
				}
			})
		}
	})
	return out
}

func (s scenario) lookAt(t *testing.T, p *point, at state) (v verdict, err error) {
	remake := func() *disks { return at.disks(p) }
	if s.real {
		return p.expect.check(t, at, remake)
	}
	synctest.Test(t, func(t *testing.T) { v, err = p.expect.check(t, at, remake) })
	return v, err
}

func (c *tally) count(s state, v verdict, err error) {
	c.sorts[s.sort()]++
	switch {
	case err != nil:
		c.wrong++
	case v == opened:
		c.opened++
	default:
		c.unknown++
	}
}

func (c *tally) states() (n int) {
	for _, k := range c.sorts {
		n += k
	}
	return n
}

// story is what led to a state, and how to see it again.
func story(s scenario, points []point, at state) string {
	var b strings.Builder
	fmt.Fprintf(&b, "again: go test ./tests/crash/explorer -run TestExplore -explore.seed=%d -explore.scenario=%s -explore.state=%s\n", *seedFlag, s.name, at)
	for i := max(0, at.point-25); i < at.point; i++ {
		fmt.Fprintf(&b, "  %4d  %s\n", i, points[i].before)
	}
	fmt.Fprintf(&b, "  here, before %s; not synced was:\n", points[at.point].before)
	for i, c := range pendingOf(&points[at.point], at.off) {
		fmt.Fprintf(&b, "  %c  %s %s %d+%d\n", at.fates[i], c.Kind, c.Name, c.Offset, c.Len)
	}
	return b.String()
}

// summary is told at the end, and kept where BELAY_REPORT_DIR says. Scenarios are told of together whose names are the same up to a slash.
type summary struct {
	t      *testing.T
	began  time.Time
	told   time.Time
	names  []string
	groups map[string]*tally
	all    *tally
}

func newSummary(t *testing.T) *summary {
	return &summary{t: t, began: time.Now(), told: time.Now(), groups: map[string]*tally{}, all: &tally{sorts: map[string]int{}}}
}

// sorts are those of states, as they are told of.
var sorts = []string{"kill", "prefix", "subset", "torn"}

func (s *summary) add(of scenario, c *tally) {
	name, _, _ := strings.Cut(of.name, "/")
	if s.groups[name] == nil {
		s.names = append(s.names, name)
		s.groups[name] = &tally{sorts: map[string]int{}}
	}
	s.groups[name].plus(c)
	s.all.plus(c)
	if time.Since(s.told) > tellEvery {
		s.told = time.Now()
		fmt.Fprintf(os.Stderr, "explorer: %d states in %s, %d wrong\n", s.all.states(), time.Since(s.began).Round(time.Second), s.all.wrong)
	}
}

// tellEvery is how often a long run says how far it is.
const tellEvery = 10 * time.Second

func (c *tally) plus(o *tally) {
	c.scenarios++
	c.points += o.points
	c.opened += o.opened
	c.unknown += o.unknown
	c.wrong += o.wrong
	c.took += o.took
	for _, k := range sorts {
		c.sorts[k] += o.sorts[k]
	}
}

func line(name string, c *tally) string {
	out := fmt.Sprintf("%-16s %5d %7d %8d", name, c.scenarios, c.points, c.states())
	for _, k := range sorts {
		out += fmt.Sprintf(" %8d", c.sorts[k])
	}
	return out + fmt.Sprintf(" %8d %8d %6d %7.0f", c.opened, c.unknown, c.wrong, float64(c.states())/max(c.took.Seconds(), 1e-9))
}

func (s *summary) tell() {
	head := fmt.Sprintf("%-16s %5s %7s %8s %8s %8s %8s %8s %8s %8s %6s %7s", "scenario", "runs", "points", "states",
		"kill", "prefix", "subset", "torn", "opened", "unknown", "wrong", "per s")
	lines := []string{head}
	for _, name := range s.names {
		lines = append(lines, line(name, s.groups[name]))
	}
	lines = append(lines, line("all", s.all))
	text := fmt.Sprintf("crash explorer: seed %d, %d states in %s on %d processors\n%s\n", *seedFlag, s.all.states(),
		time.Since(s.began).Round(time.Second), runtime.GOMAXPROCS(0), strings.Join(lines, "\n"))
	s.t.Log("\n" + text)
	dir := os.Getenv("BELAY_REPORT_DIR")
	if dir == "" {
		return
	}
	if err := cmp.Or(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "explorer.txt"), []byte(text), 0o644)); err != nil {
		s.t.Error(err)
	}
}
