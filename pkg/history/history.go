// Package history keeps what became of each volume: a bounded, durable list of events for people, one file a volume.
//
// It decides nothing and proves nothing: receipts prove, the engine's records decide. Losing a history loses no data.
package history

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Kind says what happened.
type Kind string

// Kinds of entries.
const (
	Created     Kind = "created"
	Published   Kind = "published"        // opened for a node
	Attached    Kind = "attached"         // shown there: mounted, or as a raw device
	Unclean     Kind = "attached-unclean" // its last writer died or was shut out before it had flushed
	Checked     Kind = "checked"          // the filesystem's own check ran; Took is how long
	EngineDied  Kind = "engine-died"      // its device waits for the next engine, or is given up
	TakenOver   Kind = "taken-over"       // the next engine went on where one had died; Took is the pause
	Upgraded    Kind = "upgraded"         // a planned hand-over to another program; Took is the pause
	RolledBack  Kind = "upgrade-undone"   // the new program failed, the old one serves on
	Lost        Kind = "device-lost"      // the device answers nothing but errors
	Fenced      Kind = "fenced"           // every writer so far was shut out
	Detached    Kind = "detached"         // a receipt is in force; the text says of which kind
	Quarantined Kind = "quarantined"      // copies disagree and nobody can tell which is right
	Salvaged    Kind = "salvaged"         // an operator decided which copy counts
	Missed      Kind = "entries-missed"   // of the history itself: what could not be kept
)

// Entry is one event.
type Entry struct {
	Time time.Time `json:"time"` // when it was told of; set by Append where it is zero
	Kind Kind      `json:"kind"`
	// Epoch is the writer's that it is about; where there is no writer yet, the attachment's.
	Epoch volume.Epoch  `json:"epoch,omitempty"`
	Text  string        `json:"text,omitempty"` // for people, at most TextMax bytes
	Took  time.Duration `json:"took,omitempty"` // in nanoseconds, where it is known and matters
}

// String is the entry in a line, at the reader's time.
func (e Entry) String() string {
	words := []string{e.Time.Local().Format(time.DateTime), string(e.Kind)}
	if e.Epoch != 0 {
		words = append(words, fmt.Sprintf("(epoch %d)", e.Epoch))
	}
	if e.Took != 0 {
		words = append(words, "["+Took(e.Took)+"]")
	}
	return strings.Join(append(words, e.Text), " ")
}

// Took words a duration as exactly as people want it.
func Took(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// Limits of one volume's history. What is over them is dropped, oldest first, down to three quarters of each.
const (
	EntriesMax = 512
	BytesMax   = 256 << 10
	TextMax    = 1 << 10
)

// History is what is kept of one volume, oldest first.
type History struct {
	Volume  volume.ID `json:"volume"`
	Entries []Entry   `json:"entries"`
	// Dropped is how many older ones had to make room, the newest of them at Until.
	Dropped int       `json:"dropped,omitempty"`
	Until   time.Time `json:"until,omitzero"`
	// Damaged is how many bytes of the file are not what was written; what they said is lost.
	Damaged int `json:"damaged,omitempty"`
}

// Newest returns the last n entries.
func (h History) Newest(n int) []Entry { return h.Entries[max(0, len(h.Entries)-n):] }

// same says that o tells nothing that e did not: it happened again, as a call that is repeated until somebody acts.
func (e Entry) same(o Entry) bool { return e.Kind == o.Kind && e.Epoch == o.Epoch && e.Text == o.Text }

// with adds an entry, unless it tells the same as the newest. One that is told late is added only to a history that was there when it
// happened, and only once.
func (h History) with(t told) History {
	n := len(h.Entries)
	switch {
	case n > 0 && h.Entries[n-1].same(t.Entry) && !t.late:
		return h
	case t.late && (n == 0 || t.Time.Before(h.Entries[0].Time) || h.has(t.Entry)):
		return h
	}
	h.Entries = append(h.Entries, t.Entry)
	return h
}

func (h History) has(e Entry) bool {
	return slices.ContainsFunc(h.Entries, func(o Entry) bool { return o.same(e) && o.Time.Equal(e.Time) })
}

// told is an entry on its way.
type told struct {
	Entry
	late bool
}

// clean makes an entry one that can be kept: one line of bounded, valid text, a time without what does not survive a restart.
func (e Entry) clean(now time.Time) Entry {
	if e.Time.IsZero() {
		e.Time = now
	}
	e.Time = e.Time.UTC().Truncate(time.Millisecond)
	e.Kind = Kind(clip(line(string(e.Kind)), kindMax))
	e.Text = clip(line(e.Text), TextMax)
	e.Took = max(e.Took, 0).Round(time.Microsecond)
	return e
}

const kindMax = 64

// line puts words of whatever text on one line.
func line(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.Join(strings.Fields(s), " ")
}

func clip(s string, most int) string {
	const mark = "…"
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len(mark)], "") + mark
}
