package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/volume"
)

// throughputOptions are the flags of the benchmark of the data path.
type throughputOptions struct {
	options
	seconds float64
	rounds  int
	mib     int
	only    string
	subject string
	fresh   bool
}

func (o *throughputOptions) register(cmd *cobra.Command) {
	o.options.register(cmd, "out/bench.json")
	cmd.Flags().Float64Var(&o.seconds, "seconds", 1.5, "seconds of each measurement")
	cmd.Flags().IntVar(&o.rounds, "rounds", 2, "how often everything takes its turn")
	cmd.Flags().IntVar(&o.mib, "size", 1024, "MiB of each volume and file")
	cmd.Flags().StringVar(&o.only, "only", "", "only workloads whose name contains this: "+workloadNames())
	cmd.Flags().StringVar(&o.subject, "subject", "", "only subjects whose name contains this, as belay; there is no ratio to what is left out")
	cmd.Flags().BoolVar(&o.fresh, "fresh", false, "measure first writes: every measurement gets a new, thin volume or file; only workloads that write")
}

func workloadNames() string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return strings.Join(names, ", ")
}

func (o *throughputOptions) validate() error {
	switch {
	case o.seconds <= 0 || o.rounds < 1:
		return fmt.Errorf("--seconds %g --rounds %d: want more than nothing", o.seconds, o.rounds)
	case o.mib < 16:
		return fmt.Errorf("--size %d: want at least 16 MiB", o.mib)
	case len(chosen(o.only, o.fresh)) == 0:
		return fmt.Errorf("--only %q: no such workload; there are %s", o.only, workloadNames())
	case len(subjects(nil, []string{""}, 0, o.subject)) == 0:
		return fmt.Errorf("--subject %q: none is called that", o.subject)
	}
	return o.check("fio", "losetup")
}

func (o *throughputOptions) run(ctx context.Context, out io.Writer) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	dirs, clean, err := workDirs(o.dirs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean()) }()
	r, err := newRig(ctx, o.belay, dirs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	b := &throughput{options: o, subjects: subjects(r, dirs, volume.Bytes(o.mib)*volume.MiB, o.subject), say: os.Stderr}
	if err := b.measure(ctx); err != nil {
		return err
	}
	report := b.report(dirs)
	report.print(out)
	return writeJSON(o.json, report)
}

// workDirs makes a directory of our own in each, and returns what removes them.
func workDirs(parents []string) (dirs []string, clean func() error, err error) {
	clean = func() error {
		var errs []error
		for _, d := range dirs {
			errs = append(errs, os.RemoveAll(d))
		}
		return errors.Join(errs...)
	}
	for _, p := range parents {
		p, err := filepath.Abs(p)
		if err == nil {
			p, err = os.MkdirTemp(p, "belay-bench-")
		}
		if err != nil {
			return nil, nil, errors.Join(err, clean())
		}
		dirs = append(dirs, p)
	}
	return dirs, clean, nil
}

// throughput is one run of the benchmark.
type throughput struct {
	options  *throughputOptions
	subjects []subject
	say      io.Writer
	samples  map[key][]sample // a sample for each round
}

type key struct{ workload, subject string }

func (b *throughput) measure(ctx context.Context) (err error) {
	b.samples = map[key][]sample{}
	defer func() {
		for _, s := range b.subjects {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if !b.options.fresh {
		if err := b.fill(ctx); err != nil {
			return err
		}
	}
	for round := range b.options.rounds {
		for _, w := range chosen(b.options.only, b.options.fresh) {
			if err := b.turn(ctx, round, w); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill writes everything once, so that no measurement pays for the allocation of space.
func (b *throughput) fill(ctx context.Context) error {
	fmt.Fprintln(b.say, "writing everything once")
	for _, s := range b.subjects {
		if err := s.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
		w := workload{rw: "write", block: volume.MiB, depth: 4}
		if _, err := runFIO(ctx, b.load(s, w, 0)); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return nil
}

// turn measures the workload on every subject, in every other round in the opposite order.
func (b *throughput) turn(ctx context.Context, round int, w workload) error {
	order := slices.Clone(b.subjects)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	fmt.Fprintf(b.say, "round %d of %d, %-14s", round+1, b.options.rounds, w.name)
	for _, s := range order {
		got, err := b.one(ctx, s, w)
		if err != nil {
			return fmt.Errorf("%s on %s: %w", w.name, s.name(), err)
		}
		b.samples[key{w.name, s.name()}] = append(b.samples[key{w.name, s.name()}], got)
		fmt.Fprintf(b.say, "  %s %.0f", s.name(), got.iops())
	}
	fmt.Fprintln(b.say)
	return nil
}

func (b *throughput) one(ctx context.Context, s subject, w workload) (sample, error) {
	if b.options.fresh {
		if err := errors.Join(s.close(ctx), s.open(ctx)); err != nil {
			return sample{}, err
		}
	}
	before, err := cpuNow(s.engine())
	if err != nil {
		return sample{}, err
	}
	l := b.load(s, w, b.options.seconds)
	result, err := runFIO(ctx, l)
	if err != nil {
		return sample{}, err
	}
	after, err := cpuNow(s.engine())
	got := result.sample(len(l.jobs))
	got.cpu = got.cpu.plus(after.since(before))
	return got, err
}

// load spreads a workload over a subject: a write is one operation on every file at once, a read one on any of them.
func (b *throughput) load(s subject, w workload, seconds float64) load {
	l := load{workload: w, size: volume.Bytes(b.options.mib) * volume.MiB, seconds: seconds, jobs: [][]string{s.paths()}}
	if w.writes() {
		l.jobs = nil
		for _, p := range s.paths() {
			l.jobs = append(l.jobs, []string{p})
		}
	}
	return l
}
