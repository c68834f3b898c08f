package explorer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// course is the life of a volume through a fault. Each step ends well, or fails, and then does when it is asked for again, in this process or in the next.
type course struct {
	disks  *disks
	away   []string // disks on which every call fails
	fault  *fault
	anew   bool // asked again in a new process
	y      *yard
	w      *mirror.Session // nil: none is attached
	a      volume.Attachment
	truth  *truth
	asked  []string // receipts that may be in force
	value  uint64
	failed []string // steps that failed, with their errors
}

// within is how long a step may take on the simulated clock.
const within = 5 * time.Minute

// step makes a step, again where it fails because of the fault.
func (c *course) step(name string, do func() error) error {
	err := c.try(do)
	if err == nil {
		return nil
	}
	if c.fault.happened() == "" {
		return fmt.Errorf("%s, with nothing wrong: %w", name, err)
	}
	c.failed = append(c.failed, fmt.Sprintf("%s: %v", name, err))
	if c.spared(name) {
		return fmt.Errorf("%s fails though two of three stores are well: %w", name, err)
	}
	c.fault.over()
	time.Sleep(5 * time.Second)
	if c.anew {
		if err := c.restart(); err != nil {
			return fmt.Errorf("%s: a new process: %w", name, err)
		}
	}
	if err := c.try(do); err != nil {
		return fmt.Errorf("%s, again: %w", name, err)
	}
	return nil
}

// spared are the steps that one bad store of three is no reason for to fail. A volume is made whole or not at all, grows where every store is
// known to have room, and is deleted on every store that is there.
func (c *course) spared(step string) bool {
	return c.fault.course == "life" && c.fault.stores == 3 && c.fault.disk != stateDisk && !slices.Contains([]string{"create", "bring back", "expand", "delete", "start"}, step)
}

// try makes one attempt. A panic in it ends the test.
func (c *course) try(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-time.After(within):
		panic(fmt.Sprintf("a step hangs; fault %s at %q", c.fault, c.fault.happened()))
	}
}

func (c *course) start() (err error) {
	c.y, err = openYard(vfs.Faulty(without(c.disks, c.away...), c.fault.hook), c.disks.names, len(c.disks.names)-1)
	return err
}

// started starts where nothing runs.
func (c *course) started() error {
	if c.y != nil {
		return nil
	}
	return c.start()
}

// restart goes on in a new process.
func (c *course) restart() error {
	c.drop()
	if c.y != nil {
		c.y.close()
	}
	c.disks = c.disks.restart()
	return c.start()
}

// drop ends the session as the death of its engine does.
func (c *course) drop() {
	if c.w != nil {
		c.w.Close()
		c.w = nil
	}
}

// alive attaches where there is no session that serves, and compares what it shows with what was promised.
func (c *course) alive() error {
	if c.w != nil && c.w.LostCause() != nil {
		c.drop()
	}
	if c.w != nil {
		return nil
	}
	w, err := c.y.session(c.a)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	c.w = w
	got, err := c.truth.read(w)
	if err == nil {
		err = c.truth.allows(got, false)
	}
	if err != nil {
		return wrongError{err}
	}
	c.truth.attached(got)
	return nil
}

// wrongError is one that no fault excuses.
type wrongError struct{ error }

func (c *course) write(from, to int64, zero bool) error {
	if err := c.alive(); err != nil {
		return err
	}
	v := uint64(0)
	if !zero {
		c.value++
		v = c.value
	}
	p := vfs.AlignedBuffer(int(to-from) * sectorSize)
	for i := range p {
		p[i] = byte(v >> (8 * (i % 8)))
	}
	c.truth.begin(from, to, v)
	var err error
	if zero {
		err = c.w.Zero(from*sectorSize, (to-from)*sectorSize)
	} else {
		err = c.w.WriteAt(p, from*sectorSize)
	}
	if err == nil {
		c.truth.answer(from, to, v)
	}
	return err
}

func (c *course) flush() error {
	if err := c.alive(); err != nil {
		return err
	}
	err := c.w.Flush()
	if err == nil {
		c.truth.flushed()
	}
	return err
}

func (c *course) publish() (err error) {
	c.a, err = c.y.publish()
	return err
}

// leave detaches in order, where that is not done.
func (c *course) leave() error {
	v, err := c.y.get()
	switch {
	case err != nil:
		return err
	case v.Sealed && v.Writer > 0 && c.w != nil: // the seal was in doubt
		c.drop()
		return nil
	case v.Sealed && c.w == nil && v.Staged:
		return nil
	}
	if err := c.alive(); err != nil {
		return err
	}
	receipt := fmt.Sprintf("left %d", len(c.asked))
	c.asked = append(c.asked, receipt)
	if err := leave(c.w, receipt); err != nil {
		c.drop() // what is unsure the next epoch finds out
		return err
	}
	c.truth.flushed()
	c.truth.receipts = append(c.truth.receipts, receipt)
	c.drop()
	return nil
}

// fence has the gate take a dead writer's place, where that is not done.
func (c *course) fence() error {
	v, err := c.y.get()
	switch {
	case err != nil:
		return err
	case v.Attachment == nil:
		return nil
	case v.Sealed:
		return c.y.unpublish(*v.Attachment)
	}
	return c.y.wayOut(*v.Attachment)
}

func (c *course) unpublish() error { return c.y.unpublish(c.a) }

func (c *course) expand() error {
	v, err := c.y.engine.Expand(context.Background(), theVolume, 2*yardSize)
	if err == nil && v.Size != 2*yardSize {
		err = fmt.Errorf("size %d", v.Size)
	}
	return err
}

func (c *course) delete() error {
	if err := c.y.engine.Delete(context.Background(), theVolume); err != nil {
		return err
	}
	if v, err := c.y.get(); !errors.Is(err, engine.ErrNotFound) {
		return fmt.Errorf("after Delete: %+v, %w", v, err)
	}
	return nil
}

// bringBack ends the fault and waits until every replica is in sync.
func (c *course) bringBack() error {
	if c.fault.happened() != "" {
		c.fault.over()
	}
	if err := c.alive(); err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	if n := c.w.Config().Members.Len(); n < c.y.copies {
		return fmt.Errorf("%d of %d replicas are in sync", n, c.y.copies)
	}
	return nil
}

type courseStep struct {
	name string
	do   func() error
}

// life is everything that is asked of a volume. Half-way the fault ends, where it has begun, and the replicas are brought back.
func (c *course) life() []courseStep {
	return []courseStep{
		{"start", c.started},
		{"create", func() error { return c.y.create() }},
		{"publish", c.publish},
		{"attach", c.alive},
		{"write", func() error { return c.write(0, 16, false) }},
		{"flush", c.flush},
		{"write part", func() error { return c.write(3, 7, false) }},
		{"zero", func() error { return c.write(8, 16, true) }},
		{"flush", c.flush},
		{"write", func() error { return c.write(300*8, 301*8, false) }},
		{"detach", c.leave},
		{"unpublish", c.unpublish},
		{"expand", c.expand},
		{"publish", c.publish},
		{"attach", c.alive},
		{"write", func() error { return c.write(0, 8, false) }},
		{"flush", c.flush},
		{"write", func() error { return c.write(1024*8, 1024*8+12, false) }},
		{"bring back", c.bringBack},
		{"death", func() error { c.drop(); return nil }},
		{"fence", c.fence},
		{"publish", c.publish},
		{"attach", c.alive},
		{"detach", c.leave},
		{"unpublish", c.unpublish},
		{"receipts", c.wantReceipts},
		{"delete", c.delete},
	}
}

// wantReceipts wants those that were answered, in their order; others only where they were asked for.
func (c *course) wantReceipts() error {
	got, err := c.y.receipts()
	if err != nil {
		return err
	}
	at := 0
	for _, r := range got {
		switch {
		case at < len(c.truth.receipts) && r == c.truth.receipts[at]:
			at++
		case !strings.HasPrefix(r, fenced) && !slices.Contains(c.asked, r):
			return wrongError{fmt.Errorf("receipts %q: nobody has asked for %q", got, r)}
		}
	}
	if at < len(c.truth.receipts) {
		return wrongError{fmt.Errorf("receipts %q, answered were %q", got, c.truth.receipts)}
	}
	return nil
}

// run makes the steps, and in the end an engine on the same disks, in the same process: nothing keeps a lock.
func (c *course) run(steps []courseStep) error {
	defer func() {
		c.drop()
		if c.y != nil {
			c.y.close()
		}
	}()
	for _, s := range steps {
		if err := c.step(s.name, s.do); err != nil {
			return err
		}
	}
	if c.y != nil {
		c.y.close()
		c.y = nil
	}
	c.fault.over()
	if err := c.start(); err != nil {
		return fmt.Errorf("a lock was left: %w", err)
	}
	return nil
}
