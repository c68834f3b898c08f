package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Sizes of volumes, and amounts written in MiB since the last verification.
var (
	detachSizes   = []volume.Bytes{volume.GiB, 64 * volume.GiB, volume.TiB}
	detachAmounts = []int{0, 16, 64, 256}
)

// detachOptions are the flags of the benchmark of detaching.
type detachOptions struct {
	options
	rounds  int
	scatter bool
	idle    time.Duration
}

func newDetach() *cobra.Command {
	o := &detachOptions{}
	cmd := &cobra.Command{
		Use: "detach", Short: "how long a detach with proof takes",
		Long: `How long a barrier with proof takes: stop and flush the writer, read back from every replica what was written since the last
verification, compare, and seal with a receipt. That is what an unstage adds to an unmount; the device's end and its
process's come on top. Three stores; nothing verifies in the background. Also the memory of an idle engine process.`,
		Example: `  go run ./tests/bench detach
  go run ./tests/bench detach --scatter     # written in blocks of 4 KiB here and there, the worst that a volume can do
  go run ./tests/bench detach --rounds 40   # for a p99 that is one`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.options.register(cmd, "out/bench-detach.json")
	cmd.Flags().IntVar(&o.rounds, "rounds", 15, "detaches of every kind")
	cmd.Flags().BoolVar(&o.scatter, "scatter", false, "write blocks of 4 KiB at random instead of runs of 1 MiB")
	cmd.Flags().DurationVar(&o.idle, "idle", 15*time.Second, "how long a volume has been idle when its engine's memory is read; 0: it is not read")
	return cmd
}

func (o *detachOptions) run(ctx context.Context, out io.Writer) (err error) {
	if o.rounds < 1 {
		return fmt.Errorf("--rounds %d: want at least 1", o.rounds)
	}
	if err := o.check(); err != nil {
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
	d := &detaching{options: o, rig: r, dirs: dirs, say: os.Stderr, times: map[detachKind][]detachTimes{}, floors: map[int]histogram{}}
	if err := d.measure(ctx); err != nil {
		return err
	}
	report := d.report()
	report.print(out)
	return writeJSON(o.json, report)
}

// detachKind is what a detach may depend on.
type detachKind struct {
	size volume.Bytes
	mib  int
}

// detachTimes are those of the steps of one detach.
type detachTimes struct{ stop, evidence, seal, detach time.Duration }

func (t detachTimes) barrier() time.Duration { return t.stop + t.evidence + t.seal }
func (t detachTimes) all() time.Duration     { return t.barrier() + t.detach }

// detaching is one run of the benchmark.
type detaching struct {
	options *detachOptions
	rig     *rig
	say     io.Writer
	dirs    []string
	times   map[detachKind][]detachTimes
	floors  map[int]histogram // by MiB
	memory  []memory
}

func (d *detaching) measure(ctx context.Context) error {
	for _, size := range detachSizes {
		a, _, err := d.rig.create(ctx, idOf(size), size, storesMax)
		if err == nil {
			_, err = d.rig.seal(ctx, a)
		}
		if err == nil {
			err = errors.Join(d.rig.Detach(ctx, a), d.rig.Unpublish(ctx, a))
		}
		if err != nil {
			return err
		}
	}
	for round := range d.options.rounds {
		fmt.Fprintf(d.say, "round %d of %d\n", round+1, d.options.rounds)
		for _, mib := range detachAmounts {
			if err := d.round(ctx, mib); err != nil {
				return err
			}
		}
	}
	return d.measureMemory(ctx)
}

// round measures an amount on every size, and its floor.
func (d *detaching) round(ctx context.Context, mib int) error {
	for _, size := range detachSizes {
		if err := d.once(ctx, detachKind{size, mib}); err != nil {
			return err
		}
	}
	t, err := d.floor(ctx, mib)
	if d.floors[mib] == nil {
		d.floors[mib] = histogram{}
	}
	d.floors[mib][t]++
	return err
}

func idOf(size volume.Bytes) volume.ID { return volume.ID(fmt.Sprintf("detach-%dg", size/volume.GiB)) }

// once attaches, writes, and measures a detach.
func (d *detaching) once(ctx context.Context, k detachKind) error {
	a, dev, err := d.rig.attach(ctx, idOf(k.size))
	if err != nil {
		return err
	}
	if err := d.write(dev, k); err != nil {
		return err
	}
	var t detachTimes
	var b engine.Barrier
	clock := time.Now()
	lap := func(into *time.Duration) {
		now := time.Now()
		*into, clock = now.Sub(clock), now
	}
	if err := d.rig.Barrier(ctx, a); err != nil {
		return err
	}
	lap(&t.stop)
	if b, err = d.rig.Evidence(ctx, a, nil); err != nil {
		return err
	}
	lap(&t.evidence)
	if err := d.rig.Seal(ctx, b, fmt.Appendf(nil, "receipt of a benchmark at %s", b.View)); err != nil {
		return err
	}
	lap(&t.seal)
	if err := d.rig.Detach(ctx, a); err != nil {
		return err
	}
	lap(&t.detach)
	d.times[k] = append(d.times[k], t)
	return errors.Join(proves(b, k), d.rig.Unpublish(ctx, a))
}

// proves makes sure that the barrier did what is being measured.
func proves(b engine.Barrier, k detachKind) error {
	if want := volume.Bytes(k.mib) * volume.MiB; b.Verified < want*storesMax || len(b.Evidence) != storesMax {
		return fmt.Errorf("volume %s: the barrier read back %s from %d replicas, written were %s", b.Attachment.Volume, b.Verified, len(b.Evidence), want)
	}
	for _, e := range b.Evidence {
		if e.Error != "" || !e.Digest.Equal(b.Expected) {
			return fmt.Errorf("volume %s: replica %s does not agree: %s", b.Attachment.Volume, e.ID, e.Error)
		}
	}
	return nil
}

// write writes an amount past the page cache and does not flush, in one run at a random place, or scattered.
func (d *detaching) write(dev engine.Device, k detachKind) error {
	if k.mib == 0 {
		return nil
	}
	f, err := vfs.OSBlocking().Open(dev.Path, vfs.Direct)
	if err != nil {
		return err
	}
	defer f.Close()
	amount := int64(k.mib) << 20
	step := int64(1 << 20)
	if d.options.scatter {
		step = 4096
	}
	p := vfs.AlignedBuffer(int(step))
	start := rand.Int64N((int64(k.size)-amount)/step+1) * step
	for off := int64(0); off < amount; off += step {
		at := start + off
		if d.options.scatter {
			at = rand.Int64N(int64(k.size)/step) * step
		}
		scramble(p)
		if err := f.WriteAt(p, at); err != nil {
			return err
		}
	}
	return nil
}

// scramble gives p content that no other has.
func scramble(p []byte) {
	r := rand.Uint64() | 1
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r*uint64(i+8))
	}
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
	for _, mib := range detachAmounts {
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
	for _, mib := range detachAmounts {
		least, most := slices.Min(medians[mib]), slices.Max(medians[mib])
		out = append(out, atMost(fmt.Sprintf("%d MiB written: largest median of the sizes in ms, smallest %.1f", mib, least), most, math.Round(1.5*least+noiseMs)))
	}
	for _, m := range memory {
		out = append(out, atMost(fmt.Sprintf("engine of an idle volume of 1 TiB, %s: RssAnon in MiB", m.After), m.Anonymous, 16))
	}
	return out
}
