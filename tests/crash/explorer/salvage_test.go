package explorer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// salvaging is a volume of three stores, of which the first is out of date and the others are away, and a person's decision for the first.
type salvaging struct {
	a       volume.Attachment
	old     truth // what the stores that are away hold
	chosen  truth // what the first holds
	decided bool  // Salvage has answered
	done    bool  // and its receipt is in force
}

const forced = "forced"

// without has every call on the disks fail.
func without(fsys vfs.FS, names ...string) vfs.FS {
	return vfs.Faulty(fsys, func(op *vfs.Op) error {
		first, _, _ := strings.Cut(strings.TrimPrefix(op.Name, "/"), "/")
		if slices.Contains(names, first) {
			return syscall.EIO
		}
		return nil
	})
}

// prepare makes the volume.
func (g *salvaging) prepare(d *disks) error {
	y, err := openYard(d, d.names, 3)
	if err != nil {
		return err
	}
	if err = y.create(); err == nil {
		g.a, err = y.publish()
	}
	if err == nil {
		err = g.old.putOn(y, g.a, 0, 16, 1)
	}
	y.close()
	g.chosen = *g.old.clone()
	if err != nil {
		return err
	}
	y, err = openYard(without(d, "s0"), d.names, 3)
	if err != nil {
		return err
	}
	defer y.close()
	return g.old.putOn(y, g.a, 8, 24, 2)
}

// putOn writes sectors, flushed, and ends as a death does.
func (h *truth) putOn(y *yard, a volume.Attachment, from, to int64, value uint64) error {
	w, err := y.session(a)
	if err != nil {
		return err
	}
	defer w.Close()
	p := vfs.AlignedBuffer(int(to-from) * sectorSize)
	for i := 0; i < len(p); i += 8 {
		p[i] = byte(value)
	}
	h.begin(from, to, value)
	if err := errors.Join(w.WriteAt(p, from*sectorSize), w.Flush()); err != nil {
		return err
	}
	h.answer(from, to, value)
	h.flushed()
	return nil
}

func newSalvaging() *salvaging {
	return &salvaging{old: truth{blocks: map[int64]*content{}}, chosen: truth{blocks: map[int64]*content{}}}
}

// idOf is the store on the disk.
func (y *yard) idOf(name string) (engine.ReplicaID, error) {
	p, err := y.engine.SalvagePlan(context.Background(), theVolume, false, nil)
	for _, c := range p.Copies {
		if c.Place == y.path(name) {
			return c.ID, err
		}
	}
	return "", fmt.Errorf("store %s is not in the plan %+v: %w", name, p, err)
}

// salvage decides for the first store and puts the receipt in force.
func (g *salvaging) salvage(y *yard) error {
	from, err := y.idOf("s0")
	if err != nil {
		return err
	}
	b, err := y.engine.Salvage(context.Background(), theVolume, engine.SalvageOrder{From: from, Reason: "test"}, nil)
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	g.decided = true
	if err := y.engine.Seal(context.Background(), b, []byte(forced)); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	g.done = true
	return nil
}

// salvageCut is a salvage through which the machine fails.
func salvageCut() scenario {
	return scenario{name: "salvage/3", weight: share / 2, play: func(t *testing.T, seed uint64) []point {
		g := newSalvaging()
		r := newRecorder(newDisks(yardDisks(3)...), seed)
		if err := g.prepare(r.disks); err != nil {
			t.Fatal(err)
		}
		r.expect = func() expectation { now := *g; return &now }
		r.lost.Store(0b110)
		p := r.start()
		y, err := openYard(p.fs, r.disks.names, 3)
		if err == nil {
			err = g.salvage(y)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.end()
		r.expect = nil
		p.dead.Store(true)
		y.close()
		return r.points
	}}
}

// check: either nothing was decided, and the old majority brings up the volume once it is back, or the same order finishes what was. Then
// nobody else is believed.
func (g *salvaging) check(_ *testing.T, s state, remake func() *disks) (verdict, error) {
	left := remake()
	y, err := openYard(without(left, "s1", "s2"), left.names, 3)
	if err != nil {
		return opened, err
	}
	p, err := y.engine.SalvagePlan(context.Background(), theVolume, false, nil)
	switch {
	case err != nil:
	case g.decided && p.Salvaged == nil, g.done && p.Pending:
		err = fmt.Errorf("decided is %t, sealed %t; the plan is %+v", g.decided, g.done, p)
	case p.Outlook == engine.OutlookComesUp && (p.Salvaged == nil || p.Pending):
		err = fmt.Errorf("it comes up without a decision: %+v", p)
	}
	if err != nil {
		y.close()
		return opened, err
	}
	if p.Salvaged == nil && p.Outlook == engine.OutlookWaits && s.draw(2) == 0 {
		y.close()
		return unknown, g.old.comesUp(left, g.a)
	}
	if p.Salvaged == nil || p.Pending {
		again := *g
		err = again.salvage(y)
	}
	if err == nil {
		err = g.believed(y)
	}
	y.close()
	if err == nil {
		err = g.nobodyElse(left.cut())
	}
	return opened, err
}

// comesUp: nothing was decided, and the stores that were away are back.
func (h *truth) comesUp(left *disks, a volume.Attachment) error {
	y, err := openYard(left, left.names, 3)
	if err != nil {
		return err
	}
	defer y.close()
	w, err := y.session(a)
	if err != nil {
		return fmt.Errorf("nothing was decided, and the old majority does not come up: %w", err)
	}
	defer w.Close()
	got, err := h.read(w)
	if err == nil {
		err = h.allows(got, false)
	}
	return err
}

// believed: the receipt is in force, and the volume holds what the chosen store did.
func (g *salvaging) believed(y *yard) error {
	receipts, err := y.receipts()
	if err == nil && (len(receipts) == 0 || receipts[len(receipts)-1] != forced) {
		err = fmt.Errorf("receipts %q", receipts)
	}
	if err != nil {
		return err
	}
	w, err := y.session(volume.Attachment{})
	if err != nil {
		return fmt.Errorf("after the salvage: %w", err)
	}
	defer w.Close()
	got, err := g.old.read(w) // all blocks that either has
	chosen := g.chosen.clone()
	for i := range got {
		chosen.block(i)
	}
	if err == nil {
		err = chosen.allows(got, false)
	}
	return err
}

// nobodyElse: the stores of the old majority are back, and the chosen one is away.
func (g *salvaging) nobodyElse(left *disks) error {
	y, err := openYard(without(left, "s0"), left.names, 3)
	if err != nil {
		return err
	}
	defer y.close()
	v, err := y.get()
	if err == nil && v.State != engine.Unavailable {
		return fmt.Errorf("the old majority comes up: %+v", v)
	}
	if a, err := y.publish(); err == nil {
		return fmt.Errorf("the old majority is published: %+v", a)
	}
	return nil
}

// steps are those of a salvage through a fault. A salvage that was answered is not asked for again.
func (g *salvaging) steps(c *course) []courseStep {
	return []courseStep{
		{"start", c.started},
		{"salvage", func() error {
			p, err := c.y.engine.SalvagePlan(context.Background(), theVolume, false, nil)
			if err == nil && (p.Salvaged == nil || p.Pending) {
				err = g.salvage(c.y)
			}
			return err
		}},
		{"attach", func() error { return g.believed(c.y) }},
		{"the others", func() error {
			c.fault.over()
			c.y.close()
			c.y = nil
			return g.nobodyElse(c.disks)
		}},
	}
}
