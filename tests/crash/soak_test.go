package crash

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/tests/orchestrator"
)

// The soak kills, stops and upgrades engines beneath mounted volumes under load, and measures how long the guest waits. Whatever is
// done: no operation fails, what fio and the prober read is what they wrote, the kernel logs no error of the device, the mount stays
// the same one, fsck finds nothing, the stores are identical, and the receipt is clean.
//
// BELAY_SOAK is how often each is done (make soak N=1000); without it the short form runs. BELAY_REPORT is a file that gets the
// figures, too. These tests run alone, since what they measure is time.

// soakTimes is how often to do something: n in the short form, and as many as asked for, or their part, in the long one.
func soakTimes(t *testing.T, n int, part float64) int {
	t.Helper()
	text := os.Getenv("BELAY_SOAK")
	if text == "" {
		return n
	}
	all, err := strconv.Atoi(text)
	if err != nil || all < 1 {
		t.Fatalf("BELAY_SOAK=%q: want a number", text)
	}
	return max(1, int(part*float64(all)))
}

// soak is one volume under load.
type soak struct {
	*subject
	index  int // 0 or 1: things to be done can be shared out
	prober *prober
	device string
	mount  uint64
	kernel *kernelLog
	pauses map[string][]time.Duration // of the guest, by what was done
}

// onEach does the same on an ext4 and on an xfs, times in all.
func onEach(t *testing.T, name string, times int, do func(s *soak, i int)) {
	r := newRig(t)
	pauses := map[string][]time.Duration{}
	for i, fstype := range []string{"ext4", "xfs"} {
		n := (times + 1 - i) / 2
		if n == 0 {
			continue
		}
		s := &soak{index: i, subject: r.subject(name+"-"+fstype, fstype, 320*mib), pauses: pauses}
		s.under(func() {
			for k := range n {
				s.quiet()
				do(s, k)
			}
		})
	}
	r.settled()
	r.reports(t, pauses)
}

// under attaches the volume, runs do under load, and looks at everything.
func (s *soak) under(do func()) {
	s.Helper()
	s.do("attach", s.Attach)
	s.keep()
	var err error
	s.device, err = s.Device(s.Volume)
	s.must("device", err)
	s.kernel, s.mount = s.readKernelLog(), s.subject.mount()
	s.underFIO(func() {
		s.prober = s.probe()
		do()
		operations, err := s.prober.finish()
		s.must("prober", err)
		s.Logf("%s: %d operations of the prober", s.fstype, operations)
	})
	s.kernel.clean(s.rig, s.device)
	s.holds()
	s.detachesClean()
	s.do("delete", s.Delete)
}

// underFIO is undisturbed with fio alone.
func (s *soak) underFIO(do func()) {
	s.Helper()
	stop, ends := make(chan struct{}), make(chan error, 1)
	go func() { ends <- s.fioUntil(stop) }()
	defer func() { close(stop); s.ended(ends) }()
	do()
}

// holds wants the mount to be the one that it was, and the device, too.
func (s *soak) holds() {
	s.Helper()
	if now := s.subject.mount(); now != s.mount {
		s.Fatalf("mounted anew: was mount %d, is %d", s.mount, now)
	}
	if now, err := s.Device(s.Volume); err != nil || now != s.device {
		s.Fatalf("the device was %s, is %s (%v)", s.device, now, err)
	}
}

// event does something to the engine, waits until it is served again, and notes how long the guest waited.
func (s *soak) event(what string, do func()) {
	s.Helper()
	from := time.Now()
	do()
	s.must("the device after "+what, s.serving())
	s.pause(what, from)
}

// pause notes the longest operation of the guest since.
func (s *soak) pause(what string, from time.Time) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), callWithin)
	defer cancel()
	begun, took, err := s.prober.longest(ctx, from, time.Now())
	if err != nil {
		s.hung(ctx)
		s.must("the guest after "+what, err)
	}
	s.pauses[what] = append(s.pauses[what], took)
	if took >= longPause {
		s.Logf("%s: %s: the guest waited %v, from %v after it on; load %s", s.fstype, what, took.Round(time.Millisecond), begun.Sub(from).Round(time.Millisecond), loadAverage())
	}
}

// longPause is one that is told when it happens, so that it can be looked for in the server's log.
const longPause = 150 * time.Millisecond

// loadAverage is how many wanted to run on this machine within the last minute.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// account notes how long requests waited as the host has it: without what the guest's own load and this machine add.
func (s *soak) account(what string, pause time.Duration) {
	what += ", by the host's account"
	s.pauses[what] = append(s.pauses[what], pause)
}

// quietFor is how long nothing is done between two events. An engine that dies younger is no crash but a failure to start, and the
// host takes its time with the next one.
const quietFor = 2100 * time.Millisecond

// quiet waits, and notes what the guest waits for without any event: that is what the load and this machine cost.
func (s *soak) quiet() {
	s.Helper()
	time.Sleep(quietFor - quietWindow + time.Duration(s.random.Int64N(int64(300*time.Millisecond))))
	from := time.Now()
	time.Sleep(quietWindow)
	s.pause("(no event, 100 ms)", from)
}

const quietWindow = 100 * time.Millisecond

// TestSoakEngineKilled kills the engine process at random instants.
func TestSoakEngineKilled(t *testing.T) {
	onEach(t, "killed", soakTimes(t, 8, 1), func(s *soak, _ int) {
		s.event("engine killed", func() { s.must("kill", s.KillEngine(s.Context(), s.Volume)) })
		d, err := s.Served(s.Context(), s.Volume)
		s.must("device", err)
		s.account("engine killed", d.Pause)
	})
}

// reports prints the distribution of the pauses.
func (r *rig) reports(t *testing.T, pauses map[string][]time.Duration) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s, seed %d: how long the guest waited, in ms\n", t.Name(), r.seed)
	fmt.Fprintf(&b, "  %-42s %8s %8s %8s %8s %6s\n", "", "p50", "p90", "p99", "max", "n")
	for _, what := range sorted(pauses) {
		p := pauses[what]
		slices.Sort(p)
		at := func(q float64) float64 { // the least that at least the share q did not exceed
			return float64(p[int(math.Ceil(q*float64(len(p))))-1].Microseconds()) / 1000
		}
		fmt.Fprintf(&b, "  %-42s %8.1f %8.1f %8.1f %8.1f %6d\n", what, at(0.5), at(0.9), at(0.99), at(1), len(p))
	}
	r.report(t, b.String())
}

// report prints, and into the file for reports where there is one.
func (r *rig) report(t *testing.T, text string) {
	t.Helper()
	t.Log(text)
	if name := os.Getenv("BELAY_REPORT"); name != "" {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		r.must("report", err)
		defer f.Close()
		_, err = f.WriteString(text)
		r.must("report", err)
	}
}

// TestSoakMemory tells what host and engine of a volume take that was used and is idle; it judges nothing but that they can be read.
func TestSoakMemory(t *testing.T) {
	r := newRig(t)
	s := r.subject("memory", "ext4", 320*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.undisturbed(func() { s.until("records", func() (bool, error) { return s.oracle.synced.Load() > 50, nil }) })
	const idleFor = 6 * time.Second // buffers that nobody needed go back to the kernel
	time.Sleep(idleFor)
	engine, err := s.Engine(t.Context(), s.Volume)
	r.must("engine", err)
	text := t.Name() + ": MiB of memory with one volume that was used and is idle\n"
	for _, p := range []struct {
		what string
		pid  int
	}{{"host", r.Host()}, {"engine", engine}, {"server", r.PID()}} {
		m, err := orchestrator.MemoryOf(p.pid)
		r.must("memory", err)
		text += fmt.Sprintf("  %-8s RSS %5.1f, of it %5.1f its own; PSS %5.1f\n", p.what, m.Resident, m.Anonymous, m.Proportional)
	}
	r.report(t, text)
	s.detachesClean()
	s.do("delete", s.Delete)
	r.settled()
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
