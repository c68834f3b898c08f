package explorer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// shelf is a book of the state directory that is used through a fault.
type shelf struct {
	disks *disks
	fs    vfs.FS
	fault *fault
}

// again asks for something, once more where the fault has made it fail.
func (s *shelf) again(what string, do func() error) error {
	err := do()
	if err == nil {
		return nil
	}
	if s.fault.happened() == "" {
		return fmt.Errorf("%s, with nothing wrong: %w", what, err)
	}
	s.fault.over()
	if err := do(); err != nil {
		return fmt.Errorf("%s, again: %w", what, err)
	}
	return nil
}

// TestFailEveryCallOfTheBooks fails each call in turn that the stage journal, the keyring and the history make: what was promised is
// there in the next process and after a power cut, and what failed works when it is asked for again.
func TestFailEveryCallOfTheBooks(t *testing.T) {
	for name, use := range map[string]func(s *shelf) error{"journal": useJournal, "keyring": useKeyring, "history": useHistory} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			for _, kind := range faultKinds {
				for _, forever := range []bool{false, true} {
					for n := 1; failShelf(t, plan{disk: stateDisk, kind: kind, forever: forever, n: n}, use); n++ {
						runs++
					}
				}
			}
			t.Logf("%d calls failed", runs)
		})
	}
}

// failShelf is false where the fault did not come up.
func failShelf(t *testing.T, p plan, use func(s *shelf) error) (hit bool) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{disks: newDisks(stateDisk), fault: &fault{plan: p}}
		s.fs = vfs.Faulty(s.disks, s.fault.hook)
		s.fault.lose = func(name string) {
			if err := s.disks.at(name).LoseUnsynced(name, nil); err != nil {
				t.Error(err)
			}
		}
		if err := use(s); err != nil {
			t.Fatalf("%s: %q failed: %v", p, s.fault.happened(), err)
		}
		hit = s.fault.happened() != ""
	})
	return hit
}

func useJournal(s *shelf) error {
	k := &stages{entries: map[volume.ID]detach.Entry{}}
	var j *detach.Journal
	err := s.again("open", func() (err error) { j, err = detach.OpenJournal(s.fs, stateDir+"/stages"); return err })
	for n, step := range []struct {
		id     volume.ID
		remove bool
	}{{"a", false}, {"b", false}, {"a", false}, {"a", true}, {"b", false}} {
		if err == nil {
			err = s.again(fmt.Sprint("step ", n), func() error { return k.tell(j, step.id, n+1, step.remove) })
		}
		if err == nil {
			err = s.again("read", func() error { _, err := k.entriesOf(j); return err })
		}
	}
	if err != nil {
		return err
	}
	_, now := k.look(s.disks.restart())
	_, later := k.look(s.disks.cut())
	return errors.Join(now, later)
}

func useKeyring(s *shelf) error {
	k := &keys{}
	var ring *receipt.Keyring
	err := s.again("open", func() (err error) { ring, err = receipt.OpenKeyring(s.fs, stateDir+"/keys"); return err })
	for range 2 {
		var raw []byte
		if err == nil {
			raw, _, err = receipt.NewBook(ring, time.Now).Sign(theBarrier(), receipt.Facts{Name: "vol"})
		}
		if err == nil {
			k.signed = append(k.signed, raw)
			k.current = ""
			err = s.again("rotate", ring.Rotate)
			k.current = ring.Current()
		}
	}
	if err != nil {
		return err
	}
	_, now := k.look(s.disks.restart())
	_, later := k.look(s.disks.cut())
	return errors.Join(now, later)
}

// useHistory: what cannot be kept is missed, and the history says so once it can.
func useHistory(s *shelf) error {
	var b *history.Book
	err := s.again("open", func() (err error) {
		b, err = history.Open(history.Config{FS: s.fs, Dir: stateDir + "/history", Log: quiet})
		return err
	})
	if err != nil {
		return err
	}
	ctx := context.Background()
	var texts []string
	for n := range 4 {
		texts = append(texts, fmt.Sprint(n, strings.Repeat("x", n*100)))
		b.Append(theVolume, history.Entry{Kind: history.Attached, Epoch: volume.Epoch(n), Text: texts[n]})
		_ = b.Sync(ctx)
		if n == 2 {
			s.fault.over()
		}
	}
	if err := errors.Join(wantTold(b, texts), b.Close(ctx)); err != nil {
		return err
	}
	for _, left := range []*disks{s.disks.restart(), s.disks.cut()} {
		b, err := history.Open(history.Config{FS: left, Dir: stateDir + "/history", Log: quiet})
		if err == nil {
			err = errors.Join(wantTold(b, texts), b.Close(ctx))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// wantTold wants the last of the texts, which was told when all was well, and the others or a word that they were missed.
func wantTold(b *history.Book, texts []string) error {
	got, err := b.Read(context.Background(), theVolume)
	if err != nil {
		return err
	}
	var have []string
	missed := false
	for _, e := range got.Entries {
		have = append(have, e.Text)
		missed = missed || e.Kind == history.Missed
	}
	for i, text := range texts {
		if !slices.Contains(have, text) && (i == len(texts)-1 || !missed) {
			return fmt.Errorf("%q is not there, missed is %t: %+v", text, missed, got)
		}
	}
	return nil
}
