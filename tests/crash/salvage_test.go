package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	hist "github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
)

// plan is what `belay salvage` says.
func (s *subject) plan(args ...string) (p admin.SalvagePlan) {
	s.Helper()
	s.do("salvage plan", func(ctx context.Context) error {
		return s.AskJSON(ctx, &p, "salvage", append([]string{s.ID}, args...)...)
	})
	return p
}

// salvageFrom decides for a store.
func (s *subject) salvageFrom(store string, args ...string) (r receipt.Receipt) {
	s.Helper()
	args = append([]string{s.ID, "--from", store, "--reason", "a test", "--yes"}, args...)
	s.do("salvage", func(ctx context.Context) error { return s.AskJSON(ctx, &r, "salvage", args...) })
	if r.Kind != receipt.Forced || r.Salvaged == nil || r.Salvaged.Place != store || r.Reason != "a test" || r.Actor == "" || r.Clean {
		s.Fatalf("receipt of a salvage: %+v, %+v", r, r.Salvaged)
	}
	return r
}

// refusesToSalvage wants the exit code 1 and what it says.
func (s *subject) refusesToSalvage(store, says string, args ...string) {
	s.Helper()
	a, err := s.Ask(s.Context(), "salvage", append([]string{s.ID, "--from", store, "--reason", "a test", "--yes"}, args...)...)
	if err != nil || a.Code != 1 || !strings.Contains(a.Stderr, says) {
		s.Errorf("salvage from %s: exit code %d, %v, want 1 and %q: %s%s", store, a.Code, err, says, a.Stdout, a.Stderr)
	}
}

func (s *subject) copyAt(p admin.SalvagePlan, place string) engine.SalvageCopy {
	s.Helper()
	for _, c := range p.Copies {
		if c.Place == place {
			return c
		}
	}
	s.Fatalf("belay salvage says nothing of %s: %+v", place, p)
	return engine.SalvageCopy{}
}

func (s *subject) choiceAt(p admin.SalvagePlan, place string) engine.SalvageChoice {
	s.Helper()
	for _, c := range p.Choices {
		if c.Place == place {
			return c
		}
	}
	s.Fatalf("belay salvage has no choice %s: %+v", place, p)
	return engine.SalvageChoice{}
}

// unplugAll takes the disks away, as far as the dying processes let go of them.
func (s *subject) unplugAll(disks ...*disk) {
	s.Helper()
	for _, d := range disks {
		s.until("the disk can be unmounted", func() (bool, error) { return d.unplug() == nil, nil })
	}
}

// TestStoresComeBackInAnyOrder: one disk fails under load, later all others at once, and the machine is reset. They come back one by one, the
// stale one with the largest and newest file. Nobody is asked anything: too few of them are refused, the others bring the volume up
// with everything that was synced.
func TestStoresComeBackInAnyOrder(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		s := r.subject(fmt.Sprint("order-", round), "ext4", 64*mib)
		s.do("attach", s.Attach)
		order := r.random.Perm(len(disks))
		stale := disks[order[0]]
		s.underLoad(func() {
			s.goOn()
			stale.pull()
			s.becomes(engine.Degraded)
			s.goOn()
			for _, d := range disks {
				if d != stale {
					d.pull()
				}
			}
			s.must("kill", s.KillAll())
		})
		s.unplugAll(disks...)
		r.start()
		s.comesUpOnlyWith(disks, stale, r.random.Perm(len(disks)))
		s.finish()
		s.newest(s.Volume, receipt.Fenced)
		s.do("controller-unpublish", s.ControllerUnpublish)
		s.do("attach", s.Attach)
		s.isWhole()
	}
}

// goOn wants records synced that nobody had begun before.
func (s *subject) goOn() {
	s.Helper()
	least := s.oracle.synced.Load() + 6
	s.until("more synced records", func() (bool, error) { return s.oracle.synced.Load() >= least, nil })
}

// comesUpOnlyWith mounts the disks in the order, and wants the volume to come up with a majority that has a member, and not before.
func (s *subject) comesUpOnlyWith(disks []*disk, stale *disk, order []int) {
	s.Helper()
	for i, n := range order {
		d := disks[n]
		d.mount()
		if d == stale {
			s.fatten(d)
		}
		p := s.plan("--read")
		if c := s.copyAt(p, d.store); !c.Readable || c.Member && d == stale && p.Certain {
			s.Errorf("%s is back: %+v", d.store, c)
		}
		if i == 0 {
			if p.Outlook != engine.OutlookWaits || len(p.WaitsFor) != 2 || len(p.Choices) != 1 {
				s.Errorf("with one of three: %+v", p)
			}
			s.refused("controller-unpublish", s.ControllerUnpublish(s.Context()), codes.Unavailable, s.ID)
			continue
		}
		if p.Outlook != engine.OutlookComesUp || len(p.Choices) != 0 {
			s.Errorf("with %d of three: %+v", i+1, p)
		}
		s.refusesToSalvage(stale.store, "nothing to salvage")
	}
}

// fatten makes a stale replica's file the largest and the newest of all.
func (s *subject) fatten(d *disk) {
	s.Helper()
	data := filepath.Join(d.store, "volumes", s.ID, "data")
	tomorrow := time.Now().Add(24 * time.Hour)
	s.must("a large file", errors.Join(os.Truncate(data, 1<<40), os.Chtimes(data, tomorrow, tomorrow)))
}

// TestOnlyStoreComesBack: the volume has one store. It vanishes under load together with everybody, and is back: the same data.
func TestOnlyStoreComesBack(t *testing.T) {
	t.Parallel()
	d := newDisk(t, 512*mib)
	r := newMachine(t, d.store)
	r.start()
	s := r.subject("only", "ext4", 64*mib)
	for range 3 {
		s.do("attach", s.Attach)
		s.must("what was synced", s.oracle.check(s.Target))
		s.underLoad(func() {
			s.goOn()
			d.pull()
			s.must("kill", s.KillAll())
		})
		s.unplugAll(d)
		r.start()
		s.refused("controller-unpublish", s.ControllerUnpublish(t.Context()), codes.Unavailable, s.ID)
		d.mount()
		if p := s.plan(); p.Outlook != engine.OutlookComesUp {
			t.Errorf("the only store is back: %+v", p)
		}
		s.finish()
		s.newest(s.Volume, receipt.Fenced)
		s.do("controller-unpublish", s.ControllerUnpublish)
	}
	s.do("attach", s.Attach)
	s.isWhole()
}

// TestSalvageOfAStaleStore: the two disks with the newest writes burn. What the stale one holds is salvaged: all that was there when it failed,
// nothing of what came after, as was said before.
func TestSalvageOfAStaleStore(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("burnt", "ext4", 64*mib)
	s.do("attach", s.Attach)
	s.keep()
	s.do("detach", s.Detach)
	s.do("attach", s.Attach)
	s.must("write", writeFile(filepath.Join(s.Target, "early"), []byte("early")))
	stale := disks[r.random.IntN(len(disks))]
	stale.pull()
	s.must("write", writeFile(filepath.Join(s.Target, "late"), bytes.Repeat([]byte("late"), mib)))
	s.becomes(engine.Degraded)
	s.must("kill", s.KillAll())
	s.unplugAll(disks...)
	stale.mount()
	r.start()

	p := s.plan("--read")
	c := s.choiceAt(p, stale.store)
	if p.Outlook != engine.OutlookWaits || p.Certain || len(p.WaitsFor) != 2 || !strings.Contains(strings.Join(c.Loses, "\n"), "nobody here can tell") {
		t.Errorf("plan %+v", p)
	}
	text, err := r.Ask(t.Context(), "salvage", s.ID)
	if err != nil || text.Code != 0 || !strings.Contains(text.Stdout, "WAITS") || !strings.Contains(text.Stdout, "--from "+stale.store) {
		t.Errorf("belay salvage: %v\n%s%s", err, text.Stdout, text.Stderr)
	}
	proof := s.salvageFrom(stale.store)
	again := s.salvageFrom(stale.store)
	if !again.At.Equal(proof.At) || proof.Salvaged.Lost == "" || proof.Salvaged.Replicas != 3 {
		t.Errorf("receipt %+v, once more %+v", proof.Salvaged, again.Salvaged)
	}
	s.finish() // the workload of before the fire
	s.do("controller-unpublish", s.ControllerUnpublish)
	before := len(s.history(s.Volume).Entries)
	s.do("attach", s.Attach)
	s.tells(s.Volume, before, hist.Published, hist.Unclean, hist.Checked, hist.Attached)
	s.must("what was synced before", s.keptIsThere())
	early, err := os.ReadFile(filepath.Join(s.Target, "early"))
	if _, late := os.Stat(filepath.Join(s.Target, "late")); err != nil || string(early) != "early" || !errors.Is(late, os.ErrNotExist) {
		t.Errorf("early %q, %v; late %v", early, err, late)
	}
	s.must("write", writeFile(filepath.Join(s.Target, "after"), []byte("after")))
	s.do("detach", s.Detach)
	s.theOldOnesStayOut(disks, stale)
}

// theOldOnesStayOut: the disks that burnt come back, beside the salvaged one and without it. They are no second truth, and are not touched.
func (s *subject) theOldOnesStayOut(disks []*disk, chosen *disk) {
	s.Helper()
	var trees []string
	for _, d := range disks {
		if d != chosen {
			d.mount()
			trees = append(trees, tree(s.T, filepath.Join(d.store, "volumes", s.ID)))
		}
	}
	s.until("the stores are back", func() (bool, error) {
		n := 0
		for _, c := range s.plan().Copies {
			if c.Readable && !c.Admitted {
				n++
			}
		}
		return n == 2, nil
	})
	s.do("attach", s.Attach)
	if after, err := os.ReadFile(filepath.Join(s.Target, "after")); err != nil || string(after) != "after" {
		s.Errorf("after %q, %v", after, err)
	}
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.must("the salvaged store goes away", os.Rename(chosen.store, chosen.store+".away"))
	s.refused("controller-publish of an older truth", s.ControllerPublish(s.Context()), codes.Unavailable, s.ID, "salvaged")
	s.kill()
	s.start()
	s.refused("controller-publish of an older truth", s.ControllerPublish(s.Context()), codes.Unavailable, s.ID, "salvaged")
	s.must("the salvaged store is back", os.Rename(chosen.store+".away", chosen.store))
	for _, d := range disks {
		if d != chosen {
			if now := tree(s.T, filepath.Join(d.store, "volumes", s.ID)); now != trees[0] {
				s.Errorf("%s was touched: was\n%s\nis\n%s", d.store, trees[0], now)
			}
			trees = trees[1:]
		}
	}
	s.do("attach", s.Attach)
	s.do("detach", s.Detach)
	s.do("delete", s.Delete)
	s.settled()
}

// TestSalvageOfADamagedRecord: of three disks one is gone, one has a damaged record, and one is stale. The damaged one has everything, and says so
// as far as it can; chosen, it brings back all that was synced. What the other choice would have lost is known to the block.
func TestSalvageOfADamagedRecord(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("doubt", "ext4", 64*mib)
	s.do("attach", s.Attach)
	l := s.begin()
	l.goesOn()
	disks[0].pull()
	s.becomes(engine.Degraded)
	l.goesOn()
	l.end()
	s.must("kill", s.KillAll())
	s.unplugAll(disks...)
	disks[0].mount()
	disks[1].mount()
	damageSlot(t, filepath.Join(disks[1].store, "volumes", s.ID, "meta"))
	r.start()

	p := s.plan("--read")
	full, stale := s.choiceAt(p, disks[1].store), s.choiceAt(p, disks[0].store)
	if p.Outlook != engine.OutlookWaits || len(p.Choices) != 2 || p.Choices[0].From != full.From || full.LostBlocks != 0 || stale.LostBlocks == 0 || len(stale.Loses) < 2 {
		t.Errorf("plan %+v", p)
	}
	if c := s.copyAt(p, disks[1].store); !c.Doubtful || !c.Readable {
		t.Errorf("copy %+v", c)
	}
	s.salvageFrom(disks[1].store)
	s.finish()
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.do("attach", s.Attach)
	s.must("what was synced", s.oracle.check(s.Target))
	s.until("the stale one is rebuilt", func() (bool, error) { return s.copyAt(s.plan(), disks[0].store).Member, nil })
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.do("delete", s.Delete)
	s.settled()
}

// damageSlot makes one of the two record slots unreadable.
func damageSlot(t *testing.T, meta string) {
	t.Helper()
	const slot, size = 0x2000, 0x1000
	f, err := os.OpenFile(meta, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xA5}, size), slot); err != nil {
		t.Fatal(err)
	}
}

// TestSalvageOfAStalledVolume: two of three disks burn under load, for good. The workload waits for ever; a person gives its device up and
// decides for the disk that is left, which has everything that was synced.
func TestSalvageOfAStalledVolume(t *testing.T) {
	t.Parallel()
	r, disks := onDisks(t, 512*mib)
	s := r.subject("stalled", "ext4", 64*mib)
	s.do("attach", s.Attach)
	s.underLoad(func() {
		s.goOn()
		disks[1].pull()
		disks[2].pull()
		s.becomes(engine.Unavailable)
		p := s.plan()
		if p.Outlook != engine.OutlookInUse || len(p.Choices) != 1 {
			t.Errorf("plan of a volume that stands still: %+v", p)
		}
		s.refusesToSalvage(disks[0].store, "attached")
		s.salvageFrom(disks[0].store, "--kill")
	})
	s.finish()
	s.do("controller-unpublish", s.ControllerUnpublish)
	s.newest(s.Volume, receipt.Forced)
	s.do("attach", s.Attach)
	s.must("what was synced", s.oracle.check(s.Target))
	s.do("detach", s.Detach)
	s.newest(s.Volume, receipt.Clean)
	s.do("delete", s.Delete)
	s.settled()
}
