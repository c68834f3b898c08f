package history

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// writer is the goroutine that has the files.
type writer struct {
	*Book
	doubtful map[volume.ID]bool // the last write of the file failed: nothing is known of its end
}

// perform does a batch in order; entries of one volume that follow each other are written at once.
func (w *writer) perform(batch []request) {
	waiting := map[volume.ID][]told{}
	for _, r := range batch {
		switch {
		case r.entry != nil:
			waiting[r.id] = append(waiting[r.id], *r.entry)
		case r.id == "":
			w.flush(waiting)
			r.reply(answer{})
		default:
			w.keep(r.id, waiting[r.id])
			delete(waiting, r.id)
			r.reply(w.one(r))
		}
	}
	w.flush(waiting)
}

func (r request) reply(a answer) {
	if r.answer != nil {
		r.answer <- a
	}
}

func (w *writer) flush(waiting map[volume.ID][]told) {
	for id, entries := range waiting {
		w.keep(id, entries)
	}
	clear(waiting)
}

// one reads or removes.
func (w *writer) one(r request) answer {
	if r.remove {
		if err := w.remove(r.id); err != nil {
			w.c.Log.Error("history of a deleted volume could not be removed", "volume", r.id, "error", err)
		}
		return answer{}
	}
	h, err := w.read(r.id)
	if err != nil {
		err = fmt.Errorf("history of volume %s: %w", r.id, err)
	}
	return answer{history: h, err: err}
}

func (w *writer) read(id volume.ID) (History, error) {
	raw, err := w.raw(id)
	if err != nil {
		return History{Volume: id}, err
	}
	return decode(id, raw)
}

func (w *writer) remove(id volume.ID) error {
	h, _ := w.read(id) // for the log only
	err := w.c.FS.Remove(w.file(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.c.FS.SyncDir(w.c.Dir) // its removal may be what a crash kept from being durable
	case err != nil:
		return err
	}
	delete(w.doubtful, id)
	w.takeMissed(id)
	w.c.Log.Info("history removed", "volume", id, "entries", len(h.Entries), "dropped", h.Dropped)
	return w.c.FS.SyncDir(w.c.Dir)
}

// keep writes entries, or counts them as missed.
func (w *writer) keep(id volume.ID, entries []told) {
	if len(entries) == 0 {
		return
	}
	before := w.takeMissed(id)
	if err := w.write(id, before.into(entries)); err != nil {
		w.doubtful[id] = true
		w.putMissed(id, before)
		w.miss(id, entries, err)
		return
	}
	delete(w.doubtful, id)
}

func (w *writer) takeMissed(id volume.ID) gap {
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.missed[id]
	delete(w.missed, id)
	return g
}

// putMissed gives g back, which is older than what was missed meanwhile.
func (w *writer) putMissed(id volume.ID, g gap) {
	if g.entries == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	g.entries += w.missed[id].entries
	w.missed[id] = g
}

// write makes add durable at the end of the volume's file.
func (w *writer) write(id volume.ID, entries []told) error {
	raw, err := w.raw(id)
	if err != nil {
		return err
	}
	h, err := decode(id, raw)
	if err != nil {
		return err
	}
	next := h
	next.Entries = slices.Clip(h.Entries) // h's own stay as they are
	for _, t := range entries {
		next = next.with(t)
	}
	add := next.Entries[len(h.Entries):]
	if len(add) == 0 && !w.doubtful[id] {
		return nil
	}
	lines, err := encodeEntries(id, add)
	if err != nil {
		return err
	}
	if len(raw) == 0 || h.Damaged > 0 || w.doubtful[id] || len(next.Entries) > EntriesMax || len(raw)+len(lines) > BytesMax {
		return w.rewrite(h, add)
	}
	return w.append(id, int64(len(raw)), lines)
}

// rewrite replaces the file as a whole. What was damaged is noted, once.
func (w *writer) rewrite(h History, add []Entry) error {
	if h.Damaged > 0 {
		w.c.Log.Warn("history had an unfinished or damaged part, which was left out", "volume", h.Volume, "bytes", h.Damaged)
		gap := Entry{Kind: Missed, Text: fmt.Sprintf("%d bytes before this were unfinished or damaged", h.Damaged)}
		h.Entries = append(h.Entries, gap.clean(w.c.Clock()))
	}
	h.Entries = append(h.Entries, add...)
	if err := h.trim(); err != nil {
		return err
	}
	raw, err := encode(h)
	if err != nil {
		return err
	}
	return vfs.WriteFile(w.c.FS, w.file(h.Volume), raw)
}

func (w *writer) append(id volume.ID, end int64, lines []byte) error {
	f, err := w.c.FS.Open(w.file(id), 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.WriteAt(lines, end); err != nil {
		return err
	}
	return f.Datasync()
}
