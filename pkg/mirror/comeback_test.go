package mirror

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// comeback is a volume all of whose stores vanish, and come back in any order, some stale, one perhaps replaced by an empty one.
type comeback struct {
	*history
	replaced int // the store that never comes back, -1: none
}

const comebackSeeds = 80

// TestAllStoresComeBack: whatever subset of the stores is back, an attach either is refused and changes nothing, or shows everything
// that was reported stable (I1); and it is refused no longer once a majority is back and with it a member of the newest configuration.
func TestAllStoresComeBack(t *testing.T) {
	for seed := range uint64(comebackSeeds) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			c := &comeback{newHistory(t, seed), -1}
			c.attach()
			for range 2 + c.rng.IntN(3) {
				c.work()
				c.vanish()
				c.comeBack()
			}
			c.seal()
			c.s.Close()
		})
	}
}

// work is a time in the volume's life, in which stores may fail, so that they are stale at its end.
func (c *comeback) work() {
	for range 10 + c.rng.IntN(30) {
		switch n := c.rng.IntN(100); {
		case n < 70:
			c.write()
		case n < 90:
			c.flush()
		case n < 95:
			c.sicken()
		default:
			c.note("bring back")
			c.sick.Store(-1)
			c.s.bringBack(c.s.background.ctx)
		}
	}
}

// vanish takes all stores away at once, the power as well or not; one of them for good, now and then.
func (c *comeback) vanish() {
	power := c.rng.IntN(2) == 0
	c.note("all stores vanish, power %v", power)
	c.s.background.stop()
	old := c.s
	c.sick.Store(-1)
	if power {
		c.mem = c.mem.CrashClone(c.rng)
	} else {
		c.mem = c.mem.Restart()
	}
	old.Close()
	c.fs = c.disk()
	c.openDirs(3)
	if c.replaced < 0 && c.rng.IntN(3) == 0 {
		c.replace(c.rng.IntN(3))
	}
	c.fatten()
}

// replace puts an empty disk where a store was, unless nobody else has what was promised.
func (c *comeback) replace(n int) {
	rest := slices.Delete(slices.Clone(c.dirs), n, n+1)
	if !c.comesUp(rest) {
		return
	}
	c.note("store %d is replaced", n)
	fresh, err := store.OpenDir(c.fs, fmt.Sprintf("/fresh%d", n), testInstallation)
	if err != nil {
		c.t.Fatal(err)
	}
	c.dirs[n], c.replaced = fresh, n
}

// fatten makes the data file of a stale replica the largest by far.
func (c *comeback) fatten() {
	newest, ok := survey(c.dirs, testID).candidate()
	if !ok {
		c.fatalf("no record can be read")
	}
	for i, voter := range newest.Voters {
		name := fmt.Sprintf("/s%d/volumes/%s/data", i, testID)
		if d := dirOf(c.dirs, voter.Store); newest.Members.Has(i) || d == nil {
			continue
		}
		f, err := c.fs.Open(name, 0)
		if err != nil {
			c.t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(1<<30), f.Datasync(), f.Close()); err != nil {
			c.t.Fatal(err)
		}
	}
}

// comesUp is the rule, told once more in the words of DESIGN.md §3.1.
func (c *comeback) comesUp(dirs []*store.Dir) bool {
	f := survey(dirs, testID)
	newest, _ := f.candidate()
	known, member := 0, false
	for i, a := range f.answers(newest.Voters) {
		if a.Known {
			known++
			member = member || newest.Members.Has(i)
		}
	}
	return known >= 2 && member
}

// comeBack has the stores come back one after the other, and attaches after each.
func (c *comeback) comeBack() {
	all := c.dirs
	order := c.rng.Perm(len(all))
	c.dirs = nil
	for _, i := range order {
		c.dirs = append(c.dirs, all[i])
		want := c.comesUp(c.dirs)
		c.note("store %d is back, comes up %v", i, want)
		s, err := c.tryOpen(ForDevice)
		switch {
		case err == nil && !want:
			c.fatalf("attached with too few stores")
		case err != nil && want:
			c.fatalf("attach: %v", err)
		case err != nil && !errors.Is(err, engine.ErrUnavailable) && !(errors.Is(err, engine.ErrNotFound) && !c.anything()):
			c.fatalf("attach with too few stores: %v", err)
		case err == nil:
			c.s = s
			c.check()
			c.s.Close()
		}
	}
	c.dirs = all
	c.attach()
	c.s.bringBack(c.s.background.ctx)
}

// anything says that a store that is there has a replica.
func (c *comeback) anything() bool {
	_, ok := survey(c.dirs, testID).candidate()
	return ok
}

// TestStaleLargestNewestIsNeverChosen: the stale replica has the largest file and the newest modification time. The one that
// holds the acknowledged writes is chosen, whichever stores are there.
func TestStaleLargestNewestIsNeverChosen(t *testing.T) {
	for _, there := range [][]int{{2, 1}, {2, 0}, {2, 1, 0}} {
		root := t.TempDir()
		l := newLab(t, vfs.OS(), root, 3, 32*volume.MiB)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(1, 1<<20), 0)
		l.detach(s)
		all := l.dirs
		l.dirs = all[:2]
		s = l.open(ForDevice)
		mustWrite(t, s, pattern(2, 1<<20), 0)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		s.Close() // killed: nothing was sealed
		data := fmt.Sprintf("%s/s2/volumes/%s/data", root, testID)
		future := time.Now().Add(24 * time.Hour)
		if err := errors.Join(os.Truncate(data, 1<<32), os.Chtimes(data, future, future)); err != nil {
			t.Fatal(err)
		}
		l.dirs = nil
		for _, i := range there {
			l.dirs = append(l.dirs, all[i])
		}
		s = l.open(ForDevice)
		for range 4 {
			mustRead(t, s, pattern(2, 1<<20), 0)
		}
		s.Close()
	}
}

// TestSingleStoreComesBack: the volume with one store has it vanish and return, with a lost cache or not.
func TestSingleStoreComesBack(t *testing.T) {
	for seed := range uint64(20) {
		mem := vfs.NewMem()
		l := newLab(t, mem, "/", 1, 32*volume.MiB)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(seed, 1<<20), 1<<20)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, s, pattern(99, 4096), 0) // not promised
		rng := rand.New(rand.NewPCG(seed, 3))
		there := l.dirs
		l.dirs = nil
		if _, err := l.tryOpen(ForDevice); !errors.Is(err, engine.ErrNotFound) { // nobody there knows of it
			t.Fatalf("attach without the store: %v", err)
		}
		l.dirs = there
		mem = mem.CrashClone(rng)
		s.Close()
		l.fs = mem
		l.openDirs(1)
		s = l.open(ForDevice)
		mustRead(t, s, pattern(seed, 1<<20), 1<<20)
		agreeing(t, l.detach(s), 1)
	}
}

// TestDamagedRecordsAmongThoseThatComeBack: a store that is known by a damaged record only is nobody: it neither brings the volume up nor
// keeps it down, and is given the majority's record afterwards.
func TestDamagedRecordsAmongThoseThatComeBack(t *testing.T) {
	for damaged := range 3 {
		l := memLab(t, 3)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(1, 1<<20), 0)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		s.Close()
		for slot := range 2 {
			l.corrupt(damaged, "meta", int64(0x2000+slot*0x1000+100), 1)
		}
		all := l.dirs
		for other := range 3 {
			if other == damaged {
				continue
			}
			l.dirs = []*store.Dir{all[damaged], all[other]}
			if _, err := l.tryOpen(ForDevice); !errors.Is(err, engine.ErrUnavailable) {
				t.Fatalf("store %d and the damaged %d: %v", other, damaged, err)
			}
		}
		l.dirs = []*store.Dir{all[damaged]}
		if _, err := l.tryOpen(ForDevice); !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("the damaged %d alone: %v", damaged, err)
		}
		l.dirs = all
		s = l.open(ForDevice)
		mustRead(t, s, pattern(1, 1<<20), 0)
		s.bringBack(s.background.ctx)
		agreeing(t, l.detach(s), 3)
	}
}
