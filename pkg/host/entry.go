package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
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
type book struct{ dir string }

const entrySuffix = ".json"

func (b book) path(id volume.ID) string { return filepath.Join(b.dir, string(id)+entrySuffix) }

func (b book) put(e entry) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	tmp := b.path(e.Volume) + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("host's entry of volume %s: %w", e.Volume, err)
	}
	if err := os.Rename(tmp, b.path(e.Volume)); err != nil {
		return fmt.Errorf("host's entry of volume %s: %w", e.Volume, err)
	}
	return nil
}

func (b book) remove(id volume.ID) error {
	if err := os.Remove(b.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("host's entry of volume %s: %w", id, err)
	}
	return nil
}

// list returns the entries of the running kernel and removes those of earlier ones: their devices are gone with it.
func (b book) list(boot string) (out []entry, err error) {
	names, err := filepath.Glob(filepath.Join(b.dir, "*"+entrySuffix))
	if err != nil {
		return nil, err
	}
	var damaged []error
	for _, name := range names {
		var e entry
		text, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(text, &e)
		}
		switch {
		case err != nil:
			damaged = append(damaged, fmt.Errorf("host's entry %s: %w", name, err))
		case e.Boot != boot:
			damaged = append(damaged, b.remove(volume.ID(strings.TrimSuffix(filepath.Base(name), entrySuffix))))
		default:
			out = append(out, e)
		}
	}
	return out, errors.Join(damaged...)
}

// BootID identifies the running kernel.
func BootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}
