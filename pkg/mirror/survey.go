package mirror

import (
	"errors"
	"fmt"
	"sync"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// found is what the stores say of one volume, without any lock.
type found struct {
	id       volume.ID
	peeks    []peek
	floor    *floor // of a salvage; nil: there was none
	floorErr error
}

type peek struct {
	dir    *store.Dir
	super  store.Superblock
	record store.Record
	err    error
}

// survey asks every store that is there.
func survey(dirs []*store.Dir, id volume.ID) found {
	f := found{id: id, peeks: make([]peek, len(dirs))}
	var wg sync.WaitGroup
	for i, d := range dirs {
		wg.Go(func() {
			p := &f.peeks[i]
			p.dir = d
			p.super, p.record, p.err = d.Peek(id)
		})
	}
	wg.Wait()
	return f
}

// answers are the voters' answers for the given voters.
func (f found) answers(voters []quorum.Voter) []quorum.Answer {
	out := make([]quorum.Answer, len(voters))
	for i, v := range voters {
		for _, p := range f.peeks {
			if p.err == nil && p.dir.ID() == v.Store && p.super.Incarnation == v.Incarnation {
				out[i] = quorum.Answer{Known: true, Promised: p.record.Promised, Config: p.record.Config}
			}
		}
	}
	return out
}

// candidate is the newest configuration that any replica has, in force or not.
func (f found) candidate() (c quorum.Config, ok bool) {
	for _, p := range f.peeks {
		if p.err == nil && (!ok || p.record.Config.Newer(c)) {
			c, ok = p.record.Config, true
		}
	}
	return c, ok
}

// newest is the newest configuration at a majority of the volume's voters. ErrNotFound where a majority of their stores
// knows nothing of the volume, or it was deleted; ErrUnavailable where that cannot be told.
func (f found) newest() (quorum.Config, error) {
	c, ok := f.candidate()
	if !ok {
		return c, f.nothing()
	}
	answers := f.answers(c.Voters)
	known, need := knownOf(answers), quorum.Majority(len(c.Voters))
	switch {
	case known >= need:
		c, _ = quorum.Newest(answers)
	case f.without(c.Voters) >= need, f.unborn(c.Voters):
		return c, fmt.Errorf("%w: volume %s: a majority of its stores does not know it", engine.ErrNotFound, f.id)
	default:
		return c, fmt.Errorf("%w: volume %s: %d of %d replicas answer, %d are needed: %w", engine.ErrUnavailable, f.id, known, len(c.Voters), need, f.causes(c.Voters))
	}
	if err := f.above(c); err != nil {
		return c, err
	}
	if c.Flags.Has(quorum.Deleted) {
		return c, fmt.Errorf("%w: volume %s was deleted", engine.ErrNotFound, f.id)
	}
	return c, nil
}

func knownOf(answers []quorum.Answer) (n int) {
	for _, a := range answers {
		if a.Known {
			n++
		}
	}
	return n
}

// unborn says that the volume never came into being: nobody has asked anything of the replicas that are there, and so many were
// never made that the others are no majority.
func (f found) unborn(voters []quorum.Voter) bool {
	_, untouched := f.untouched()
	return untouched && len(voters)-f.without(voters) < quorum.Majority(len(voters))
}

// deleted says of which volume it is known that it was deleted: the newest configuration that a majority of its voters can have says
// so. Where fewer answer, or others have gone on without it, a deletion was asked for and never came into force.
func (f found) deleted() (uuid quorum.UUID, ok bool) {
	c, some := f.candidate()
	if !some || !c.Flags.Has(quorum.Deleted) || knownOf(f.answers(c.Voters)) < quorum.Majority(len(c.Voters)) {
		return uuid, false
	}
	for _, p := range f.peeks {
		if p.err == nil && p.record.Config.Same(c) {
			return p.super.UUID, true
		}
	}
	return uuid, false
}

// nothing is the answer where no record of the volume could be read anywhere.
func (f found) nothing() error {
	for _, p := range f.peeks {
		if !errors.Is(p.err, store.ErrNotFound) {
			return fmt.Errorf("%w: volume %s: %w", engine.ErrUnavailable, f.id, p.err)
		}
	}
	return fmt.Errorf("%w: volume %s", engine.ErrNotFound, f.id)
}

// without counts the voters whose stores are there and have no replica.
func (f found) without(voters []quorum.Voter) (n int) {
	for _, v := range voters {
		for _, p := range f.peeks {
			if p.dir.ID() == v.Store && errors.Is(p.err, store.ErrNotFound) {
				n++
			}
		}
	}
	return n
}

// causes says what is wrong with each voter that does not answer.
func (f found) causes(voters []quorum.Voter) error {
	var errs []error
	for _, v := range voters {
		if err := f.cause(v); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (f found) cause(v quorum.Voter) error {
	for _, p := range f.peeks {
		switch {
		case p.dir.ID() != v.Store:
		case p.err != nil:
			return p.err
		case p.super.Incarnation != v.Incarnation:
			return fmt.Errorf("store %s: replica of another incarnation", p.dir.Path())
		default:
			return nil
		}
	}
	return fmt.Errorf("store %s is not there", v.Store)
}
