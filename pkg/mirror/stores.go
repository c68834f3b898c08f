package mirror

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// stores are the directories this engine was given: those that are there, and those that are away.
type stores struct {
	fs    vfs.FS
	state string
	paths []string
	log   *slog.Logger

	mu           locks.Mutex
	holder       string
	installation quorum.UUID
	places       []*place
	known        map[string]quorum.UUID // which store was seen at a path; kept in the state directory
}

// place is one configured directory.
type place struct {
	path string
	dir  *store.Dir // nil while away
	lock vfs.Unlocker
	info vfs.Info // of the directory when it was opened
	why  error    // it is away
}

// identityMax is far more than an identity has, stateMax than any file of the state directory.
const (
	identityMax = 4096
	stateMax    = 1 << 20
)

const (
	installationFile = "installation"
	knownFile        = "stores.json"
)

// open opens and locks every store that is there.
func (s *stores) open(holder string) error {
	s.holder = holder
	if err := s.identify(); err != nil {
		return err
	}
	for _, p := range s.paths {
		pl := &place{path: filepath.Clean(p)}
		s.places = append(s.places, pl)
		if err := s.take(pl); err != nil && fatal(err) {
			return err
		} else if err != nil {
			s.log.Error("store is away", "store", pl.path, "cause", err)
		}
	}
	return s.distinct()
}

// fatal says that the directory must not be used as it is configured.
func fatal(err error) bool {
	_, locked := errors.AsType[*vfs.LockedError](err)
	return locked || errors.Is(err, store.ErrForeign) || errors.Is(err, store.ErrNotStore) || errors.Is(err, store.ErrFormat)
}

func (s *stores) distinct() error {
	seen := map[quorum.UUID]string{}
	for _, p := range s.places {
		if p.dir == nil {
			continue
		}
		if other, twice := seen[p.dir.ID()]; twice {
			return fmt.Errorf("stores %s and %s are the same store; give each replica its own directory", other, p.path)
		}
		seen[p.dir.ID()] = p.path
	}
	return nil
}

// take opens and locks one store.
func (s *stores) take(p *place) error {
	id, seen := s.known[p.path]
	if seen {
		if _, err := s.fs.Stat(filepath.Join(p.path, store.IdentityFile)); err != nil {
			p.why = fmt.Errorf("store %s (%s) is not in its directory; is its disk mounted? %w", p.path, id, err)
			return p.why
		}
	}
	p.why = s.takeDir(p, id, seen)
	return p.why
}

func (s *stores) takeDir(p *place, id quorum.UUID, seen bool) error {
	open := store.OpenDir
	if seen {
		open = store.FindDir
	}
	dir, err := open(s.fs, p.path, s.installation)
	if err != nil {
		return err
	}
	if seen && dir.ID() != id {
		return fmt.Errorf("%w: directory %s holds store %s where %s was; mount the right disk, or remove its line from %s",
			store.ErrForeign, p.path, dir.ID(), id, filepath.Join(s.state, knownFile))
	}
	lock, err := dir.Lock(s.holder)
	if err != nil {
		if locked, ok := errors.AsType[*vfs.LockedError](err); ok {
			return fmt.Errorf("store %s is in use by %s: %w", p.path, locked.Holder, err)
		}
		return err
	}
	if err := dir.Sweep(); err != nil {
		lock.Unlock() //nolint:errcheck // the sweep's error is the one to tell
		return err
	}
	info, err := dir.Stat()
	if err == nil && !dir.Is(info) {
		err = fmt.Errorf("store %s: another disk was mounted there while it was opened", p.path)
	}
	if err != nil {
		lock.Unlock() //nolint:errcheck // as above
		return err
	}
	p.dir, p.lock, p.info = dir, lock, info
	return s.remember(p.path, dir.ID())
}

// present are the stores that are there now. One that was moved away, unmounted or replaced is left out, and taken
// in again when it is back.
func (s *stores) present() []*store.Dir {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*store.Dir
	for _, p := range s.places {
		if s.check(p) {
			out = append(out, p.dir)
		}
	}
	return out
}

func (s *stores) check(p *place) bool {
	if p.dir == nil {
		return s.take(p) == nil
	}
	dead, err := s.look(p)
	if err == nil {
		p.why = nil
		return true
	}
	if p.why == nil {
		s.log.Error("store is away", "store", p.path, "cause", err)
	}
	p.why = err
	if dead {
		s.leave(p)
	}
	return false
}

// look says why the store cannot be used, and whether what was opened will not come back: something else is at its path, which
// is taken or refused on its own account, or its file system has failed, and cannot be unmounted while its lock is held.
func (s *stores) look(p *place) (dead bool, err error) {
	info, err := p.dir.Stat()
	switch {
	case err != nil:
		return false, err
	case !info.Same(p.info):
		return true, fmt.Errorf("another directory is at %s now", p.path)
	}
	// Read, not only looked at: the names of a file system that has failed are still in memory.
	_, err = vfs.ReadFile(s.fs, filepath.Join(p.path, store.IdentityFile), identityMax)
	return errors.Is(err, syscall.EIO), err
}

func (s *stores) leave(p *place) {
	p.lock.Unlock() //nolint:errcheck // the file it locked is gone from its path, or cannot be used by anybody
	p.dir, p.lock = nil, nil
}

// away says which stores are away and why.
func (s *stores) away() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.places {
		if p.why != nil {
			errs = append(errs, p.why)
		}
	}
	return errors.Join(errs...)
}

// absent says where a store was that is away, and why it is; false where nothing is known of it.
func (s *stores) absent(id quorum.UUID) (path string, why error, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		if p.why != nil && s.known[p.path] == id {
			return p.path, p.why, true
		}
	}
	return "", nil, false
}

// placeOf is where the store is, or was, and its ID where nobody knows.
func (s *stores) placeOf(id quorum.UUID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, known := range s.known {
		if known == id {
			return path
		}
	}
	return id.String()
}

func (s *stores) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		if p.lock != nil {
			s.leave(p)
		}
	}
}

// identify reads or makes the identity of the installation, and what is known of the stores.
func (s *stores) identify() error {
	if err := vfs.MakeDirs(s.fs, s.state); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	text, err := vfs.ReadFile(s.fs, filepath.Join(s.state, installationFile), stateMax)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		rand.Read(s.installation[:]) //nolint:errcheck // never fails (crypto/rand documentation)
		if err := vfs.WriteFile(s.fs, filepath.Join(s.state, installationFile), []byte(s.installation.String()+"\n")); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("identity of the installation: %w", err)
	default:
		if err := s.installation.UnmarshalText([]byte(strings.TrimSpace(string(text)))); err != nil {
			return fmt.Errorf("identity of the installation in %s: %w", s.state, err)
		}
		if err := s.fs.SyncDir(s.state); err != nil { // whoever made it may have been killed before it was durable, and stores are about to be given it
			return fmt.Errorf("state directory: %w", err)
		}
	}
	return s.recall()
}

func (s *stores) recall() error {
	s.known = map[string]quorum.UUID{}
	text, err := vfs.ReadFile(s.fs, filepath.Join(s.state, knownFile), stateMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		s.known, err = decodeKnown(text)
	}
	if err != nil {
		return fmt.Errorf("known stores in %s: %w; restore the file, or remove it where every store's disk is mounted", s.state, err)
	}
	return nil
}

// decodeKnown refuses what JSON lets pass and is no table of stores: null, for all of it or for one of them.
func decodeKnown(text []byte) (map[string]quorum.UUID, error) {
	var known map[string]quorum.UUID
	if err := json.Unmarshal(text, &known); err != nil {
		return nil, err
	}
	if known == nil {
		return nil, errors.New("it is empty")
	}
	for path, id := range known {
		if id.IsZero() {
			return nil, fmt.Errorf("store %s has no identity", path)
		}
	}
	return known, nil
}

func (s *stores) remember(path string, id quorum.UUID) error {
	if s.known[path] == id {
		return nil
	}
	s.known[path] = id
	text, err := json.MarshalIndent(s.known, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFile(s.fs, filepath.Join(s.state, knownFile), append(text, '\n'))
}
