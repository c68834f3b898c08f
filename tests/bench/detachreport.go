package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// detachReport is the outcome of a run.
type detachReport struct {
	Machine machine        `json:"machine"`
	Rounds  int            `json:"rounds"`
	Scatter bool           `json:"scatter"`
	Results []detachResult `json:"results"`
	Memory  []memory       `json:"memory"`
	Aims    []aim          `json:"aims"`
}

func (r *detachReport) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s\n", r.Machine)
	fmt.Fprintf(out, "%d detaches of every kind, 3 stores, written in %s, not flushed\n\n", r.Rounds,
		map[bool]string{false: "runs of 1 MiB", true: "scattered blocks of 4 KiB"}[r.Scatter])
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "written\tvolume\tbarrier p50 ms\tp99\tmax\tfloor p50\tstop p50\tevidence p50\tseal p50\twith device p50\tp99\tmax\t")
	for _, x := range r.Results {
		fmt.Fprintf(t, "%d MiB\t%d GiB\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t\n", x.MiB, x.SizeGiB, x.Barrier.P50, x.Barrier.P99, x.Barrier.Max,
			x.Floor.P50, x.Stop.P50, x.Evidence.P50, x.Seal.P50, x.All.P50, x.All.P99, x.All.Max)
	}
	t.Flush()
	fmt.Fprintln(out, "\nBarrier: stop, evidence and seal, which an unstage adds to an unmount. With device: the end of device and process too.")
	fmt.Fprintln(out, "Floor: making the same amount durable in three new raw files and reading it back from them, with nothing compared.")
	for _, m := range r.Memory {
		fmt.Fprintf(out, "%s process with an idle volume of 1 TiB, %s: RssAnon %.1f MiB, VmRSS %.1f MiB, PSS %.1f MiB\n",
			m.Of, m.After, m.Anonymous, m.Resident, m.Proportional)
	}
	printAims(out, r.Aims)
}

// detachResult is a kind of detach, all rounds together; times in milliseconds.
type detachResult struct {
	SizeGiB  int64   `json:"sizeGiB"`
	MiB      int     `json:"writtenMiB"`
	Barrier  summary `json:"barrier"` // stop, evidence and seal
	Stop     summary `json:"stop"`
	Evidence summary `json:"evidence"`
	Seal     summary `json:"seal"`
	Floor    summary `json:"floor"` // of the same amount on raw files
	All      summary `json:"all"`   // with the end of device and process
}

// summary describes durations in milliseconds.
type summary struct {
	P50 float64 `json:"p50ms"`
	P99 float64 `json:"p99ms"`
	Max float64 `json:"maxms"`
}

func summarize(times []detachTimes, of func(detachTimes) time.Duration) summary {
	h := histogram{}
	for _, t := range times {
		h[of(t)]++
	}
	return h.summary()
}

func (h histogram) summary() summary {
	ms := func(q float64) float64 { return microseconds(h.quantile(q)) / 1000 }
	return summary{ms(0.5), ms(0.99), ms(1)}
}

func (d *detaching) report() *detachReport {
	r := &detachReport{Machine: thisMachine(d.dirs), Rounds: d.options.rounds, Scatter: d.options.scatter, Memory: d.memory}
	for _, mib := range d.options.amounts {
		for _, size := range detachSizes {
			t := d.times[detachKind{size, mib}]
			r.Results = append(r.Results, detachResult{
				SizeGiB: int64(size / volume.GiB), MiB: mib, Floor: d.floors[mib].summary(),
				Barrier: summarize(t, detachTimes.barrier), All: summarize(t, detachTimes.all),
				Stop:     summarize(t, func(t detachTimes) time.Duration { return t.stop }),
				Evidence: summarize(t, func(t detachTimes) time.Duration { return t.evidence }),
				Seal:     summarize(t, func(t detachTimes) time.Duration { return t.seal }),
			})
		}
	}
	r.Aims = detachAims(r.Results, d.memory)
	return r
}

// noiseMs is what medians may differ by, on top of a half, without meaning anything.
const noiseMs = 10

// detachAims are those of the design. The size of the volume must make no difference beyond noise.
func detachAims(results []detachResult, memory []memory) (out []aim) {
	medians := map[int][]float64{}
	for _, r := range results {
		medians[r.MiB] = append(medians[r.MiB], r.Barrier.P50)
		switch r.MiB {
		case 0:
			out = append(out, atMost(fmt.Sprintf("nothing written, %d GiB: median in ms", r.SizeGiB), r.Barrier.P50, 50))
		case 64:
			out = append(out, atMost(fmt.Sprintf("64 MiB written, %d GiB: p99 in ms", r.SizeGiB), r.Barrier.P99, 250))
		}
	}
	for _, mib := range slices.Sorted(maps.Keys(medians)) {
		least, most := slices.Min(medians[mib]), slices.Max(medians[mib])
		out = append(out, atMost(fmt.Sprintf("%d MiB written: largest median of the sizes in ms, smallest %.1f", mib, least), most, math.Round(1.5*least+noiseMs)))
	}
	for _, m := range memory {
		if m.Of == "engine" {
			out = append(out, atMost(fmt.Sprintf("engine of an idle volume of 1 TiB, %s: RssAnon in MiB", m.After), m.Anonymous, 16))
		}
	}
	return out
}
