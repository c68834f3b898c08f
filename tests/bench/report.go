package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// machine says where a result was measured.
type machine struct {
	Time   time.Time `json:"time"`
	Kernel string    `json:"kernel"`
	CPUs   int       `json:"cpus"`
	Load   string    `json:"load"` // averages over 1, 5 and 15 minutes at the end of the run
	Dirs   []string  `json:"dirs"`
}

func thisMachine(dirs []string) machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only for a bad pointer
	m := machine{Time: time.Now().UTC(), Kernel: unix.ByteSliceToString(u.Release[:]), CPUs: runtime.NumCPU(), Dirs: dirs}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("Linux %s, %d CPUs, load %s, in %s", m.Kernel, m.CPUs, m.Load, strings.Join(m.Dirs, " "))
}

// result is a workload on a subject, all rounds together.
type result struct {
	Workload    string    `json:"workload"`
	Subject     string    `json:"subject"`
	IOPS        float64   `json:"iops"`
	MiBps       float64   `json:"mibPerSecond"`
	P50         float64   `json:"p50us"`
	P99         float64   `json:"p99us"`
	CPU         cpuPerOp  `json:"cpuPerOp"`
	ToRaw       float64   `json:"ratioToRaw"` // median over the rounds of the ratio within a round
	ToLimit     float64   `json:"ratioToLimit"`
	IOPSInRound []float64 `json:"iopsInRound"`
}

// cpuPerOp is microseconds of CPU time for each operation; see cpuTime for what is counted.
type cpuPerOp struct {
	Fio    float64 `json:"fio"`
	Engine float64 `json:"engine"`
	Kernel float64 `json:"kernelThreads"`
}

func (c cpuPerOp) total() float64 { return c.Fio + c.Engine + c.Kernel }

// throughputReport is the outcome of a run.
type throughputReport struct {
	Machine machine  `json:"machine"`
	Seconds float64  `json:"secondsPerMeasurement"`
	Rounds  int      `json:"rounds"`
	MiB     int      `json:"sizeMiB"`
	Fresh   bool     `json:"fresh"`
	Results []result `json:"results"`
	Aims    []aim    `json:"aims"`
}

func (b *throughput) report(dirs []string) *throughputReport {
	o := b.options
	r := &throughputReport{Machine: thisMachine(dirs), Seconds: o.seconds, Rounds: o.rounds, MiB: o.mib, Fresh: o.fresh}
	for _, w := range chosen(o.only, o.fresh) {
		for _, s := range b.subjects {
			r.Results = append(r.Results, b.result(w.name, s.name()))
		}
	}
	r.Aims = throughputAims(r.Results)
	return r
}

func (b *throughput) result(workload, subject string) result {
	rounds := b.samples[key{workload, subject}]
	var all sample
	r := result{Workload: workload, Subject: subject}
	for _, s := range rounds {
		all = all.plus(s)
		r.IOPSInRound = append(r.IOPSInRound, s.iops())
	}
	r.IOPS, r.MiBps = all.iops(), ratio(all.bytes, all.seconds)/(1<<20)
	r.P50, r.P99 = microseconds(all.quantile(0.5)), microseconds(all.quantile(0.99))
	r.CPU = cpuPerOp{ratio(microseconds(all.cpu.Fio), all.ops), ratio(microseconds(all.cpu.Engine), all.ops), ratio(microseconds(all.cpu.Kernel), all.ops)}
	r.ToRaw = medianRatio(rounds, b.samples[key{workload, nameRaw}])
	r.ToLimit = medianRatio(rounds, b.samples[key{workload, nameLimit}])
	return r
}

func medianRatio(a, b []sample) float64 {
	var all []float64
	for i := range min(len(a), len(b)) {
		all = append(all, ratio(a[i].iops(), b[i].iops()))
	}
	return median(all)
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (r *throughputReport) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s\n", r.Machine)
	fmt.Fprintf(out, "%d rounds of %g s each, %d MiB, %s\n\n", r.Rounds, r.Seconds, r.MiB, map[bool]string{
		false: "everything written once before, so that nothing is allocated while it is measured",
		true:  "fresh: every measurement writes to a new, thin volume or file",
	}[r.Fresh])
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "workload\t\tIOPS\tMiB/s\tp50 µs\tp99 µs\tCPU µs/op\tfio\tengine\tkernel\tto raw\tto limit\t")
	for i, x := range r.Results {
		name := x.Workload
		if i > 0 && r.Results[i-1].Workload == name {
			name = ""
		}
		fmt.Fprintf(t, "%s\t%s\t%.0f\t%.1f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%.2f\t%.2f\t\n", name, x.Subject, x.IOPS, x.MiBps, x.P50, x.P99,
			x.CPU.total(), x.CPU.Fio, x.CPU.Engine, x.CPU.Kernel, x.ToRaw, x.ToLimit)
	}
	t.Flush()
	fmt.Fprint(out, throughputNotes)
	printAims(out, r.Aims)
}

const throughputNotes = `
Limit of 3: three raw files at once, each written with the same pattern; an operation is one on all three, a read one on any.
Its latencies are those of one file; a mirror waits for the slowest of three.
Ratios: IOPS against raw and limit within a round, the median over the rounds. Every run of writes ends in a flush that counts.
4k-write-sync: fdatasync behind each write; its percentiles are those of the write plus those of the flush.
CPU: user and system time of fio and of the engine process, and of all kernel threads of the machine while it ran.
`

// aim is what is wanted of a figure.
type aim struct {
	What     string  `json:"what"`
	Measured float64 `json:"measured"`
	Wanted   string  `json:"wanted"`
	Met      bool    `json:"met"`
}

func atLeast(what string, measured, wanted float64) aim {
	return aim{what, measured, fmt.Sprintf("at least %g", wanted), measured >= wanted}
}

func atMost(what string, measured, wanted float64) aim {
	return aim{what, measured, fmt.Sprintf("at most %g", wanted), measured <= wanted}
}

// throughputAims are those for three stores; what was not measured has none.
func throughputAims(results []result) (out []aim) {
	wanted := map[string]float64{"4k-write-qd32": 0.5, "1m-write-seq": 0.7, "1m-read-seq": 0.7}
	for _, r := range results {
		if w, ok := wanted[r.Workload]; ok && r.Subject == nameBelay3 {
			out = append(out, atLeast(r.Workload+", 3 stores: ratio to the limit", r.ToLimit, w))
		}
	}
	return out
}

func printAims(out io.Writer, aims []aim) {
	fmt.Fprintln(out)
	for _, a := range aims {
		verdict := "met"
		if !a.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(out, "aim: %s %s: %.2f, %s\n", a.What, a.Wanted, a.Measured, verdict)
	}
}

// writeJSON keeps a report; an empty name keeps none.
func writeJSON(name string, report any) error {
	if name == "" {
		return nil
	}
	b, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o644)
}
