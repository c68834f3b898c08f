package explorer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// book is a scenario of one disk on which a program keeps something.
func book(name string, run func(t *testing.T, fsys vfs.FS, expect func(func() expectation))) scenario {
	return scenario{name: "books/" + name, weight: share / 2, play: func(t *testing.T, seed uint64) []point {
		r := newRecorder(newDisks(stateDisk), seed)
		p := r.start()
		run(t, p.fs, func(now func() expectation) { r.expect = now })
		r.end()
		r.expect = nil
		return r.points
	}}
}

func books() []scenario {
	return []scenario{book("journal", playJournal), book("keyring", playKeyring), book("history", playHistory)}
}

const stateDir = "/" + stateDisk + "/belay"

// stages is what a journal was told to keep. The volume in doubt may have what it had, or what is being put: nil is nothing.
type stages struct {
	entries map[volume.ID]detach.Entry
	doubt   volume.ID
	putting *detach.Entry
}

func journalEntry(id volume.ID, n int) detach.Entry {
	return detach.Entry{
		Attachment: volume.Attachment{Volume: id, Node: theNode, Epoch: volume.Epoch(n)}, Staging: "/staging", Access: detach.Mount,
		Phase: detach.Staged, Unflushed: strings.Repeat("x", n*150), // some are longer than a sector
	}
}

func playJournal(t *testing.T, fsys vfs.FS, expect func(func() expectation)) {
	k := &stages{entries: map[volume.ID]detach.Entry{}}
	expect(func() expectation {
		now := *k
		now.entries = maps.Clone(k.entries)
		return &now
	})
	j, err := detach.OpenJournal(fsys, stateDir+"/stages")
	for n, step := range []struct {
		id     volume.ID
		remove bool
	}{{"a", false}, {"b", false}, {"a", false}, {"a", true}, {"a", true}, {"b", false}, {"a", false}, {"b", true}} {
		if err == nil {
			err = k.tell(j, step.id, n+1, step.remove)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// tell has the journal keep an entry, or no longer keep one.
func (k *stages) tell(j *detach.Journal, id volume.ID, n int, remove bool) (err error) {
	k.doubt, k.putting = id, nil
	if remove {
		err = j.Remove(id)
		delete(k.entries, id)
	} else {
		e := journalEntry(id, n)
		k.putting = &e
		if err = j.Put(e); err == nil {
			k.entries[id] = e
		}
	}
	if err == nil {
		k.doubt = ""
	}
	return err
}

func (k *stages) check(_ *testing.T, _ state, remake func() *disks) (verdict, error) {
	left := remake()
	first, err := k.look(left)
	if err != nil {
		return opened, err
	}
	second, err := k.look(left.cut())
	if err == nil && !reflect.DeepEqual(first, second) {
		err = fmt.Errorf("after another power cut %+v, before it %+v", second, first)
	}
	return opened, err
}

// look opens the journal and compares it with what was promised.
func (k *stages) look(left *disks) (map[volume.ID]detach.Entry, error) {
	j, err := detach.OpenJournal(left, stateDir+"/stages")
	if err != nil {
		return nil, err
	}
	return k.entriesOf(j)
}

// entriesOf returns what the journal tells, where it is as promised.
func (k *stages) entriesOf(j *detach.Journal) (map[volume.ID]detach.Entry, error) {
	got := map[volume.ID]detach.Entry{}
	all, err := j.List()
	for _, e := range all {
		got[e.Attachment.Volume] = e
	}
	for _, id := range []volume.ID{"a", "b"} {
		e, there := got[id]
		want, promised := k.entries[id]
		ok := there == promised && reflect.DeepEqual(e, want)
		if id == k.doubt {
			ok = ok || !there && k.putting == nil || there && k.putting != nil && reflect.DeepEqual(e, *k.putting)
		}
		if !ok {
			err = errors.Join(err, fmt.Errorf("entry of %s: %+v, %t; promised is %+v, %t (in doubt: %s)", id, e, there, want, promised, k.doubt))
		}
	}
	return got, err
}

// keys are those that may sign, and receipts that were signed.
type keys struct {
	current  string // promised; empty: the keyring is being made
	rotating bool
	signed   [][]byte
}

func playKeyring(t *testing.T, fsys vfs.FS, expect func(func() expectation)) {
	k := &keys{}
	expect(func() expectation {
		now := *k
		now.signed = slices.Clone(k.signed)
		return &now
	})
	ring, err := receipt.OpenKeyring(fsys, stateDir+"/keys")
	for range 3 {
		if err != nil {
			break
		}
		k.current, k.rotating = ring.Current(), false
		var raw []byte
		if raw, _, err = receipt.NewBook(ring, time.Now).Sign(theBarrier(), receipt.Facts{Name: "vol"}); err == nil {
			k.signed = append(k.signed, raw)
			k.rotating = true
			err = ring.Rotate()
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// theBarrier is one that can be signed.
func theBarrier() engine.Barrier {
	digest := engine.Digest{Algorithm: "sum", Scope: "full", Bytes: volume.MiB, Sum: engine.HexBytes{1, 2, 3}}
	return engine.Barrier{
		Attachment: volume.Attachment{Volume: theVolume, Node: theNode, Epoch: 3}, Writer: 3, View: "3.1", Clean: true, Size: volume.MiB, Replicas: 1,
		Expected: digest, Evidence: []engine.Evidence{{
			Replica: engine.Replica{ID: "a", State: engine.InSync}, Incarnation: "i", Position: engine.Position{Generation: "3", Sequence: 9},
			PositionBy: engine.AttestReplica, Digest: digest, DigestBy: engine.AttestReplica, Durable: true, At: time.Unix(1, 0),
		}},
	}
}

func (k *keys) check(_ *testing.T, _ state, remake func() *disks) (verdict, error) {
	left := remake()
	first, err := k.look(left)
	if err != nil {
		return opened, err
	}
	second, err := k.look(left.cut())
	if err == nil && first != second {
		err = fmt.Errorf("after another power cut key %s signs, before it %s", second, first)
	}
	return opened, err
}

// look opens the keyring: the promised key signs, or the next one, and every receipt is believed.
func (k *keys) look(left *disks) (string, error) {
	ring, err := receipt.OpenKeyring(left, stateDir+"/keys")
	if err != nil {
		return "", err
	}
	if k.current != "" && !k.rotating && ring.Current() != k.current {
		return "", fmt.Errorf("key %s signs, %s should", ring.Current(), k.current)
	}
	b := receipt.NewBook(ring, time.Now)
	for i, raw := range k.signed {
		if _, err := b.Verify(raw); err != nil {
			return "", fmt.Errorf("receipt %d: %w", i, err)
		}
	}
	mine, _, err := b.Sign(theBarrier(), receipt.Facts{Name: "vol"})
	if err == nil {
		_, err = b.Verify(mine)
	}
	return ring.Current(), err
}

// told is a history as it was told.
type told struct {
	entries []string // in order; the first of them are durable
	durable int
	removed bool // or is being removed
	gone    bool
}

func playHistory(t *testing.T, fsys vfs.FS, expect func(func() expectation)) {
	h := &told{}
	expect(func() expectation {
		now := *h
		now.entries = slices.Clone(h.entries)
		return &now
	})
	ctx := context.Background()
	b, err := history.Open(history.Config{FS: fsys, Dir: stateDir + "/history", Log: quiet})
	if err != nil {
		t.Error(err)
		return
	}
	n := 0
	for _, batch := range []int{1, 2, 1, 3, 0, 2, 1} {
		if batch == 0 {
			h.removed = true
			b.Remove(theVolume)
		}
		for range batch {
			n++
			text := fmt.Sprint(n, " ", strings.Repeat("x", n*100))
			h.entries = append(h.entries, text)
			b.Append(theVolume, history.Entry{Kind: history.Attached, Epoch: volume.Epoch(n), Text: text})
		}
		if err := b.Sync(ctx); err != nil {
			t.Error(err)
		}
		if batch == 0 {
			*h = told{}
			continue
		}
		h.durable = len(h.entries)
	}
	if err := b.Close(ctx); err != nil {
		t.Error(err)
	}
}

func (h *told) check(_ *testing.T, _ state, remake func() *disks) (verdict, error) {
	left := remake()
	b, err := history.Open(history.Config{FS: left, Dir: stateDir + "/history", Log: quiet})
	if err != nil {
		return opened, err
	}
	defer b.Close(context.Background())
	if err := h.look(b); err != nil {
		return opened, err
	}
	// It goes on: what comes next is kept.
	b.Append(theVolume, history.Entry{Kind: history.Detached, Epoch: 99, Text: "afterwards"})
	got, err := b.Read(context.Background(), theVolume)
	if err == nil && (len(got.Entries) == 0 || got.Entries[len(got.Entries)-1].Text != "afterwards" || got.Damaged > 0) {
		err = fmt.Errorf("what is told afterwards is not kept: %+v", got)
	}
	return opened, err
}

// look wants everything that was durable, and after it nothing but what was told, in its order. Where some of that is missing before what
// is there the history says so.
func (h *told) look(b *history.Book) error {
	got, err := b.Read(context.Background(), theVolume)
	if err != nil {
		return err
	}
	if h.removed && len(got.Entries) == 0 {
		return nil
	}
	at := 0
	for i, e := range got.Entries {
		next := slices.Index(h.entries[at:], e.Text)
		if next < 0 || next > 0 && (i < h.durable || got.Damaged == 0) {
			return fmt.Errorf("entry %d is %q, %d bytes are damaged; durable were %d of %q", i, e.Text, got.Damaged, h.durable, h.entries)
		}
		at += next + 1
	}
	if len(got.Entries) < h.durable {
		return fmt.Errorf("%d entries, %d were durable", len(got.Entries), h.durable)
	}
	return nil
}
