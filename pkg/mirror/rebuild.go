package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// bringBack opens voters that failed or were away, and rebuilds those that are not in sync.
func (s *Session) bringBack(ctx context.Context) {
	s.evidence.Lock()
	defer s.evidence.Unlock()
	if s.outOfSync() == 0 {
		return
	}
	s.gate.Lock()
	err := s.rebuildRefusal()
	if err == nil {
		s.reopen(s.Config().Members)
	}
	s.gate.Unlock()
	if err != nil {
		return
	}
	for _, r := range s.view.Load().pick(s.outOfSync()) {
		if err := s.rebuild(ctx, r, nil); err != nil && ctx.Err() == nil {
			s.log.Warn("rebuild", "volume", s.id, "replica", r.id(), "cause", err)
		}
	}
}

// rebuildRefusal is why no replica can be rebuilt now: a detach that has stopped the writer goes before, unless it needs it. The
// caller holds gate.
func (s *Session) rebuildRefusal() error { return s.refusal(!s.restoring) }

// restore brings back as many replicas as a stopped session needs to prove anything: a majority must confirm the content, and nobody
// else will rebuild them now. The caller holds evidence. What cannot be rebuilt is left to the gate to complain of.
func (s *Session) restore(ctx context.Context, report func(engine.Progress)) {
	need := quorum.Majority(len(s.Config().Voters))
	if s.Config().Members.Len() >= need {
		return
	}
	s.setRestoring(true)
	defer s.setRestoring(false)
	for _, r := range s.view.Load().pick(s.outOfSync()) {
		if s.Config().Members.Len() >= need {
			return
		}
		if err := s.rebuild(ctx, r, report); err != nil {
			s.log.Warn("rebuild for a detach", "volume", s.id, "replica", r.id(), "cause", err)
		}
	}
}

func (s *Session) setRestoring(on bool) {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.restoring = on
}

// comeBack opens again what has failed or was away, so that it votes: a session that is stopped does nothing in the background. Members
// that have failed are excluded, which they vote for themselves once they are open again. Where all of them have the session ends by force.
func (s *Session) comeBack() {
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.refusal(false) != nil {
		return
	}
	failed, next := sick(s.view.Load().members()), s.Config()
	next.Members = next.Members.Without(failed.set())
	switch {
	case len(failed) == 0:
		s.reopen(next.Members)
		return
	case next.Members == 0:
		_ = s.allFailed(failed) // it ends here, and whoever takes its place opens them anew
		return
	}
	s.markLossy() // before they vote again
	s.reopen(next.Members)
	if err := s.commit(next, true); err != nil {
		s.keepOut(next.Members, err)
	}
	s.events.replicas(s)
}

func (s *Session) outOfSync() quorum.Set {
	c := s.Config()
	return quorum.All(len(c.Voters)).Without(c.Members)
}

// reopen opens again every voter that has failed or is not open, so that it can vote and be rebuilt; it has the present configuration
// then. Those in leave are left alone: a member whose sync failed must be excluded before anything it says counts
// again. The caller holds gate for writing.
func (s *Session) reopen(leave quorum.Set) {
	v := s.view.Load()
	for i, voter := range v.config.Voters {
		r := v.replicas[i]
		if leave.Has(i) || r != nil && r.Failed() == nil {
			continue
		}
		if r != nil {
			r.Close()
		}
		again, err := s.readmit(v, i, voter, r != nil && r.SyncFailed())
		if err != nil {
			s.log.Debug("replica still away", "volume", s.id, "voter", i, "cause", err)
			continue
		}
		replicas := append([]*replica(nil), v.replicas...)
		replicas[i] = again
		v = &view{config: v.config, replicas: replicas, targets: v.targets.Without(quorum.SetOf(i))}
		s.view.Store(v)
		s.log.Info("replica is back", "volume", s.id, "replica", again.id())
	}
}

// readmit opens a returned voter and gives it the configuration in force, but for one that is still to be excluded: it is told so by the
// configuration that excludes it, and by none, newer than what the others hold of that, in which it is a member. One that has promised a newer epoch says
// that we were fenced. Where lost, its cache is gone: one that may still be taken for a member has recorded that before it votes again, or stays failed.
func (s *Session) readmit(v *view, i int, voter quorum.Voter, lost bool) (*replica, error) {
	s.renew(voter.Store)
	r, err := s.openVoter(i, voter)
	if errors.Is(err, store.ErrDamaged) && !v.config.Members.Has(i) {
		if err = s.replaceRecord(v, voter); err == nil {
			r, err = s.openVoter(i, voter)
		}
	}
	if err != nil {
		return nil, err
	}
	err = r.Present()
	switch {
	case err != nil:
	case !v.config.Members.Has(i):
		err = r.Accept(v.config, store.Session{})
	case lost:
		err = r.Mark(true)
	}
	if err != nil {
		r.Close()
		return nil, errors.Join(err, s.superseded(failures{{r, err}}))
	}
	return r, nil
}

// renew opens a voter's store anew: its disk may have been away, and be mounted again as another device.
func (s *Session) renew(id quorum.UUID) {
	if s.find == nil {
		return
	}
	again, err := s.find(id)
	if err != nil {
		s.log.Debug("store still away", "volume", s.id, "cause", err)
		return
	}
	s.dirs = append(slices.DeleteFunc(s.dirs, func(d *store.Dir) bool { return d.ID() == id }), again)
}

// replaceRecord gives a replica whose record is damaged the one that the majority has. It may have forgotten a promise to
// somebody newer, but that one would have needed a majority: the others, whose locks we hold, and which promised us.
func (s *Session) replaceRecord(v *view, voter quorum.Voter) error {
	dir := dirOf(s.dirs, voter.Store)
	opened, err := dir.OpenUnknown(s.id, s.holder)
	if err != nil {
		return err
	}
	defer opened.Close()
	if opened.Superblock().Incarnation != voter.Incarnation {
		return fmt.Errorf("store %s: replica of another incarnation", dir.Path())
	}
	s.log.Warn("damaged record replaced by the majority's", "volume", s.id, "store", dir.Path())
	return opened.Adopt(v.config)
}

// rebuild makes r identical to the members while the volume is in use, and then a member (DESIGN.md §3.5). It copies
// only regions that r says it was writing, or whose sums differ, and in them only blocks that differ, and reads them back: nobody will look at them again before a scrub does.
func (s *Session) rebuild(ctx context.Context, r *replica, report func(engine.Progress)) error {
	s.log.Info("rebuild begins", "volume", s.id, "replica", r.id())
	if err := s.takeWrites(r); err != nil {
		return err
	}
	todo, err := s.behind(r)
	if err != nil {
		return s.dropTarget(r, err)
	}
	if mutant.MemberBeforeCopied {
		todo = nil
	}
	meter := newMeter("rebuild", report)
	meter.total = volume.Bytes(len(todo)) * store.RegionSize
	sums := make(map[int64]digest.Sum, len(todo))
	for _, region := range todo {
		if err := s.interrupted(ctx); err != nil {
			return s.dropTarget(r, err)
		}
		if sums[region], err = s.copyRegion(r, region); err != nil {
			return s.dropTarget(r, err)
		}
		meter.add(store.RegionSize)
	}
	if err := r.Sync(); err != nil {
		return s.dropTarget(r, err)
	}
	return s.admit(r, sums)
}

// interrupted says why a rebuild should not go on: it makes way for a detach.
func (s *Session) interrupted(ctx context.Context) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return errors.Join(ctx.Err(), s.rebuildRefusal())
}

// takeWrites makes r a target: from now on it gets every write, and its map has every region that is dirty.
func (s *Session) takeWrites(r *replica) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	if err := s.rebuildRefusal(); err != nil {
		return err
	}
	if err := r.MarkDirty(s.regions.list()); err != nil {
		return fmt.Errorf("store %s: %w", r.dir.Path(), err)
	}
	v := s.view.Load()
	s.setView(v.config, v.targets.With(r.index))
	return nil
}

func (s *Session) dropTarget(r *replica, why error) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	v := s.view.Load()
	s.setView(v.config, v.targets.Without(quorum.SetOf(r.index)))
	return why
}

// behind lists the regions in which r may differ from the members.
func (s *Session) behind(r *replica) ([]int64, error) {
	set := map[int64]struct{}{}
	for _, i := range r.Dirty() {
		set[i] = struct{}{}
	}
	source := s.view.Load().members()[0]
	mine, theirs := make([]digest.Sum, sumsChunk), make([]digest.Sum, sumsChunk)
	for first := int64(0); first < regionCount(s.Config().Size); first += sumsChunk {
		if err := errors.Join(r.ReadSums(mine, first), source.ReadSums(theirs, first)); err != nil {
			return nil, err
		}
		for _, i := range differing(mine, theirs, first) {
			set[i] = struct{}{}
		}
	}
	return sortedKeys(set), nil
}

// copyRegion makes one region of r what the engine expects. Writers in the region wait.
func (s *Session) copyRegion(r *replica, index int64) (digest.Sum, error) {
	held := s.ranges.lock(index*store.RegionBlocks, store.RegionBlocks, true)
	defer s.ranges.unlock(held)
	if err := s.settleHeld(index*store.RegionBlocks, store.RegionBlocks); err != nil {
		return digest.Sum{}, err
	}
	expected, err := s.expectedRegion(index)
	if err != nil {
		return digest.Sum{}, err
	}
	var want blockset
	want.fill()
	mine, err := readImage(s.hash, r, index, &want)
	if err != nil { // its checksums cannot be read: all is written anew, which heals what can be healed
		mine = &image{replica: r}
	}
	buf := vfs.GetBuffer(store.BlockSize)
	defer vfs.PutBuffer(buf)
	var written blockset
	for _, block := range mine.wrong(index, expected, &want) {
		written.add(block % store.RegionBlocks)
		if err := s.readLocked(buf, block); err != nil {
			return digest.Sum{}, err
		}
		if err := r.WriteBlocks(buf, block); err != nil {
			return digest.Sum{}, err
		}
	}
	if written.empty() && mine.entries == expected.entries && mine.sound == expected.sound {
		return expected.sum(s.hash), nil
	}
	if err := writeRegionEntries(r, index, &expected.entries); err != nil {
		return digest.Sum{}, err
	}
	return expected.sum(s.hash), s.readsAs(r, index, expected, &written)
}

func writeRegionEntries(r *replica, index int64, entries *[store.RegionBlocks]digest.Entry) error {
	raw := vfs.GetBuffer(store.PagesPerRegion * store.PageSize)
	defer vfs.PutBuffer(raw)
	for i, e := range entries {
		digest.Encode(raw[i*digest.EntrySize:(i+1)*digest.EntrySize], index*store.RegionBlocks+int64(i), e)
	}
	return r.WriteEntries(raw, index*store.PagesPerRegion)
}

// admit makes r a member once everything on it is durable. Requests wait for the last sync. Where too few voters are there to agree nobody is
// asked, so that r, should it fail, concerns nobody.
func (s *Session) admit(r *replica, sums map[int64]digest.Sum) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	v := s.view.Load()
	targets := v.targets.Without(quorum.SetOf(r.index))
	if err := s.readyToJoin(v, r, sums); err != nil {
		s.setView(v.config, targets)
		return err
	}
	next := v.config
	next.Members = next.Members.With(r.index)
	if err := s.commit(next, true); errors.Is(err, engine.ErrUnavailable) {
		return errors.Join(err, s.joinInDoubt(r, targets))
	} else if err != nil {
		return err
	}
	s.joined(r, s.Config(), targets)
	s.log.Info("replica is in sync again", "volume", s.id, "replica", r.id())
	return nil
}

// readyToJoin makes what r holds durable and its own account of it true: its sums, its map, and that it has lost nothing since.
func (s *Session) readyToJoin(v *view, r *replica, sums map[int64]digest.Sum) error {
	clean := make([]int64, 0, len(sums))
	for i := range sums {
		switch reg := s.regions.get(i); {
		case reg == nil:
			clean = append(clean, i)
		case !reg.untouched(): // whoever makes it clean writes its sum
			delete(sums, i)
		}
	}
	_, err := s.quorate(v)
	err = errors.Join(s.rebuildRefusal(), err, r.Sync())
	if err == nil {
		err = r.WriteSums(sums)
	}
	if err == nil {
		err = r.ClearDirty(clean)
	}
	if err == nil {
		err = r.Mark(false) // it joins anew, with everything durable
	}
	return err
}

// joinInDoubt is what follows where r was proposed as a member and no majority has agreed. Some may have, and hold that for the newest there is, so that
// whoever comes next takes r for a member. It is one from here on: nothing is acknowledged that it does not have, until a majority
// has excluded it. The caller holds gate for writing.
func (s *Session) joinInDoubt(r *replica, targets quorum.Set) error {
	c := s.Config()
	c.Members = c.Members.With(r.index)
	s.joined(r, c, targets)
	s.log.Warn("replica counts as in sync, but a majority has not agreed to it yet", "volume", s.id, "replica", r.id())
	if err := r.Failed(); err != nil {
		return s.excludeLocked(failures{{r, err}})
	}
	return nil
}

// joined is what follows where r is a member, in c.
func (s *Session) joined(r *replica, c quorum.Config, targets quorum.Set) {
	s.setView(c, targets)
	r.lossy = false // it joined anew, with everything durable
	s.events.replicas(s)
}
