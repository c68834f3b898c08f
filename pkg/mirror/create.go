package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// Sizes a volume can have. The most is what ext4 holds in one file, less the entries.
const (
	sizeMin = 16 * volume.MiB
	sizeMax = 15 * volume.TiB
)

// firstEpoch is the epoch of a volume's first configuration, whose step is 0.
const firstEpoch = 1

// Create implements engine.Control. A volume comes into being when a majority of its stores has it, and the next Create makes
// the rest; what an interrupted one left at a minority is replaced by the next one and swept at Start.
func (e *Engine) Create(ctx context.Context, spec engine.Spec) (engine.Volume, error) {
	h := e.handle(spec.ID)
	if err := h.lock(ctx); err != nil {
		return engine.Volume{}, err
	}
	defer h.unlock()
	existing, err := e.Get(ctx, spec.ID)
	if err == nil {
		if err := sameSpec(existing, spec); err != nil {
			return existing, err
		}
		return e.complete(ctx, existing)
	}
	if !errors.Is(err, engine.ErrNotFound) {
		return engine.Volume{}, err
	}
	if err := e.clear(spec.ID); err != nil {
		return engine.Volume{}, createError(spec.ID, err)
	}
	l, err := parse(spec.Parameters, len(e.Stores))
	if err != nil {
		return engine.Volume{}, err
	}
	if spec.Size < sizeMin || spec.Size > sizeMax || spec.Size%store.BlockSize != 0 {
		return engine.Volume{}, fmt.Errorf("%w: volume %s: size %d: want %s to %s in steps of %d bytes", engine.ErrOutOfRange, spec.ID, spec.Size, sizeMin, sizeMax, store.BlockSize)
	}
	dirs, err := e.choose(l.replicas, spec)
	if err != nil {
		return engine.Volume{}, err
	}
	if err := e.make(spec, l, dirs); err != nil {
		return engine.Volume{}, err
	}
	return e.Get(ctx, spec.ID)
}

func sameSpec(v engine.Volume, s engine.Spec) error {
	switch {
	case v.Name != s.Name:
		return fmt.Errorf("%w: volume ID %s belongs to the name %q", engine.ErrExists, s.ID, v.Name)
	case v.Size != s.Size:
		return fmt.Errorf("%w: volume %s has %d bytes, asked for are %d", engine.ErrExists, s.ID, v.Size, s.Size)
	case !maps.Equal(v.Parameters, s.Parameters):
		return fmt.Errorf("%w: volume %s has parameters %v, asked for are %v", engine.ErrExists, s.ID, v.Parameters, s.Parameters)
	case !maps.Equal(v.Labels, s.Labels):
		return fmt.Errorf("%w: volume %s has labels %v, asked for are %v", engine.ErrExists, s.ID, v.Labels, s.Labels)
	}
	return nil
}

// choose picks the stores with the most room that can take a replica.
func (e *Engine) choose(n int, spec engine.Spec) ([]*store.Dir, error) {
	room, err := e.room()
	if err != nil {
		return nil, err
	}
	if len(room) < n {
		return nil, fmt.Errorf("%w: volume %s: %d replicas need %d stores, %d are there: %w", engine.ErrUnavailable, spec.ID, n, n, len(room), e.stores.away())
	}
	slices.SortStableFunc(room, func(a, b roomOf) int { return int(b.free/store.RegionSize - a.free/store.RegionSize) })
	if largest := largestVolume(room, n); spec.Size > largest {
		return nil, fmt.Errorf("%w: volume %s: %s with %d replicas: the stores hold at most %s more (overcommit %g)", engine.ErrNoSpace, spec.ID, spec.Size, n, largest, e.Overcommit)
	}
	out := make([]*store.Dir, n)
	for i := range out {
		out[i] = room[i].dir
	}
	return out, nil
}

// make creates a replica in every one of the stores, or in none.
func (e *Engine) make(spec engine.Spec, l layout, dirs []*store.Dir) error {
	template, config, err := plan(spec, l, dirs)
	if err != nil {
		return err
	}
	for i, d := range dirs {
		sb := template
		sb.Store, sb.Incarnation = d.ID(), config.Voters[i].Incarnation
		err := d.Create(sb, config)
		if errors.Is(err, fs.ErrExist) { // left by a Create that was cut short: no majority has it
			err = errors.Join(d.Remove(spec.ID), d.Create(sb, config))
		}
		if err != nil {
			return errors.Join(createError(spec.ID, err), unmake(spec.ID, dirs[:i+1]))
		}
	}
	return nil
}

func createError(id volume.ID, err error) error {
	class := engine.ErrUnavailable
	if errors.Is(err, syscall.ENOSPC) {
		class = engine.ErrNoSpace
	}
	return fmt.Errorf("%w: volume %s was not created: %w", class, id, err)
}

func unmake(id volume.ID, dirs []*store.Dir) error {
	var errs []error
	for _, d := range dirs {
		errs = append(errs, d.Remove(id))
	}
	return errors.Join(errs...)
}

// plan makes the volume's identity and its first configuration, (1, 0): sealed, empty, every replica in sync.
func plan(spec engine.Spec, l layout, dirs []*store.Dir) (sb store.Superblock, c quorum.Config, err error) {
	if sb.UUID, err = store.NewUUID(); err != nil {
		return sb, c, err
	}
	if sb.Key, err = digest.NewKey(); err != nil {
		return sb, c, err
	}
	sb.Volume, sb.LogicalBlockSize, sb.Created = spec.ID, l.blockSize, time.Now().UTC()
	c = quorum.Config{Epoch: firstEpoch, Members: quorum.All(len(dirs)), Size: spec.Size, Flags: quorum.Sealed | quorum.Clean}
	for _, d := range dirs {
		incarnation, err := store.NewUUID()
		if err != nil {
			return sb, c, err
		}
		c.Voters = append(c.Voters, quorum.Voter{Store: d.ID(), Incarnation: incarnation})
	}
	c, err = withAttributes(c, attributes{Name: spec.Name, Parameters: spec.Parameters, Labels: spec.Labels})
	return sb, c, err
}

// Delete implements engine.Control: the volume is gone once a majority has recorded it; a replica that was away is
// removed when it is back.
func (e *Engine) Delete(ctx context.Context, id volume.ID) error {
	h := e.handle(id)
	if err := h.lock(ctx); err != nil {
		return err
	}
	defer h.unlock()
	f := e.survey(id)
	c, err := f.newest()
	switch {
	case errors.Is(err, engine.ErrNotFound), e.entombed(f):
		return e.removeRemains(f)
	case err != nil:
		return err
	case c.Published != 0:
		return fmt.Errorf("%w: volume %s is published to node %s; unpublish it first", engine.ErrAttached, id, attributesOf(c).Node)
	case !c.Flags.Has(quorum.Sealed):
		return fmt.Errorf("%w: volume %s has a writer of epoch %d that was not sealed", engine.ErrAttached, id, c.Writer)
	}
	err = e.update(ctx, id, func(c *quorum.Config) error {
		c.Flags |= quorum.Deleted
		return nil
	})
	if err != nil {
		return err
	}
	return e.removeRemains(e.survey(id))
}

// removeRemains removes the replicas of a volume that is deleted. They are remembered, so that a store that was away does not bring it
// back.
func (e *Engine) removeRemains(f found) error {
	var errs []error
	uuid, deleted := f.deleted()
	for _, p := range f.peeks {
		if deleted && p.err == nil && p.super.UUID == uuid || e.buried(f, p) {
			errs = append(errs, e.bury(p, f.id))
		}
	}
	return errors.Join(errs...)
}

// entombed says that a deletion which is in force has not come to all replicas yet.
func (e *Engine) entombed(f found) bool {
	return slices.ContainsFunc(f.peeks, func(p peek) bool { return e.buried(f, p) })
}

// buried says that another store remembers the deletion of this replica's volume.
func (e *Engine) buried(f found, p peek) bool {
	if p.err != nil {
		return false
	}
	for _, o := range f.peeks {
		if gone, err := o.dir.Buried(f.id, p.super.UUID); err == nil && gone {
			return true
		}
	}
	return false
}

// bury remembers the deletion on every store that is there before the replica is removed.
func (e *Engine) bury(p peek, id volume.ID) error {
	var errs []error
	for _, d := range e.stores.present() {
		errs = append(errs, d.Bury(id, p.super.UUID))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w: volume %s: its deletion cannot be recorded: %w", engine.ErrUnavailable, id, err)
	}
	return p.dir.Remove(id)
}

// finishRemovals removes what deletions and creations that were cut short left behind.
func (e *Engine) finishRemovals() {
	for _, id := range idsIn(e.stores.present()) {
		if err := e.clear(id); err != nil {
			e.Log.Warn("remains of a volume that was deleted or never came into being", "volume", id, "cause", err)
		}
	}
}

// clear removes what is left of a volume of this ID that was deleted, or whose creation was cut short before a majority had it. The
// latter only where every store is there to say so.
func (e *Engine) clear(id volume.ID) error {
	f := e.survey(id)
	if err := e.removeRemains(f); err != nil {
		return err
	}
	_, untouched := f.untouched()
	if _, err := f.newest(); !untouched || !errors.Is(err, engine.ErrNotFound) || len(f.peeks) < len(e.Stores) {
		return nil
	}
	e.Log.Info("removing a volume whose creation was cut short", "volume", id)
	return unmake(id, dirsOf(f.peeks))
}

// idsIn lists the volumes that any of the stores has a replica of, in order.
func idsIn(dirs []*store.Dir) []volume.ID {
	set := map[volume.ID]struct{}{}
	for _, d := range dirs {
		ids, err := d.Replicas()
		if err != nil {
			continue // the store is away, or will say so where it is asked for a volume
		}
		for _, id := range ids {
			set[id] = struct{}{}
		}
	}
	return sortedKeys(set)
}
