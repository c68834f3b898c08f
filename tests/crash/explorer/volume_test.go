package explorer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// lifeOf is how far a volume of an engine has come, and what it holds.
type lifeOf struct {
	copies   int
	phase    phase
	open     *volume.Attachment // promised; nil: none
	opening  bool               // being asked for, or being closed
	size     volume.Bytes
	growing  volume.Bytes
	receipts []string
	sealing  string
	blocks   truth // only its blocks
}

type phase int

const (
	absent phase = iota
	coming
	there
	going
	deleted
)

func (l *lifeOf) clone() *lifeOf {
	now := *l
	now.blocks = *l.blocks.clone()
	now.receipts = append([]string(nil), l.receipts...)
	if l.open != nil {
		a := *l.open
		now.open = &a
	}
	return &now
}

// check starts an engine on what is left, which must know of the volume what was promised, and takes the volume to its end: whatever was cut
// short is asked for again.
func (l *lifeOf) check(_ *testing.T, s state, remake func() *disks) (verdict, error) {
	left := remake()
	y, err := openYard(left, left.names, l.copies)
	if err == nil && s.kind() == killed { // what it has found must survive the power
		y.close()
		left = left.cut()
		y, err = openYard(left, left.names, l.copies)
	}
	if err != nil {
		return opened, err
	}
	defer func() { y.close() }()
	v, err := y.get()
	switch {
	case errors.Is(err, engine.ErrNotFound) && l.phase == there, err == nil && (l.phase == absent || l.phase == deleted):
		return opened, fmt.Errorf("phase %d: %+v, %w", l.phase, v, err)
	case errors.Is(err, engine.ErrNotFound):
		return unknown, l.anew(y)
	case errors.Is(err, engine.ErrUnavailable) && l.phase == coming:
		return unknown, l.anew(y)
	case err != nil:
		return opened, err
	}
	if l.phase == coming {
		if err := y.create(); err != nil {
			return opened, fmt.Errorf("create again: %w", err)
		}
		return opened, l.toTheEnd(y)
	}
	if err := l.described(v); err != nil {
		return opened, err
	}
	if l.phase == going && s.draw(2) == 0 {
		return opened, l.delete(y)
	}
	return opened, l.toTheEnd(y)
}

// described compares the description with what was promised.
func (l *lifeOf) described(v engine.Volume) error {
	switch {
	case v.Size != l.size && v.Size != l.growing:
		return fmt.Errorf("size %d; promised is %d, asked for %d", v.Size, l.size, l.growing)
	case l.opening:
		return nil
	case (v.Attachment == nil) != (l.open == nil) || l.open != nil && *v.Attachment != *l.open:
		return fmt.Errorf("attachment %v, promised is %v", v.Attachment, l.open)
	}
	return nil
}

// anew makes the volume where there is none: it is blank.
func (l *lifeOf) anew(y *yard) error {
	if err := y.create(); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	blank := &lifeOf{copies: l.copies, phase: there, size: yardSize, blocks: truth{blocks: map[int64]*content{}}}
	for i := range l.blocks.blocks {
		blank.blocks.block(i)
	}
	return blank.toTheEnd(y)
}

// toTheEnd finishes an open attachment, reads what is there in the next one, detaches that and deletes the volume.
func (l *lifeOf) toTheEnd(y *yard) error {
	v, err := y.get()
	if err == nil && v.Attachment != nil {
		if v.Sealed {
			err = y.unpublish(*v.Attachment)
		} else {
			err = y.wayOut(*v.Attachment)
		}
	}
	if err != nil {
		return fmt.Errorf("the open attachment: %w", err)
	}
	if err := l.wantReceipts(y); err != nil {
		return err
	}
	a, err := y.publish()
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	w, err := y.session(a)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer w.Close()
	got, err := l.blocks.read(w)
	if err == nil {
		err = l.blocks.allows(got, false)
	}
	if err == nil {
		err = leave(w, "last")
	}
	w.Close()
	if err == nil {
		err = y.unpublish(a)
	}
	if err != nil {
		return err
	}
	return l.delete(y)
}

// wantReceipts wants those that are in force, then the one that was asked for or the fence's.
func (l *lifeOf) wantReceipts(y *yard) error {
	got, err := y.receipts()
	if err != nil {
		return err
	}
	if len(got) < len(l.receipts) || len(got) > len(l.receipts)+2 {
		return fmt.Errorf("receipts %q, in force are %q", got, l.receipts)
	}
	for i, r := range got {
		if i < len(l.receipts) && r != l.receipts[i] || i >= len(l.receipts) && !strings.HasPrefix(r, fenced) && (l.sealing == "" || r != l.sealing) {
			return fmt.Errorf("receipts %q, in force are %q, asked for is %q", got, l.receipts, l.sealing)
		}
	}
	return nil
}

// delete deletes the volume, twice, and starts the engine again: it stays away.
func (l *lifeOf) delete(y *yard) error {
	for range 2 {
		v, err := y.get()
		if err == nil && v.Attachment != nil {
			return nil // being published when it was deleted: not by this scenario
		}
		if err := y.engine.Delete(context.Background(), theVolume); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	names := append(append([]string(nil), y.names...), stateDisk)
	y.close()
	again, err := openYard(y.fs, names, y.copies)
	if err != nil {
		return err
	}
	*y = *again
	if v, err := y.get(); !errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("after Delete: %+v, %w", v, err)
	}
	all, err := y.engine.List(context.Background())
	if err == nil && len(all) > 0 {
		err = fmt.Errorf("after Delete: %+v", all)
	}
	return err
}

// volumeLife is a volume from its creation to its deletion, with one writer that dies and one that leaves, and another of its name.
func volumeLife(copies, stores int) scenario {
	return scenario{name: fmt.Sprintf("volume/%d-of-%d", copies, stores), weight: share / 2, play: func(t *testing.T, seed uint64) []point {
		l := &lifeOf{copies: copies, size: yardSize, blocks: truth{blocks: map[int64]*content{}}}
		r := newRecorder(newDisks(yardDisks(stores)...), seed)
		r.expect = func() expectation { return l.clone() }
		p := r.start()
		y, err := openYard(p.fs, yardDisks(stores), copies)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.live(y); err != nil {
			t.Error(err)
		}
		r.end()
		r.expect = nil
		p.dead.Store(true)
		y.close()
		return r.points
	}}
}

// live plays the life.
func (l *lifeOf) live(y *yard) error {
	steps := []func() error{
		func() error { return l.born(y) },
		func() error {
			return l.use(y, func(w *mirror.Session, a volume.Attachment) error { w.Close(); return l.fenced(y, a) })
		},
		func() error { return l.grow(y) },
		func() error {
			return l.use(y, func(w *mirror.Session, a volume.Attachment) error { return l.left(y, w, a) })
		},
		func() error { return l.end(y) },
		func() error { return l.born(y) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (l *lifeOf) born(y *yard) error {
	l.phase, l.receipts, l.size = coming, nil, yardSize
	if err := y.create(); err != nil {
		return err
	}
	l.phase = there
	return nil
}

// use publishes and attaches the volume, writes, flushes, writes again, and ends with over.
func (l *lifeOf) use(y *yard, over func(w *mirror.Session, a volume.Attachment) error) error {
	l.opening = true
	a, err := y.publish()
	if err != nil {
		return err
	}
	l.open, l.opening = &a, false
	w, err := y.session(a)
	if err != nil {
		return err
	}
	h := &l.blocks
	for i, value := range []uint64{1, 2} {
		value += 10 * uint64(a.Epoch)
		from, to := int64(i*4), int64(i*4+8)
		h.begin(from, to, value)
		p := vfs.AlignedBuffer(int(to-from) * sectorSize)
		for i := range p {
			p[i] = byte(value >> (8 * (i % 8)))
		}
		if err := w.WriteAt(p, from*sectorSize); err != nil {
			return err
		}
		h.answer(from, to, value)
		if i == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
			h.flushed()
		}
	}
	return over(w, a)
}

// fenced has the gate take the place of the dead writer.
func (l *lifeOf) fenced(y *yard, a volume.Attachment) error {
	l.opening = true
	if err := y.wayOut(a); err != nil {
		return err
	}
	l.open, l.opening = nil, false
	var err error
	l.receipts, err = y.receipts()
	return err
}

func (l *lifeOf) left(y *yard, w *mirror.Session, a volume.Attachment) error {
	l.sealing = "left"
	err := leave(w, "left")
	w.Close()
	if err != nil {
		return err
	}
	l.blocks.flushed()
	l.receipts, l.sealing = append(l.receipts, "left"), ""
	l.opening = true
	if err := y.unpublish(a); err != nil {
		return err
	}
	l.open, l.opening = nil, false
	return nil
}

func (l *lifeOf) grow(y *yard) error {
	l.growing = 2 * yardSize
	if _, err := y.engine.Expand(context.Background(), theVolume, l.growing); err != nil {
		return err
	}
	l.size, l.growing = l.growing, 0
	return nil
}

func (l *lifeOf) end(y *yard) error {
	l.phase = going
	if err := y.engine.Delete(context.Background(), theVolume); err != nil {
		return err
	}
	l.phase = deleted
	l.blocks = truth{blocks: map[int64]*content{}}
	return nil
}
