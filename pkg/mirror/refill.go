package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// refill gives a salvaged volume that has fewer replicas than it was given new ones, on stores that have none of it. They are empty, and
// rebuilt when the volume is attached. Nobody else needs it: voters are fixed otherwise. The volume is sealed.
func (e *Engine) refill(ctx context.Context, id volume.ID) error {
	f := e.survey(id)
	c, err := f.newest()
	if err != nil {
		return err
	}
	t := attributesOf(c).Salvaged
	if t == nil || !c.Flags.Has(quorum.Sealed) || len(c.Voters) >= t.Replicas {
		return nil
	}
	room := slices.DeleteFunc(slices.Clone(f.peeks), func(p peek) bool { return !errors.Is(p.err, store.ErrNotFound) })
	if len(room) == 0 {
		return nil
	}
	s, err := e.open(ctx, id, ForControl, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	fresh := s.makeFresh(room[:min(len(room), t.Replicas-len(c.Voters))])
	if len(fresh) == 0 {
		return nil
	}
	return s.takeIn(f.peeks, fresh)
}

func (s *Session) makeFresh(room []peek) (fresh []*replica) {
	config := s.Config()
	for _, p := range room {
		r, err := makeEmpty(p.dir, s.super, config, s.holder)
		if err != nil {
			s.log.Warn("replica cannot be made", "volume", s.id, "store", p.dir.Path(), "cause", err)
			continue
		}
		r.index = len(config.Voters) + len(fresh)
		fresh = append(fresh, r)
	}
	return fresh
}

// makeEmpty makes a replica that holds nothing, of an incarnation that no configuration knows yet, and opens it.
func makeEmpty(d *store.Dir, sb store.Superblock, c quorum.Config, holder string) (*replica, error) {
	incarnation, err := store.NewUUID()
	if err != nil {
		return nil, err
	}
	sb.Store, sb.Incarnation = d.ID(), incarnation
	if err := d.Create(sb, c); err != nil {
		return nil, err
	}
	opened, err := d.Open(sb.Volume, holder)
	if err != nil {
		return nil, err
	}
	return &replica{Replica: opened, dir: d}, nil
}

// takeIn makes the replicas voters. They accept it before the old voters do: where it is cut short among them the old ones know nothing, and
// later nothing is decided without the old ones' majority, for the members are among those.
func (s *Session) takeIn(have []peek, fresh []*replica) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	old := s.view.Load()
	next := old.config
	next.Voters = slices.Clone(next.Voters)
	replicas := slices.Clone(old.replicas)
	for _, r := range fresh {
		next.Voters = append(next.Voters, quorum.Voter{Store: r.dir.ID(), Incarnation: r.Superblock().Incarnation})
		replicas = append(replicas, r)
	}
	s.view.Store(&view{config: next, replicas: replicas})
	bequeath(s.id, next.Head, dirsOf(have), fresh, s.log)
	first := next
	first.Epoch, first.Step = s.epoch, old.config.Step+1
	newcomers := slices.Clone(replicas)
	for i := range old.config.Voters {
		newcomers[i] = nil
	}
	if _, failed := s.propose(&view{config: first, replicas: newcomers}, first, s.openMark()); len(failed) > 0 {
		return fmt.Errorf("%w: volume %s: new replicas: %w", engine.ErrUnavailable, s.id, failed.err())
	}
	if err := s.commit(next, true); err != nil {
		return err
	}
	s.log.Info("salvaged volume has new replicas", "volume", s.id, "replicas", len(next.Voters))
	return nil
}

func (s *Session) openMark() store.Session {
	mark := s.mark
	mark.Open = true
	return mark
}

func dirsOf(peeks []peek) (out []*store.Dir) {
	for _, p := range peeks {
		if !errors.Is(p.err, store.ErrNotFound) {
			out = append(out, p.dir)
		}
	}
	return out
}

// keptIn are all receipts of the volume in the stores, by their hash.
func keptIn(id volume.ID, dirs []*store.Dir, log *slog.Logger) (all map[[32]byte]linked, epochs map[[32]byte]volume.Epoch) {
	all, epochs = map[[32]byte]linked{}, map[[32]byte]volume.Epoch{}
	for _, d := range dirs {
		receipts, err := d.Receipts(id)
		if err != nil {
			log.Warn("receipts cannot be read", "volume", id, "store", d.Path(), "cause", err)
		}
		for _, r := range receipts {
			if l, ok := unlink(r.Bytes); ok {
				hash := sha256.Sum256(l.receipt)
				all[hash], epochs[hash] = l, r.Writer
			}
		}
	}
	return all, epochs
}

// bequeath gives new voters the receipts that the head leads to: any majority must be able to show the chain. One that cannot keep
// them fails.
func bequeath(id volume.ID, head [32]byte, from []*store.Dir, to []*replica, log *slog.Logger) {
	all, epochs := keptIn(id, from, log)
	seen := map[[32]byte]bool{}
	for at := head; at != [32]byte{} && !seen[at]; at = all[at].previous {
		seen[at] = true
		l, ok := all[at]
		if !ok {
			return
		}
		for _, r := range to {
			r.Fail(r.dir.PutReceipt(id, epochs[at], link(l.previous, l.receipt)))
		}
	}
}
