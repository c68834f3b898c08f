package main

import (
	"fmt"
	"io"
	"text/tabwriter"
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
		fmt.Fprintf(out, "engine process of an idle volume of 1 TiB, %s: RssAnon %.1f MiB, VmRSS %.1f MiB\n", m.After, m.Anonymous, m.Resident)
	}
	printAims(out, r.Aims)
}
