package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// detachSizes are those of the volumes.
var detachSizes = []volume.Bytes{volume.GiB, 64 * volume.GiB, volume.TiB}

// detachMost is the most that can be written since the last verification, in MiB: half of the smallest volume.
const detachMost = 512

// detachOptions are the flags of the benchmark of detaching.
type detachOptions struct {
	options
	rounds  int
	amounts []int // written since the last verification, in MiB
	scatter bool
	idle    time.Duration
}

func newDetach() *cobra.Command {
	o := &detachOptions{}
	cmd := &cobra.Command{
		Use: "detach", Short: "how long a detach with proof takes",
		Long: `How long a barrier with proof takes: stop and flush the writer, read back from every replica what was written since the last
verification, compare, and seal with a receipt. That is what an unstage adds to an unmount; the device's end and its
process's come on top. Three stores; nothing verifies in the background. Also the memory of the host and of an idle
engine process.`,
		Example: `  go run ./tests/bench detach
  go run ./tests/bench detach --scatter --mib 1,4   # in blocks of 4 KiB here and there, the worst that a volume can do
  go run ./tests/bench detach --rounds 40   # for a p99 that is one`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	o.options.register(cmd, "out/bench-detach.json")
	cmd.Flags().IntVar(&o.rounds, "rounds", 15, "detaches of every kind")
	cmd.Flags().IntSliceVar(&o.amounts, "mib", []int{0, 16, 64, 256}, "MiB written since the last verification")
	cmd.Flags().BoolVar(&o.scatter, "scatter", false, "write blocks of 4 KiB at random instead of runs of 1 MiB")
	cmd.Flags().DurationVar(&o.idle, "idle", 15*time.Second, "how long a volume has been idle when its engine's memory is read; 0: it is not read")
	return cmd
}

func (o *detachOptions) run(ctx context.Context, out io.Writer) (err error) {
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
	d := &detaching{options: o, rig: r, dirs: dirs, say: os.Stderr, times: map[detachKind][]detachTimes{}, floors: map[int]histogram{}}
	if err := d.measure(ctx); err != nil {
		return err
	}
	report := d.report()
	report.print(out)
	return writeJSON(o.json, report)
}

func (o *detachOptions) validate() error {
	if o.rounds < 1 || len(o.amounts) == 0 {
		return fmt.Errorf("--rounds %d --mib %v: want at least one of each", o.rounds, o.amounts)
	}
	if slices.Min(o.amounts) < 0 || slices.Max(o.amounts) > detachMost {
		return fmt.Errorf("--mib %v: want 0 to %d", o.amounts, detachMost)
	}
	return o.check()
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
		for _, mib := range d.options.amounts {
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
