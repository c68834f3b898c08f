package store

import (
	"cmp"
	"fmt"
	"io/fs"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// Promise records, durably, that no writer of an epoch below e is obeyed. It is ErrFenced where e was promised already, or a newer one.
func (r *Replica) Promise(e volume.Epoch) error {
	return r.update(func(rec *Record) error {
		if rec.Promised >= e {
			return fmt.Errorf("%w: epoch %d is promised already, %d was asked for", ErrFenced, rec.Promised, e)
		}
		rec.Promised = e
		return nil
	})
}

// Accept records, durably, the configuration and the session, and promises c.Epoch, or c.Epoch+1 where c is sealed. It is
// ErrFenced where a newer epoch was promised, or the configuration held is newer, or is another one of the same
// epoch and step. What is recorded already is accepted again without a write.
func (r *Replica) Accept(c quorum.Config, s Session) error {
	if err := validateConfig(c); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	return r.update(func(rec *Record) error {
		same := rec.Config.Same(c) && sameConfig(rec.Config, c)
		switch {
		case same && rec.Session == s:
			return nil
		case rec.Promised > c.Epoch:
			return fmt.Errorf("%w: promised to epoch %d, configuration %s came", ErrFenced, rec.Promised, c)
		case rec.Config.Newer(c) || rec.Config.Same(c) && !same:
			return fmt.Errorf("%w: holds configuration %s, another %s came", ErrFenced, rec.Config, c)
		case regionsOf(int64(c.Size)) > regionsOf(int64(rec.Config.Size)):
			if err := r.extendDirty(regionsOf(int64(c.Size))); err != nil {
				return err
			}
		}
		c.Attributes = append([]byte(nil), c.Attributes...)
		c.Voters = append([]quorum.Voter(nil), c.Voters...)
		rec.Promised, rec.Config, rec.Session = promisedBy(c), c, s
		return nil
	})
}

func promisedBy(c quorum.Config) volume.Epoch {
	if c.Flags.Has(quorum.Sealed) {
		return c.Epoch + 1
	}
	return c.Epoch
}

// Mark records, durably, whether the replica lost its cache with writes in it since it joined.
func (r *Replica) Mark(lossy bool) error {
	return r.update(func(rec *Record) error {
		rec.Lossy = lossy
		return nil
	})
}

// Adopt gives a replica whose record is damaged (see OpenUnknown) the configuration c that the others hold, its session
// closed and lossy. That forgets what it had promised: the caller has proven that no writer newer than c can be alive,
// counts the replica towards no majority of this epoch, and treats its content as stale.
func (r *Replica) Adopt(c quorum.Config) error {
	if err := validateConfig(c); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	r.metaMu.Lock()
	defer r.metaMu.Unlock()
	if !r.unknown {
		return r.dir.errorf("volume %s: %w: its record is good, nothing is adopted in its place", r.id, fs.ErrExist)
	}
	// Both slots are written: as long as one of them is damaged the record stays unknown.
	first := Record{Sequence: r.seen + 1, Promised: promisedBy(c), Lossy: true, Config: c}
	second := first
	second.Sequence++
	if err := cmp.Or(r.writeSlot(first), r.writeSlot(second)); err != nil {
		return err
	}
	r.unknown = false
	return nil
}

// update replaces the record by what change makes of it, and returns when that is durable. Where change alters nothing, nothing is written.
func (r *Replica) update(change func(*Record) error) error {
	r.metaMu.Lock()
	defer r.metaMu.Unlock()
	if err := r.unchanged(); err != nil {
		return err
	}
	held := r.record.Load()
	next := *held
	if err := change(&next); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	if next.Promised == held.Promised && next.Lossy == held.Lossy && next.Session == held.Session && sameConfig(next.Config, held.Config) {
		return nil
	}
	next.Sequence = nextSequence(*held, r.seen)
	return r.writeSlot(next)
}

// unchanged makes sure that the disk still holds the record that we know: the check that stands behind the lock. Where
// somebody else has written it, this session is over.
func (r *Replica) unchanged() error {
	if err := r.Failed(); err != nil {
		return err
	}
	if r.unknown {
		return r.dir.replicaError(r.id, fmt.Errorf("record: %w: it is asked of the majority and never reset", ErrDamaged))
	}
	p := aligned(2 * slotSize)
	if err := r.meta.ReadAt(p, slotOffset); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	rec, _, err := choose(decodeSlots(p, r.super))
	if held := r.record.Load().Sequence; err == nil && rec.Sequence != held {
		err = fmt.Errorf("%w: somebody else has written record %d where %d was ours", ErrFenced, rec.Sequence, held)
	}
	if err == nil {
		return nil
	}
	return r.wrote("checking the record", err)
}

// writeSlot makes rec the record. Where that fails it is unknown which one the disk holds, and the replica has failed.
func (r *Replica) writeSlot(rec Record) error {
	if err := r.Failed(); err != nil {
		return err
	}
	r.seen = rec.Sequence // from now on a sector may show it
	p := aligned(slotSize)
	encodeSlot(p, r.super.Incarnation, rec)
	if err := r.meta.WriteAt(p, slotOffset+int64(slotOf(rec.Sequence))*slotSize); err != nil {
		return r.wrote("writing the record", err)
	}
	if err := r.meta.Datasync(); err != nil {
		return r.synced("syncing the record", err)
	}
	r.record.Store(&rec)
	return nil
}

// MarkLossy is Mark(true) of a replica that has failed: it tries to leave word for whoever opens it next. What that finds
// otherwise is what it would have found without it.
func (r *Replica) MarkLossy() error {
	r.metaMu.Lock()
	defer r.metaMu.Unlock()
	if r.unknown {
		return r.dir.errorf("volume %s: record: %w", r.id, ErrDamaged)
	}
	p := aligned(2 * slotSize)
	if err := r.meta.ReadAt(p, slotOffset); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	rec, seen, err := choose(decodeSlots(p, r.super))
	if held := r.record.Load().Sequence; err == nil && rec.Sequence != held && rec.Sequence != r.seen {
		err = fmt.Errorf("%w: somebody else has written record %d where %d was ours", ErrFenced, rec.Sequence, held)
	}
	if err != nil || rec.Lossy {
		return err
	}
	rec.Lossy, rec.Sequence = true, nextSequence(rec, max(seen, r.seen))
	encodeSlot(p, r.super.Incarnation, rec)
	if err := r.meta.WriteAt(p[:slotSize], slotOffset+int64(slotOf(rec.Sequence))*slotSize); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	if err := r.meta.Datasync(); err != nil {
		return r.dir.replicaError(r.id, err)
	}
	r.seen = rec.Sequence
	r.record.Store(&rec)
	return nil
}
