package detach

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Files of the journal: DIR/VOLUME.json, one line
//
//	{"version":1,"crc32c":N,"entry":{…}}      N over the bytes of the entry
const (
	journalFormat = 1
	journalSuffix = ".json"
	tempSuffix    = ".new"
	damagedSuffix = ".damaged"
	entryMax      = 128 << 10
	targetsMax    = 256
	flagsMax      = 64
	pathMax       = 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type journalFile struct {
	Version int             `json:"version"`
	CRC     uint32          `json:"crc32c"`
	Entry   json.RawMessage `json:"entry"`
}

// Journal is the durable record of what is staged on this node: one file a volume, replaced atomically. Calls
// for different volumes may run concurrently.
type Journal struct {
	fsys vfs.FS
	dir  string
	// doubt: a change failed, and what it has made visible may not be durable.
	doubt atomic.Bool
}

// OpenJournal returns the journal in dir, which it makes where needed. What interrupted writes left is removed; they
// were promised to nobody.
func OpenJournal(fsys vfs.FS, dir string) (*Journal, error) {
	j := &Journal{fsys: fsys, dir: dir}
	if err := vfs.MakeDirs(fsys, dir); err != nil {
		return nil, fmt.Errorf("stage journal: %w", err)
	}
	// Whoever wrote an entry may have been killed before its name was durable, and what is read here is acted on.
	if err := fsys.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("stage journal: %w", err)
	}
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("stage journal: %w", err)
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), tempSuffix) {
			if err := fsys.Remove(path.Join(dir, n.Name())); err != nil {
				return nil, fmt.Errorf("stage journal: %w", err)
			}
		}
	}
	return j, nil
}

func (j *Journal) file(id volume.ID) string { return path.Join(j.dir, string(id)+journalSuffix) }

// Get returns the volume's entry; false where there is none. What it tells is durable. ErrJournal where the entry is damaged.
func (j *Journal) Get(id volume.ID) (Entry, bool, error) {
	if _, err := volume.ParseID(string(id)); err != nil {
		return Entry{}, false, err
	}
	if err := j.settle(); err != nil {
		return Entry{}, false, fmt.Errorf("stage journal of volume %s: %w", id, err)
	}
	raw, err := vfs.ReadFile(j.fsys, j.file(id), entryMax)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, false, nil
	}
	if err != nil {
		return Entry{}, false, fmt.Errorf("stage journal of volume %s: %w", id, err)
	}
	e, err := decodeEntry(raw)
	if err == nil && e.Attachment.Volume != id {
		err = fmt.Errorf("is of volume %s", e.Attachment.Volume)
	}
	if err != nil {
		return Entry{}, false, fmt.Errorf("%w: %s: %w", ErrJournal, j.file(id), err)
	}
	return e, true, nil
}

// settle makes durable what changes that failed have left, since whoever reads acts on it.
func (j *Journal) settle() error {
	if !j.doubt.Swap(false) {
		return nil
	}
	err := j.fsys.SyncDir(j.dir)
	if err != nil {
		j.doubt.Store(true)
	}
	return err
}

// changed words the error of a change, and remembers that there was one.
func (j *Journal) changed(id volume.ID, err error) error {
	if err == nil {
		return nil
	}
	j.doubt.Store(true)
	return fmt.Errorf("stage journal of volume %s: %w", id, err)
}

// Put makes e the volume's entry, durably.
func (j *Journal) Put(e Entry) error {
	raw, err := encodeEntry(e)
	if err == nil {
		err = vfs.WriteFile(j.fsys, j.file(e.Attachment.Volume), raw)
	}
	return j.changed(e.Attachment.Volume, err)
}

// Remove takes the volume's entry away, durably. No entry is no error.
func (j *Journal) Remove(id volume.ID) error {
	if _, err := volume.ParseID(string(id)); err != nil {
		return err
	}
	err := j.fsys.Remove(j.file(id))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		// Even where it is gone: its removal may be what a crash kept from being durable.
		err = j.fsys.SyncDir(j.dir)
	}
	return j.changed(id, err)
}

// SetAside renames the volume's entry, so that a damaged one is kept for a person and no longer in the way.
func (j *Journal) SetAside(id volume.ID) error {
	err := j.fsys.Rename(j.file(id), j.file(id)+damagedSuffix)
	if err == nil {
		err = j.fsys.SyncDir(j.dir)
	}
	return j.changed(id, err)
}

// List returns every entry, ordered by volume. Its error names those that are damaged; the others are returned all the same.
func (j *Journal) List() ([]Entry, error) {
	names, err := j.fsys.ReadDir(j.dir)
	if err != nil {
		return nil, fmt.Errorf("stage journal: %w", err)
	}
	var entries []Entry
	var damaged []error
	for _, n := range names {
		id, isEntry := strings.CutSuffix(n.Name(), journalSuffix)
		if !isEntry {
			continue
		}
		e, found, err := j.Get(volume.ID(id))
		if err != nil {
			damaged = append(damaged, err)
		} else if found {
			entries = append(entries, e)
		}
	}
	return entries, errors.Join(damaged...)
}

func encodeEntry(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(journalFile{Version: journalFormat, CRC: crc32.Checksum(body, castagnoli), Entry: body})
	if err == nil && len(raw) > entryMax {
		err = fmt.Errorf("entry of %d bytes, at most %d", len(raw), entryMax)
	}
	return raw, err
}

func decodeEntry(raw []byte) (Entry, error) {
	var f journalFile
	var e Entry
	if err := decodeStrictly(raw, &f); err != nil {
		return e, err
	}
	if f.Version != journalFormat {
		return e, fmt.Errorf("version %d: this program knows %d", f.Version, journalFormat)
	}
	if got := crc32.Checksum(f.Entry, castagnoli); got != f.CRC {
		return e, fmt.Errorf("checksum %08x, should be %08x", got, f.CRC)
	}
	if err := decodeStrictly(f.Entry, &e); err != nil {
		return Entry{}, err
	}
	// JSON has several spellings for one thing; we have one, so that a damaged byte is never taken for another spelling.
	if again, err := encodeEntry(e); err != nil || !bytes.Equal(again, raw) {
		return Entry{}, cmp.Or(err, errors.New("not as it was written"))
	}
	return e, nil
}

func decodeStrictly(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows it")
	}
	return nil
}

// check says why e cannot be an entry.
func (e Entry) check() error {
	if _, err := volume.ParseID(string(e.Attachment.Volume)); err != nil {
		return err
	}
	if _, err := volume.ParseNodeID(string(e.Attachment.Node)); err != nil {
		return err
	}
	if e.Attachment.Epoch == 0 {
		return errors.New("attachment without an epoch")
	}
	return e.checkStaging()
}

func (e Entry) checkStaging() error {
	switch {
	case !goodPath(e.Staging):
		return fmt.Errorf("staging path %.80q", e.Staging)
	case e.Access != Mount && e.Access != Block:
		return fmt.Errorf("access type %.20q", e.Access)
	case e.Phase != Staging && e.Phase != Staged && e.Phase != Unstaging:
		return fmt.Errorf("phase %.20q", e.Phase)
	case len(e.Targets) > targetsMax || len(e.Flags) > flagsMax:
		return fmt.Errorf("%d targets and %d flags, at most %d and %d", len(e.Targets), len(e.Flags), targetsMax, flagsMax)
	}
	for _, t := range e.Targets {
		if !goodPath(t.Path) {
			return fmt.Errorf("target path %.80q", t.Path)
		}
	}
	return nil
}

func goodPath(p string) bool {
	// What is no text would be written as something else.
	return path.IsAbs(p) && len(p) <= pathMax && utf8.ValidString(p) && !strings.ContainsRune(p, 0)
}
