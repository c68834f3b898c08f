package host

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// The last words of an engine process outlive the host that has heard them, and a process that died while no host looked is heard
// by the next one.
func TestLastWordsOutliveTheHost(t *testing.T) {
	for name, look := range map[string]func(d *held, p *process){
		"heard":     (*held).hear,
		"inherited": func(d *held, p *process) { d.inherit(p.running()) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := ThisMachine(nil)
			h := &Host{machine: m, book: book{m.Files(), dir}, log: slog.New(slog.DiscardHandler), boot: "now"}
			d := newHeld(h, entry{Boot: "now", Volume: id})
			p := newProcess(m, id, filepath.Join(dir, "socket"), filepath.Join(dir, "words"), nil)
			if err := os.WriteFile(p.words, []byte(`{"cause":"a sync failed"}`), 0o600); err != nil {
				t.Fatal(err)
			}
			look(d, p)
			entries, err := h.book.list("now")
			if err != nil || len(entries) != 1 {
				t.Fatalf("%v, %v", entries, err)
			}
			next := newHeld(h, entries[0])
			var words struct{ Cause string }
			if err := json.Unmarshal(next.entry.Words, &words); err != nil || words.Cause != "a sync failed" {
				t.Errorf("the next host knows of %s (%v)", next.entry.Words, err)
			}
			if _, err := os.Stat(p.words); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left: %v", err)
			}
		})
	}
}
