package mirror

import (
	"context"
	"errors"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
)

// complete makes the replicas that an earlier Create, which was cut short, did not come to. Without it the volume would be
// degraded for good: nothing else makes replicas.
func (e *Engine) complete(ctx context.Context, v engine.Volume) (engine.Volume, error) {
	f := e.survey(v.ID)
	c, err := f.newest()
	if err != nil {
		return v, err
	}
	pattern, untouched := f.untouched()
	if !untouched {
		return v, nil
	}
	made := 0
	for _, voter := range c.Voters {
		dir := f.unmade(voter)
		if dir == nil {
			continue
		}
		pattern.Store, pattern.Incarnation = voter.Store, voter.Incarnation
		if err := dir.Create(pattern, c); err != nil {
			return v, createError(v.ID, err)
		}
		e.Log.Info("replica made that an earlier creation did not come to", "volume", v.ID, "store", dir.Path())
		made++
	}
	if made == 0 {
		return v, nil
	}
	return e.Get(ctx, v.ID)
}

// untouched says that nobody has asked anything of the volume since it was made, so that a replica which is missing was never
// there: one that was lost may have promised something. It returns a superblock of the volume, too.
func (f found) untouched() (pattern store.Superblock, ok bool) {
	for _, p := range f.peeks {
		switch c := p.record.Config; {
		case errors.Is(p.err, store.ErrNotFound):
		case p.err != nil, c.Epoch != firstEpoch, c.Step != 0, p.record.Promised != firstEpoch:
			return pattern, false
		default:
			pattern, ok = p.super, true
		}
	}
	return pattern, ok
}

// unmade returns the voter's store where that is there and has no replica.
func (f found) unmade(v quorum.Voter) *store.Dir {
	for _, p := range f.peeks {
		if p.dir.ID() == v.Store && errors.Is(p.err, store.ErrNotFound) {
			return p.dir
		}
	}
	return nil
}
