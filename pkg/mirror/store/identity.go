package store

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
)

// identity is the content of belay-store.json.
type identity struct {
	Format       int         `json:"format"`
	Installation quorum.UUID `json:"installation"`
	Store        quorum.UUID `json:"store"`
}

const identityMax = 4096

// NewUUID returns a random identity.
func NewUUID() (u quorum.UUID, err error) {
	_, err = rand.Read(u[:])
	return u, err
}

func encodeIdentity(id identity) []byte {
	p, _ := json.Marshal(id) // an identity has no field that can fail
	return append(p, '\n')
}

// decodeIdentity reads p: ErrDamaged or ErrFormat.
func decodeIdentity(p []byte) (identity, error) {
	var probe struct{ Format int }
	if err := json.Unmarshal(p, &probe); err != nil {
		return identity{}, fmt.Errorf("%s: %w: %w", identityName, ErrDamaged, err)
	}
	if probe.Format != FormatVersion {
		return identity{}, fmt.Errorf("%s says format %d: %w: it was written by another version of Belay, use that", identityName, probe.Format, ErrFormat)
	}
	var id identity
	dec := json.NewDecoder(bytes.NewReader(p))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&id); err != nil {
		return identity{}, fmt.Errorf("%s: %w: %w", identityName, ErrDamaged, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) || id.Store.IsZero() || id.Installation.IsZero() {
		return identity{}, fmt.Errorf("%s: %w: an identity is missing or something follows it", identityName, ErrDamaged)
	}
	return id, nil
}

// identify reads who the store is, or fails with fs.ErrNotExist where nobody has said so.
func (d *Dir) identify() error {
	p, err := vfs.ReadFile(d.fs, d.join(identityName), identityMax)
	if errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err == nil {
		d.id, err = decodeIdentity(p)
	}
	return err
}

// recognize reads who the store is, or makes it.
func (d *Dir) recognize(installation quorum.UUID) error {
	err := d.identify()
	if errors.Is(err, fs.ErrNotExist) {
		return d.establish(installation)
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return fmt.Errorf("%w: %w: give a directory", ErrNotStore, err)
	}
	return err
}

// establish makes a new store, under its lock: two that start at once on an empty directory agree on one.
func (d *Dir) establish(installation quorum.UUID) error {
	if err := vfs.MakeDirs(d.fs, d.path); err != nil {
		return err
	}
	if err := d.vacant(); err != nil {
		return err
	}
	lock, err := d.fs.Lock(d.join(lockName), "belay, making the store")
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if err := d.identify(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return d.write(installation)
}

// write makes the directories durable before the identity: a store that says who it is has all of them.
func (d *Dir) write(installation quorum.UUID) (err error) {
	for _, name := range []string{volumesName, incomingName, trashName, tombstonesName} {
		if err := d.fs.Mkdir(d.join(name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := d.fs.SyncDir(d.path); err != nil {
		return err
	}
	d.id = identity{Format: FormatVersion, Installation: installation}
	if d.id.Store, err = NewUUID(); err != nil {
		return err
	}
	return vfs.WriteFile(d.fs, d.join(identityName), encodeIdentity(d.id))
}

// vacant says whether the directory may become a store: it holds nothing, or the beginnings of one.
func (d *Dir) vacant() error {
	entries, err := d.fs.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case "lost+found", lockName, identityName + newSuffix:
		case volumesName, incomingName, trashName, tombstonesName:
			if inside, err := d.fs.ReadDir(d.join(e.Name())); err != nil || len(inside) > 0 {
				return fmt.Errorf("%w: %s is missing, yet %s holds something: restore that file, or remove the directory if its replicas are not needed", ErrDamaged, identityName, e.Name())
			}
		default:
			return fmt.Errorf("%w: it holds %q: give an empty directory", ErrNotStore, e.Name())
		}
	}
	return nil
}

// complete checks that the store has all its directories: one that lost volumes/ or tombstones/ would forget what it
// promised. A process that was killed may have renamed the identity and not synced it, so that is done again.
func (d *Dir) complete() (err error) {
	if d.self, err = d.fs.Stat(d.path); err != nil {
		return err
	}
	for _, name := range []string{volumesName, tombstonesName, incomingName, trashName} {
		if info, err := d.fs.Stat(d.join(name)); err != nil || !info.Dir {
			return fmt.Errorf("%w: directory %s is missing (%w): check the file system, then restore or empty the store", ErrDamaged, name, err)
		}
	}
	if err := d.fs.SyncDir(d.path); !errors.Is(err, syscall.EROFS) {
		return err
	}
	return nil
}
