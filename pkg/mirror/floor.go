package mirror

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// floor is what the state directory remembers of a salvage: nothing of the volume below the epoch is believed any more. The
// stores of the old majority, which were away then, could otherwise bring up the older truth where those that were there are away.
// It is written before the salvage comes into force, and once more when it has. It outlives the volume: another one of that name has another UUID.
type floor struct {
	Volume quorum.UUID  `json:"volume"`
	Epoch  volume.Epoch `json:"epoch"`
	From   quorum.Voter `json:"from"` // the replica that was chosen; it is the first to accept the epoch
	Done   bool         `json:"done"` // it has accepted it
}

const (
	floorDir    = "salvaged"
	floorSuffix = ".json"
)

func (e *Engine) floorFile(id volume.ID) string {
	return filepath.Join(e.State, floorDir, string(id)+floorSuffix)
}

// floor returns what is remembered, nil where the volume was never salvaged.
func (e *Engine) floor(id volume.ID) (*floor, error) {
	text, err := vfs.ReadFile(e.FS, e.floorFile(id), stateMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var f floor
	if err == nil {
		f, err = decodeFloor(text)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: volume %s: what is remembered of its salvage: %w", engine.ErrUnavailable, id, err)
	}
	return &f, nil
}

// decodeFloor refuses what does not say all of it: a floor of no volume, or of no epoch, would let the older truth come up.
func decodeFloor(text []byte) (f floor, err error) {
	err = json.Unmarshal(text, &f)
	if err == nil && (f.Volume.IsZero() || f.Epoch == 0 || f.From.Store.IsZero() || f.From.Incarnation.IsZero()) {
		err = errors.New("it is not whole")
	}
	return f, err
}

func (e *Engine) setFloor(id volume.ID, f floor) error {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	name := e.floorFile(id)
	err = e.FS.MkdirAll(filepath.Dir(name))
	if err == nil {
		err = e.FS.SyncDir(e.State)
	}
	if err == nil {
		err = vfs.WriteFile(e.FS, name, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: volume %s: its salvage cannot be remembered: %w", engine.ErrUnavailable, id, err)
	}
	return nil
}

// survey asks every store that is there, and remembers what was salvaged.
func (e *Engine) survey(id volume.ID) found {
	f := survey(e.stores.present(), id)
	f.floor, f.floorErr = e.floor(id)
	return f
}

// above refuses a configuration from before a salvage.
func (f found) above(c quorum.Config) error {
	if f.floorErr != nil || f.floor == nil {
		return f.floorErr
	}
	if c.Epoch >= f.floor.Epoch || !f.isOf(f.floor.Volume) || f.untaken() {
		return nil
	}
	return fmt.Errorf("%w: volume %s was salvaged at epoch %d; the stores that are there hold configuration %s, from before that: bring store %s back, or see belay salvage %s",
		engine.ErrUnavailable, f.id, f.floor.Epoch, c, f.floor.From.Store, f.id)
}

// isOf says that the replicas that are there are of that volume, and not of another one with its name.
func (f found) isOf(id quorum.UUID) bool {
	for _, p := range f.peeks {
		if p.super.UUID == id {
			return true
		}
	}
	return false
}

// untaken says that a salvage which was begun never came into force: the replica that would have been the first to accept it is
// there, and did not.
func (f found) untaken() bool {
	for _, p := range f.peeks {
		if p.err == nil && p.super.Store == f.floor.From.Store && p.super.Incarnation == f.floor.From.Incarnation {
			return !f.floor.Done && p.record.Config.Epoch < f.floor.Epoch
		}
	}
	return false
}
