package explorer

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var failFlag = flag.String("fail.run", "", "one run of TestFailEveryCall, such as life/3/s0/EIO/once/17, to see what it does")

// failShort is how many runs CI makes of each kind of fault, spread over all calls.
const failShort = 15

// newCourse returns the course of the plan, with its steps.
func newCourse(p plan) (*course, []courseStep) {
	c := &course{
		disks: newDisks(yardDisks(p.stores)...), fault: &fault{plan: p}, anew: p.n%2 == 0,
		truth: &truth{stores: p.stores, blocks: map[int64]*content{}},
	}
	c.fault.lose = func(name string) {
		if err := c.disks.at(name).LoseUnsynced(name, nil); err != nil {
			panic(err)
		}
	}
	if p.course == "life" {
		return c, c.life()
	}
	g := newSalvaging()
	if err := g.prepare(c.disks); err != nil {
		panic(err)
	}
	c.away = []string{"s1", "s2"}
	return c, g.steps(c)
}

// calls is how many calls of a course could fail as planned.
func calls(t *testing.T, p plan) (n int) {
	p.n = 0
	synctest.Test(t, func(t *testing.T) {
		c, steps := newCourse(p)
		if err := c.run(steps); err != nil {
			t.Fatal(err)
		}
		n = c.fault.seen
	})
	return n
}

// TestFailEveryCall fails each call of the file system in turn that the life of a volume, or a salvage, makes on a disk, in every way, once or for ever:
// each step ends well, or with an error, and then does when it is asked for again, in the same process or a new one. Nothing that was promised
// is gone, no lock is left, nothing hangs.
func TestFailEveryCall(t *testing.T) {
	var all []plan
	for _, where := range []plan{
		{course: "life", stores: 1, disk: "s0"}, {course: "life", stores: 1, disk: stateDisk},
		{course: "life", stores: 3, disk: "s0"}, {course: "life", stores: 3, disk: "s1"}, {course: "life", stores: 3, disk: stateDisk},
		{course: "salvage", stores: 3, disk: "s0"}, {course: "salvage", stores: 3, disk: stateDisk},
	} {
		for _, where.kind = range faultKinds {
			for _, where.forever = range []bool{false, true} {
				all = append(all, runsOf(t, where)...)
			}
		}
	}
	if *failFlag != "" {
		all = slices.DeleteFunc(all, func(p plan) bool { return p.String() != *failFlag })
	}
	told := newFailures(t)
	each(t, len(all), func(t *testing.T, i int) { told.add(all[i], runFailing(t, all[i])) })
	told.tell()
}

// runsOf are the runs with such a fault at each call, or at some that are spread over all.
func runsOf(t *testing.T, p plan) (out []plan) {
	n := calls(t, p)
	stride := 1
	if testing.Short() && *failFlag == "" {
		stride = max(1, n/failShort)
	}
	for p.n = 1 + int(*seedFlag)%stride; p.n <= n; p.n += stride {
		out = append(out, p)
	}
	return out
}

// each calls do with 0 to n-1, on all processors.
func each(t *testing.T, n int, do func(t *testing.T, i int)) {
	var next atomic.Int64
	t.Run("runs", func(t *testing.T) {
		for w := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker", w), func(t *testing.T) {
				t.Parallel()
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					do(t, i)
				}
			})
		}
	})
}

// outcome is what came of a run.
type outcome struct {
	failed []string // steps that failed and did when they were asked for again
	hit    string
	err    error
}

func runFailing(t *testing.T, p plan) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		c, steps := newCourse(p)
		o.err = c.run(steps)
		o.failed, o.hit = c.failed, c.fault.happened()
	})
	return o
}

// failures are told of together.
type failures struct {
	t     *testing.T
	began time.Time
	mu    sync.Mutex
	runs  map[string]int // by kind of fault
	hit   int
	clean int            // ended as if there had been no fault
	steps map[string]int // how often a step failed
	wrong int
}

func newFailures(t *testing.T) *failures {
	return &failures{t: t, began: time.Now(), runs: map[string]int{}, steps: map[string]int{}}
}

func (f *failures) add(of plan, o outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.runs[of.kind.name]++
	if o.hit != "" {
		f.hit++
	}
	if len(o.failed) == 0 {
		f.clean++
	}
	for _, s := range o.failed {
		step, _, _ := strings.Cut(s, ":")
		f.steps[fmt.Sprint(of.course, " ", of.stores, " ", of.disk, ": ", step)]++
	}
	if *failFlag != "" {
		f.t.Logf("%s: %q failed: %q, %v", of, o.hit, o.failed, o.err)
	}
	if o.err == nil {
		return
	}
	if f.wrong++; f.wrong <= 10 {
		f.t.Errorf("%v\n  %q was failed; steps that failed: %q\n  again: go test ./tests/crash/explorer -run TestFailEveryCall -fail.run=%s", o.err, o.hit, o.failed, of)
	}
}

func (f *failures) tell() {
	total := 0
	text := "every call failed in turn:"
	for _, k := range slices.Sorted(maps.Keys(f.runs)) {
		total += f.runs[k]
		text += fmt.Sprintf(" %s %d,", k, f.runs[k])
	}
	text += fmt.Sprintf(" %d runs in all in %s; the fault came up in %d, no step failed in %d, wrong %d\nsteps that failed and did when asked for again, by stores and the disk of the fault:\n",
		total, time.Since(f.began).Round(time.Second), f.hit, f.clean, f.wrong)
	for _, k := range slices.Sorted(maps.Keys(f.steps)) {
		text += fmt.Sprintf("  %-28s %6d\n", k, f.steps[k])
	}
	f.t.Log("\n" + text)
	if dir := os.Getenv("BELAY_REPORT_DIR"); dir != "" {
		if err := cmp.Or(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "failed-calls.txt"), []byte(text), 0o644)); err != nil {
			f.t.Error(err)
		}
	}
}
