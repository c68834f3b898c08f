package sim

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

var (
	seeds   = flag.Int("sim.seeds", 200, "how many seeds TestSeeds runs")
	from    = flag.Uint64("sim.from", 1, "the first of them")
	oneSeed = flag.Uint64("sim.seed", 0, "run this seed alone, and tell all that happens")
	ration  = flag.String("sim.ration", "", "for a worker: first seed, step and number")
)

// warm runs a seed for nothing: what a program does once in its life is not done in the first seed then.
var warm sync.Once

// outcome is what became of one seed.
type outcome struct {
	Seed       uint64        `json:"seed"`
	Failure    string        `json:"failure,omitempty"`
	Simulated  time.Duration `json:"simulated"`
	Faults     map[fault]int `json:"faults"`
	Operations int           `json:"operations"` // of the guest, checked
	States     int           `json:"states"`     // in which the invariants were checked
	Receipts   int           `json:"receipts"`
	Hash       uint64        `json:"hash"`
}

// simulate runs one seed.
func simulate(t *testing.T, seed uint64, mode traceMode) (out outcome, told string) {
	t.Helper()
	warm.Do(func() { run(t, 0, traceNothing) })
	return run(t, seed, mode)
}

func run(t *testing.T, seed uint64, mode traceMode) (out outcome, told string) {
	t.Helper()
	defer calm()()
	cryptotest.SetGlobalRandom(t, seed) // identities are random, and files are named by them
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		w := newWorld(seed, mode)
		err := w.run()
		w.trace.add(w.contents)
		out = outcome{
			Seed: seed, Simulated: time.Since(began), Faults: w.faults, Operations: w.operations, States: w.invariants.checks, Receipts: w.invariants.receipts,
			Hash: w.trace.hash,
		}
		if err != nil {
			out.Failure = err.Error()
		}
		told = w.trace.String()
	})
	return out, told
}

// calm has one goroutine run at a time, and nothing else but it: the collector of garbage would interrupt it, and another one go on that
// could go on at the same simulated moment.
func calm() (end func()) {
	processors, percent := runtime.GOMAXPROCS(1), debug.SetGCPercent(-1)
	limit := debug.SetMemoryLimit(memoryMax)
	return func() {
		runtime.GOMAXPROCS(processors)
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}
}

// memoryMax is where garbage is collected in the middle of a run after all.
const memoryMax = 1500 << 20

// TestSeeds runs seeds, on all processors, and tells what was met. A seed that fails is told with all that happened in it.
func TestSeeds(t *testing.T) {
	switch {
	case *oneSeed != 0:
		out, told := simulate(t, *oneSeed, traceAll)
		t.Logf("%s\n%+v", told, out)
		if out.Failure != "" {
			t.Errorf("seed %d: %s", *oneSeed, out.Failure)
		}
	case *ration != "":
		work(t)
	default:
		share(t)
	}
}

// work is a worker: it runs its ration and says so line by line.
func work(t *testing.T) {
	var first, step uint64
	var n int
	if _, err := fmt.Sscanf(*ration, "%d,%d,%d", &first, &step, &n); err != nil {
		t.Fatal(err)
	}
	lines := json.NewEncoder(os.NewFile(3, "lines"))
	var memory runtime.MemStats
	for seed := first; n > 0; seed, n = seed+step, n-1 {
		must(t, lines.Encode(outcome{Seed: seed}))
		out, _ := simulate(t, seed, traceNothing)
		if runtime.ReadMemStats(&memory); memory.HeapAlloc > memoryMax/8 {
			runtime.GC()
		}
		must(t, lines.Encode(out))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// share runs the seeds in as many workers as there are processors.
func share(t *testing.T) {
	workers := min(runtime.NumCPU(), *seeds)
	s := &summary{begun: time.Now(), faults: map[fault]int{}}
	var wg sync.WaitGroup
	for i := range workers {
		n := (*seeds - i + workers - 1) / workers
		wg.Go(func() { s.worker(t, *from+uint64(i), uint64(workers), n) })
	}
	wg.Wait()
	s.tell(t)
}

// summary is what all seeds together have met.
type summary struct {
	begun time.Time

	mu         sync.Mutex
	seeds      int
	simulated  time.Duration
	operations int
	states     int
	receipts   int
	faults     map[fault]int
	failed     []outcome
	told       time.Time
}

// patienceReal is how long a seed may take. It needs milliseconds: one that takes so long hangs.
const patienceReal = 3 * time.Minute

// worker runs seeds in a process of its own, and another one after a seed that has killed it.
func (s *summary) worker(t *testing.T, first, step uint64, n int) {
	for n > 0 {
		at, done, output, err := s.process(t, first, step, n)
		if err == nil {
			return
		}
		s.add(t, outcome{Seed: at, Failure: fmt.Sprintf("its process ended: %v\n%s", err, tail(output, 6000))})
		first, n = at+step, n-done-1
	}
}

func tail(text string, n int) string { return text[max(0, len(text)-n):] }

func (s *summary) process(t *testing.T, first, step uint64, n int) (at uint64, done int, output string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return first, 0, "", err
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestSeeds$", "-test.timeout=0", fmt.Sprintf("-sim.ration=%d,%d,%d", first, step, n), "-sim.profile="+*oneProfile)
	var text strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &text, &text, []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return first, 0, "", err
	}
	at = first
	hang := time.AfterFunc(patienceReal, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer hang.Stop()
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var o outcome
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			continue
		}
		hang.Reset(patienceReal)
		if at = o.Seed; o.Hash != 0 || o.Simulated != 0 {
			done++
			s.add(t, o)
		}
	}
	return at, done, text.String(), cmd.Wait()
}

func (s *summary) add(t *testing.T, o outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds++
	s.simulated += o.Simulated
	s.operations += o.Operations
	s.states += o.States
	s.receipts += o.Receipts
	for f, n := range o.Faults {
		s.faults[f] += n
	}
	if o.Failure != "" {
		s.failed = append(s.failed, o)
		t.Errorf("seed %d: %s\n    again: go test ./tests/sim -run TestSeeds -v -sim.seed=%d", o.Seed, o.Failure, o.Seed)
	}
	if time.Since(s.told) > 30*time.Second {
		s.told = time.Now()
		fmt.Fprintf(os.Stderr, "sim: %d of %d seeds, %.0f simulated hours, %d failed\n", s.seeds, *seeds, s.simulated.Hours(), len(s.failed))
	}
}

// tell prints the table, also into the directory of reports.
func (s *summary) tell(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "simulation: seeds %d to %d: %d failed, %.1f simulated hours in %v, %d operations of the guest, %d states checked, %d receipts\n",
		*from, *from+uint64(*seeds)-1, len(s.failed), s.simulated.Hours(), time.Since(s.begun).Round(time.Second), s.operations, s.states, s.receipts)
	names := make([]string, 0, len(s.faults))
	for f := range s.faults {
		names = append(names, string(f))
	}
	slices.Sort(names)
	for _, f := range names {
		fmt.Fprintf(&b, "  %-50s %9d\n", f, s.faults[fault(f)])
	}
	t.Log("\n" + b.String())
	if dir := os.Getenv("BELAY_REPORT_DIR"); dir != "" {
		must(t, errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "sim.txt"), []byte(b.String()), 0o644)))
	}
}
