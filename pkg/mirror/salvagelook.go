package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// holding is one store's replica as it is looked at: nothing of it is changed.
type holding struct {
	peek
	why      error        // why it cannot be read; nil: it can
	doubtful bool         // record is what is left of a damaged one
	replica  *replica     // opened to be looked at; nil where why says why
	total    digest.Sum   // by its own sums
	dirty    []int64      // regions that were being written
	at       quorum.Voter // who it is
}

func (h *holding) id() engine.ReplicaID { return engine.ReplicaID(h.dir.ID().String()) }

// look is all that can be seen of a volume without changing anything.
type look struct {
	found
	ctx      context.Context
	node     volume.NodeID
	boot     quorum.UUID
	uuid     quorum.UUID // of the volume
	config   quorum.Config
	holdings []*holding // of this volume, by store
	hash     *digest.Hasher
	place    func(store quorum.UUID) string // for people: where a store is, or was
	read     volume.Bytes
	wrong    map[*holding]damageCount // where everything was read
}

// look opens every replica of the volume that is there. ErrNotFound where no store that is there has any of it.
func (e *Engine) look(ctx context.Context, id volume.ID) (*look, error) {
	l := &look{found: e.survey(id), ctx: ctx, node: e.Node, boot: e.boot, place: e.stores.placeOf}
	if l.floorErr != nil {
		return nil, l.floorErr
	}
	for _, p := range l.peeks {
		if !errors.Is(p.err, store.ErrNotFound) {
			l.holdings = append(l.holdings, l.hold(p))
		}
	}
	if len(l.holdings) == 0 {
		return nil, e.maybeAway(l.nothing())
	}
	if err := l.settleIdentity(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *look) close() {
	for _, h := range l.holdings {
		if h.replica != nil {
			h.replica.Close()
		}
	}
}

// hold opens one replica to look at it.
func (l *look) hold(p peek) *holding {
	h := &holding{peek: p, at: quorum.Voter{Store: p.dir.ID(), Incarnation: p.super.Incarnation}}
	opened, err := p.dir.Inspect(l.id)
	if err != nil {
		h.why = cmp.Or(p.err, err)
		return h
	}
	h.replica = &replica{Replica: opened, dir: p.dir, index: len(l.holdings)}
	h.super, h.at.Incarnation = opened.Superblock(), opened.Superblock().Incarnation
	h.dirty = opened.Dirty()
	if h.total, h.why = opened.Total(); h.why == nil && p.err != nil {
		h.record, h.doubtful = opened.Remains()
		if !h.doubtful {
			h.why = p.err
		}
	}
	return h
}

// settleIdentity finds out which volume it is, and its newest configuration: that of whoever can be read, damaged records included.
func (l *look) settleIdentity() error {
	var newest *holding
	for _, h := range l.holdings {
		if h.why == nil && (newest == nil || h.record.Config.Newer(newest.record.Config)) {
			newest = h
		}
	}
	if newest == nil {
		return nil
	}
	l.uuid, l.config = newest.super.UUID, newest.record.Config
	l.hash = digest.NewHasher(newest.super.Key)
	for _, h := range l.holdings {
		if h.why == nil && h.super.UUID != l.uuid {
			h.why = fmt.Errorf("store %s: it is of another volume that had the name %s", h.dir.Path(), l.id)
		}
	}
	if l.config.Flags.Has(quorum.Deleted) {
		return fmt.Errorf("%w: volume %s was deleted", engine.ErrNotFound, l.id)
	}
	return nil
}

// readable are the replicas that a person can choose from, those with the newest configuration first, members before others.
func (l *look) readable() []*holding {
	var out []*holding
	for _, h := range l.holdings {
		if h.why == nil {
			out = append(out, h)
		}
	}
	slices.SortStableFunc(out, func(a, b *holding) int { return cmp.Compare(l.rank(b), l.rank(a)) })
	return out
}

// rank orders the choices: a member of the newest configuration, then a newer one, then an undamaged record.
func (l *look) rank(h *holding) (r uint64) {
	c := h.record.Config
	if l.member(h) {
		r = 1 << 63
	}
	return r | uint64(c.Epoch&(1<<40-1))<<22 | uint64(c.Step&(1<<20-1))<<1 | uint64(bitOf(!h.doubtful))
}

func bitOf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// member says that the newest configuration names the replica as one that holds everything reported stable.
func (l *look) member(h *holding) bool {
	return memberOf(l.config, h.at)
}

func memberOf(c quorum.Config, v quorum.Voter) bool {
	i := c.Place(v)
	return i >= 0 && c.Members.Has(i)
}

// base is the configuration whose content a replica has: the newest where it is a member of that, else its own.
func (l *look) base(h *holding) quorum.Config {
	if l.member(h) {
		return l.config
	}
	return h.record.Config
}

// of returns the voter's replica where that can be read.
func (l *look) of(v quorum.Voter) *holding {
	for _, h := range l.holdings {
		if h.why == nil && h.at == v {
			return h
		}
	}
	return nil
}

// answers are what the voters would say to an attach: nobody who cannot be read, and no damaged record.
func (l *look) answers(voters []quorum.Voter) []quorum.Answer {
	out := make([]quorum.Answer, len(voters))
	for i, v := range voters {
		if h := l.of(v); h != nil && !h.doubtful {
			out[i] = quorum.Answer{Known: true, Promised: h.record.Promised, Config: h.record.Config}
		}
	}
	return out
}

// here says whether the voter's store is there, whatever it holds.
func (l *look) here(v quorum.Voter) bool {
	return slices.ContainsFunc(l.peeks, func(p peek) bool { return p.dir.ID() == v.Store })
}

// lossy says that the replica has lost its cache with writes in it.
func (l *look) lossy(h *holding) bool {
	mark := h.record.Session
	return h.record.Lossy || mark.Open && (mark.Boot != l.boot || mark.Mount != h.replica.MountID())
}
