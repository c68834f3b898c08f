package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

func TestQuantile(t *testing.T) {
	h := histogram{}
	h.add(map[string]int64{"10": 50, "20": 49, "1000": 1, "none": 7})
	for q, want := range map[float64]time.Duration{0: 10, 0.5: 10, 0.51: 20, 0.99: 20, 0.995: 1000, 1: 1000} {
		if got := h.quantile(q); got != want {
			t.Errorf("quantile %g is %d, want %d", q, got, want)
		}
	}
	if got := (histogram{}).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
}

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{0: nil, 3: {3}, 2: {1, 3}, 5: {9, 1, 5}} {
		if got := median(values); got != want {
			t.Errorf("median of %v is %g, want %g", values, got, want)
		}
	}
}

// TestRatioIsWithinARound: a machine that is twice as slow in one round changes no ratio.
func TestRatioIsWithinARound(t *testing.T) {
	at := func(iops ...float64) (out []sample) {
		for _, n := range iops {
			out = append(out, sample{ops: n, seconds: 1})
		}
		return out
	}
	if got := medianRatio(at(50, 25), at(100, 50)); got != 0.5 {
		t.Errorf("ratio %g, want 0.5", got)
	}
	if got := medianRatio(at(50), nil); got != 0 {
		t.Errorf("ratio to what was not measured: %g", got)
	}
}

func TestParseStat(t *testing.T) {
	s, err := parseStat([]byte("42 (a) name) (x) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 5 6 7"))
	if err != nil || s.parent != 7 || s.cpu != 2*time.Second {
		t.Errorf("%+v, %v", s, err)
	}
	for _, bad := range []string{"", "42 (x) S 7", "42 (x) S a b c d e f g h i j k l m n"} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is taken for %+v", bad, s)
		}
	}
	if own, err := statOf(os.Getpid()); err != nil || own.parent != os.Getppid() {
		t.Errorf("this process: %+v, %v", own, err)
	}
}

func TestStatusMiB(t *testing.T) {
	const status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\nThreads:\t3\n"
	if rss, anon, none := statusMiB(status, "VmRSS"), statusMiB(status, "RssAnon"), statusMiB(status, "Threads"); rss != 2 || anon != 0.5 || none != 0 {
		t.Errorf("%g, %g and %g, want 2, 0.5 and 0", rss, anon, none)
	}
}

// TestOperationOnAllFilesIsOne: three files that were each written 10 times saw 10 operations, one after the other in the
// time of the slowest.
func TestOperationOnAllFilesIsOne(t *testing.T) {
	r, err := parseFIO([]byte(`note: something
{"jobs": [
 {"error": 0, "usr_cpu": 10, "sys_cpu": 20, "job_runtime": 1000, "read": {}, "write": {"total_ios": 10, "io_bytes": 40960, "runtime": 1000, "clat_ns": {"bins": {"5": 10}}}},
 {"error": 0, "usr_cpu": 10, "sys_cpu": 20, "job_runtime": 1000, "read": {}, "write": {"total_ios": 10, "io_bytes": 40960, "runtime": 2000, "clat_ns": {"bins": {"7": 10}}},
  "sync": {"lat_ns": {"bins": {"100": 3}}}}
]}`))
	if err != nil {
		t.Fatal(err)
	}
	s := r.sample(2)
	if s.ops != 10 || s.bytes != 40960 || s.seconds != 2 || s.iops() != 5 || s.cpu.Fio != 600*time.Millisecond {
		t.Errorf("%+v", s)
	}
	if got := s.quantile(0.5); got != 105 {
		t.Errorf("median of write and flush: %d, want 105", got)
	}
	if _, err := parseFIO([]byte(`{"jobs": [{"error": 5}]}`)); err == nil {
		t.Error("a job that failed passes")
	}
}

// TestLoad: a write goes to all files of a subject at once, a read to any.
func TestLoad(t *testing.T) {
	b := &throughput{options: &throughputOptions{mib: 16}}
	f := &files{names: []string{"a", "b"}}
	if l := b.load(f, workload{rw: "randwrite"}, 1); len(l.jobs) != 2 || l.size != 16*volume.MiB {
		t.Errorf("write: %+v", l)
	}
	if l := b.load(f, workload{rw: "read"}, 1); len(l.jobs) != 1 || !slices.Equal(l.jobs[0], f.names) {
		t.Errorf("read: %+v", l)
	}
}

// TestEveryWorkloadRuns has fio itself say whether it understands what it is asked.
func TestEveryWorkloadRuns(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("needs fio; make deps installs it")
	}
	dir, err := os.MkdirTemp("/var/tmp", "belay-bench-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &files{size: 4 * volume.MiB, names: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}}
	if err := f.open(context.Background()); err != nil {
		t.Fatal(err)
	}
	b := &throughput{options: &throughputOptions{mib: 4}}
	for _, w := range workloads {
		l := b.load(f, w, 0.1)
		r, err := runFIO(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if s := r.sample(len(l.jobs)); s.ops == 0 || s.bytes != s.ops*float64(w.block) || s.seconds < 0.05 || s.latency.quantile(0.5) == 0 || w.sync != (len(s.sync) > 0) {
			t.Errorf("%s: %d jobs: %.0f operations, %.0f bytes, %.2f s, flushes %v", w.name, len(l.jobs), s.ops, s.bytes, s.seconds, s.sync)
		}
	}
}

// TestReport: what was measured is in the table, what was aimed at behind it.
func TestReport(t *testing.T) {
	b := &throughput{options: &throughputOptions{only: "4k-write-qd32", rounds: 1, mib: 16}, samples: map[key][]sample{}}
	b.subjects = subjects(nil, []string{"/a", "/b"}, volume.GiB, "")
	for i, s := range b.subjects {
		b.samples[key{"4k-write-qd32", s.name()}] = []sample{{ops: float64(100 * (i + 1)), seconds: 1, latency: histogram{time.Millisecond: 1}, sync: histogram{}}}
	}
	var out bytes.Buffer
	b.report([]string{"/a"}).print(&out)
	for _, want := range []string{nameRaw, nameLimit, "belay, 3 stores", " 0.80", "aim: 4k-write-qd32, 3 stores: ratio to the limit at least 0.5: 0.80, met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}
