package mirror

import (
	"fmt"
	"path/filepath"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// home is where a store lives, whether it is there now or not.
type home struct {
	Path string      `json:"path"`
	ID   quorum.UUID `json:"id"`
}

// open opens the store that belongs there, and never makes one: the directory is empty while its disk is not mounted.
func (h home) open(fsys vfs.FS, installation quorum.UUID) (*store.Dir, error) {
	if _, err := fsys.Stat(filepath.Join(h.Path, store.IdentityFile)); err != nil {
		return nil, fmt.Errorf("store %s (%s) is not in its directory; is its disk mounted? %w", h.Path, h.ID, err)
	}
	d, err := store.FindDir(fsys, h.Path, installation)
	if err == nil && d.ID() != h.ID {
		return nil, fmt.Errorf("%w: directory %s holds store %s where %s was", store.ErrForeign, h.Path, d.ID(), h.ID)
	}
	return d, err
}

func findHome(fsys vfs.FS, homes []home, id, installation quorum.UUID) (*store.Dir, error) {
	for _, h := range homes {
		if h.ID == id {
			return h.open(fsys, installation)
		}
	}
	return nil, fmt.Errorf("store %s is none of this machine's", id)
}

// homes are all stores that were ever seen at the paths configured now.
func (s *stores) homes() (out []home) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.places {
		if id, seen := s.known[p.path]; seen {
			out = append(out, home{p.path, id})
		}
	}
	return out
}

// find returns a store that is there now.
func (s *stores) find(id quorum.UUID) (*store.Dir, error) {
	if d := dirOf(s.present(), id); d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("store %s is not there", id)
}
