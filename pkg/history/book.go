package history

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	suffix     = ".history"
	tempSuffix = ".new" // of vfs.WriteFile
	// queueMax bounds what waits for a slow disk.
	queueMax = 4096
)

// ErrClosed: the book was closed.
var ErrClosed = errors.New("the history is closed")

var errBehind = errors.New("too much is waiting for the disk, or the program ends")

// Config is what a Book needs.
type Config struct {
	FS    vfs.FS
	Dir   string           // a directory of its own, made where needed
	Log   *slog.Logger     // required
	Clock func() time.Time // optional: time.Now
}

// Book keeps the histories of all volumes. One goroutine has the files; the methods may be called concurrently. At most one
// Book may have a directory.
type Book struct {
	c    Config
	wake chan struct{}
	done chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex
	queue  []request
	closed bool
	missed map[volume.ID]gap
}

// gap is entries that could not be kept and are not noted yet.
type gap struct {
	entries int
	since   time.Time // of the first of them
}

func (g gap) entry() Entry {
	return Entry{Time: g.since, Kind: Missed, Text: fmt.Sprintf("%d entries could not be kept; the log has them", g.entries)}
}

// into puts the gap where it belongs by its time.
func (g gap) into(entries []told) []told {
	if g.entries == 0 {
		return entries
	}
	at := slices.IndexFunc(entries, func(t told) bool { return t.Time.After(g.since) })
	if at < 0 {
		at = len(entries)
	}
	return slices.Insert(slices.Clone(entries), at, told{Entry: g.entry()})
}

// request is one thing to do. Exactly one of entry, remove and read is set, or none: then nothing is done but to answer.
type request struct {
	id     volume.ID
	entry  *told
	remove bool
	read   bool
	answer chan<- answer // nil: nobody waits
}

type answer struct {
	history History
	err     error
}

// Open returns the book in c.Dir. What interrupted writes left is removed. Call Close at the end.
func Open(c Config) (*Book, error) {
	if c.FS == nil || c.Dir == "" || c.Log == nil {
		return nil, errors.New("history: file system, directory and log are required")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if err := prepare(c.FS, c.Dir); err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	b := &Book{c: c, wake: make(chan struct{}, 1), done: make(chan struct{}), missed: map[volume.ID]gap{}}
	go b.work()
	return b, nil
}

func prepare(fsys vfs.FS, dir string) error {
	if err := vfs.MakeDirs(fsys, dir); err != nil {
		return err
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), tempSuffix) {
			if err := fsys.Remove(path.Join(dir, n.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Append puts e at the end of the volume's history. It never waits for the disk, so that it can be called from any event:
// the entry is durable soon afterwards, and a crash in between loses it and nothing before it. One that tells the same as the newest
// is left out. Where it cannot be kept the log has it, and the next entry that can be says so.
func (b *Book) Append(id volume.ID, e Entry) { b.tell(id, told{Entry: e}) }

// AppendLate is Append for what somebody else has kept, who tells it later and may tell it again: it is left out where it is there
// already, where the volume has no history, and where that begins later, since then it is another volume's of that name.
func (b *Book) AppendLate(id volume.ID, e Entry) { b.tell(id, told{Entry: e, late: true}) }

func (b *Book) tell(id volume.ID, t told) {
	t.Entry = t.clean(b.c.Clock())
	if _, err := volume.ParseID(string(id)); err != nil {
		b.c.Log.Error("history of what is no volume", "kind", t.Kind, "text", t.Text, "error", err)
		return
	}
	if !b.put(request{id: id, entry: &t}) {
		b.miss(id, []told{t}, errBehind)
	}
}

// Remove takes the volume's history away, with what was appended before; the log keeps that it was there. It does not wait either.
func (b *Book) Remove(id volume.ID) {
	_, err := volume.ParseID(string(id))
	if err == nil && !b.put(request{id: id, remove: true}) {
		err = errBehind
	}
	if err != nil {
		b.c.Log.Error("history of a deleted volume could not be removed", "volume", id, "error", err)
	}
}

// Read returns the volume's history, with everything that was appended before the call; an empty one where there is none.
func (b *Book) Read(ctx context.Context, id volume.ID) (History, error) {
	if _, err := volume.ParseID(string(id)); err != nil {
		return History{}, err
	}
	return b.ask(ctx, request{id: id, read: true})
}

// Sync waits until everything appended before the call is durable, as far as it can be.
func (b *Book) Sync(ctx context.Context) error {
	_, err := b.ask(ctx, request{})
	return err
}

func (b *Book) ask(ctx context.Context, r request) (History, error) {
	answers := make(chan answer, 1)
	r.answer = answers
	if !b.put(r) {
		return History{}, fmt.Errorf("%w, or too much is waiting for the disk", ErrClosed)
	}
	select {
	case a := <-answers:
		return a.history, a.err
	case <-ctx.Done():
		return History{}, fmt.Errorf("history: the disk does not answer: %w", context.Cause(ctx))
	}
}

// Close writes what is waiting and ends the goroutine, or gives up when ctx ends. Entries that come later are missed.
func (b *Book) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.signal()
	select {
	case <-b.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("history: the disk does not answer: %w", context.Cause(ctx))
	}
}

// put queues r; false where the book is closed or too much is waiting.
func (b *Book) put(r request) bool {
	b.mu.Lock()
	ok := !b.closed && len(b.queue) < queueMax
	if ok {
		b.queue = append(b.queue, r)
	}
	b.mu.Unlock()
	b.signal()
	return ok
}

func (b *Book) signal() {
	select {
	case b.wake <- struct{}{}:
	default: // it is awake
	}
}

// work does what is queued, in order, until the book is closed.
func (b *Book) work() {
	defer close(b.done)
	w := writer{Book: b, doubtful: map[volume.ID]bool{}}
	for range b.wake {
		batch, last := b.take()
		w.perform(batch)
		if last {
			return
		}
	}
}

func (b *Book) take() (batch []request, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch, b.queue = b.queue, nil
	return batch, b.closed
}

// miss notes that entries were lost.
func (b *Book) miss(id volume.ID, lost []told, cause error) {
	b.mu.Lock()
	g := b.missed[id]
	if g.entries == 0 {
		g.since = lost[0].Time
	}
	g.entries += len(lost)
	b.missed[id] = g
	b.mu.Unlock()
	for _, e := range lost {
		b.c.Log.Error("history entry could not be kept", "volume", id, "kind", e.Kind, "epoch", e.Epoch, "text", e.Text, "error", cause)
	}
}

func (b *Book) file(id volume.ID) string { return path.Join(b.c.Dir, string(id)+suffix) }

// raw is the content of the volume's file, nil where there is none.
func (b *Book) raw(id volume.ID) ([]byte, error) {
	raw, err := vfs.ReadFile(b.c.FS, b.file(id), fileMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}
