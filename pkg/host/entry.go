package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// entry is what the next host must know of a device. It is written before what it says is done, and needs no sync: the
// device does not outlive the kernel, and what a process has written outlives the process.
type entry struct {
	Boot      string          `json:"boot"`
	Volume    volume.ID       `json:"volume"`
	Name      string          `json:"name"`
	BlockSize int             `json:"blockSize"`
	Key       string          `json:"key"`
	Order     json.RawMessage `json:"order"`
	First     json.RawMessage `json:"first,omitempty"` // nil: the device was never there
	Info      json.RawMessage `json:"info,omitempty"`
	Format    int             `json:"format,omitempty"` // on disk, that its engine writes; 0: not known
	Deaths    int             `json:"deaths,omitempty"`
	Lost      string          `json:"lost,omitempty"` // why the device was given up
	Since     time.Time       `json:"since"`
	// Engines are the processes that may have the device; during an upgrade the old and the new one.
	Engines []running `json:"engines"`
	Spawned int       `json:"spawned"` // how many processes there have been, for names
	// Words are the last words of an engine process, until the next one has been told them.
	Words json.RawMessage `json:"words,omitempty"`
}

// running names an engine process.
type running struct {
	PID     int       `json:"pid"`
	Start   string    `json:"start"`
	Version string    `json:"version"`
	Formats [2]int    `json:"formats"`
	Socket  string    `json:"socket"`
	Words   string    `json:"words"`
	Since   time.Time `json:"since"`
}

func (p *process) running() running {
	return running{PID: p.pid, Start: p.start, Version: p.version, Formats: p.formats, Socket: p.socket, Words: p.words}
}

// book keeps the entries in a directory.
type book struct {
	files vfs.FS
	dir   string
}

const entrySuffix = ".json"

func (b book) path(id volume.ID) string { return filepath.Join(b.dir, string(id)+entrySuffix) }

func (b book) put(e entry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp := b.path(e.Volume) + ".new"
	if err := write(b.files, tmp, text); err != nil {
		return fmt.Errorf("host's entry of volume %s: %w", e.Volume, err)
	}
	if err := b.files.Rename(tmp, b.path(e.Volume)); err != nil {
		return fmt.Errorf("host's entry of volume %s: %w", e.Volume, err)
	}
	return nil
}

func (b book) remove(id volume.ID) error {
	if err := b.files.Remove(b.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("host's entry of volume %s: %w", id, err)
	}
	return nil
}

// list returns the entries of the running kernel, by volume, and removes those of earlier ones: their devices are gone with it.
func (b book) list(boot string) (out []entry, err error) {
	names, err := b.files.ReadDir(b.dir)
	if err != nil {
		return nil, err
	}
	var damaged []error
	for _, name := range names {
		id, is := strings.CutSuffix(name.Name(), entrySuffix)
		if !is {
			continue
		}
		e, err := b.read(volume.ID(id))
		switch {
		case err != nil:
			damaged = append(damaged, fmt.Errorf("host's entry of volume %s: %w", id, err))
		case e.Boot != boot:
			damaged = append(damaged, b.remove(volume.ID(id)))
		default:
			out = append(out, e)
		}
	}
	return out, errors.Join(damaged...)
}

func (b book) read(id volume.ID) (e entry, err error) {
	text, err := vfs.ReadFile(b.files, b.path(id), stateMax)
	if err != nil {
		return e, err
	}
	// What does not say of which kernel it is must not pass for one of an earlier kernel, whose device is gone.
	if err = json.Unmarshal(text, &e); err == nil && (e.Volume != id || e.Boot == "") {
		err = fmt.Errorf("it is of volume %q and kernel %q", e.Volume, e.Boot)
	}
	return e, err
}

// stateMax bounds a file of the state: an entry has an order, two answers and last words in it.
const stateMax = 4 * wire.LineMax

// write makes text the content of a file. It is not synced: see entry.
func write(files vfs.FS, name string, text []byte) error {
	f, err := files.Open(name, vfs.Create)
	if err != nil {
		return err
	}
	err = f.Truncate(0)
	if err == nil {
		err = f.WriteAt(text, 0)
	}
	return errors.Join(err, f.Close())
}
