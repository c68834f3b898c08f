package mirror

import (
	"errors"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
)

// outlook is whether the volume comes up by the rules, why, and for whom it waits.
type outlook struct {
	engine.Outlook
	because string
	waits   []quorum.Voter
}

func stuck(format string, args ...any) outlook {
	return outlook{Outlook: engine.OutlookStuck, because: fmt.Sprintf(format, args...)}
}

// outlook asks the rules what an attach would come to now. They see what an attach sees: no damaged record counts.
func (l *look) outlook() outlook {
	c, ok := l.voting()
	if !ok {
		return stuck("no store that is there has a record that can be read")
	}
	answers := l.answers(c.Voters)
	newest, sources, err := quorum.Elect(answers, false)
	if len(newest.Voters) > 0 {
		c = newest
	}
	switch {
	case errors.Is(err, quorum.ErrNoMajority):
		return l.tooFew(c, answers)
	case errors.Is(err, quorum.ErrNoMember):
		return l.noMember(c)
	case err != nil:
		return stuck("%v", err)
	}
	if err := l.above(c); err != nil {
		return outlook{Outlook: engine.OutlookWaits, because: fmt.Sprintf("it was salvaged at epoch %d, and what is there is from before that", l.floor.Epoch),
			waits: []quorum.Voter{l.floor.From}}
	}
	return l.obstacles(c, sources)
}

// voting is the newest configuration on an undamaged record.
func (l *look) voting() (c quorum.Config, ok bool) {
	for _, h := range l.holdings {
		if h.why == nil && !h.doubtful && (!ok || h.record.Config.Newer(c)) {
			c, ok = h.record.Config, true
		}
	}
	return c, ok
}

// obstacles are what keeps a volume down that has its majority and a member.
func (l *look) obstacles(c quorum.Config, sources quorum.Set) outlook {
	switch a := attributesOf(c); {
	case a.Pending:
		return stuck("its salvage from store %s was decided and is not finished; the same order again finishes it", a.Salvaged.From)
	case c.Flags.Has(quorum.Quarantined):
		return stuck("it is quarantined: for some blocks no copy can win%s", unresolvedText(a.Unresolved))
	case c.Flags.Has(quorum.Sealed) && !l.anyAsSealed(c, sources):
		return stuck("no member of configuration %s has the content that was sealed", c)
	}
	return outlook{Outlook: engine.OutlookComesUp, because: fmt.Sprintf("a majority of its replicas answers, and store %s holds everything of configuration %s", l.firstOf(c, sources), c)}
}

func (l *look) anyAsSealed(c quorum.Config, sources quorum.Set) bool {
	for _, i := range sources.Indexes() {
		if h := l.of(c.Voters[i]); h != nil && (h.total.Bytes() == c.Digest || len(h.dirty) > 0) {
			return true // where regions are dirty the recovery computes their sums first
		}
	}
	return false
}

func (l *look) firstOf(c quorum.Config, sources quorum.Set) string {
	return l.of(c.Voters[sources.Indexes()[0]]).dir.Path()
}

// tooFew says whether stores that are away can make the majority.
func (l *look) tooFew(c quorum.Config, answers []quorum.Answer) outlook {
	known := 0
	for _, a := range answers {
		known += bitOf(a.Known)
	}
	need := quorum.Majority(len(c.Voters))
	away := l.away(c.Voters)
	text := fmt.Sprintf("%d of its %d replicas answer, %d are needed", known, len(c.Voters), need)
	if known+len(away) < need {
		return stuck("%s, and too few of the others can still come back: %s", text, l.faults(c.Voters))
	}
	return outlook{Outlook: engine.OutlookWaits, because: fmt.Sprintf("%s; %d more of the stores that are away must come back", text, need-known), waits: away}
}

// noMember says whether a member is away.
func (l *look) noMember(c quorum.Config) outlook {
	var members []quorum.Voter
	for _, i := range c.Members.Indexes() {
		members = append(members, c.Voters[i])
	}
	away := l.away(members)
	if len(away) == 0 {
		return stuck("no member of its newest configuration %s can be read: %s", c, l.faults(members))
	}
	return outlook{Outlook: engine.OutlookWaits, because: fmt.Sprintf("none of the replicas that answer holds everything of the newest configuration %s; one of the stores that do must come back", c), waits: away}
}

func (l *look) away(voters []quorum.Voter) (out []quorum.Voter) {
	for _, v := range voters {
		if !l.here(v) {
			out = append(out, v)
		}
	}
	return out
}

// faults says what is wrong with voters whose stores are there.
func (l *look) faults(voters []quorum.Voter) string {
	var out []string
	for _, v := range voters {
		if h := l.of(v); l.here(v) && (h == nil || h.doubtful) {
			out = append(out, l.fault(v))
		}
	}
	return strings.Join(out, "; ")
}

func (l *look) fault(v quorum.Voter) string {
	for _, h := range l.holdings {
		switch {
		case h.at.Store != v.Store:
		case h.why != nil:
			return h.why.Error()
		case h.doubtful:
			return h.err.Error()
		default:
			return fmt.Sprintf("store %s: its replica is another incarnation than the one that was admitted", h.dir.Path())
		}
	}
	for _, p := range l.peeks {
		if p.dir.ID() == v.Store {
			return fmt.Sprintf("store %s has no replica of it any more", p.dir.Path())
		}
	}
	return fmt.Sprintf("store %s is not there", v.Store)
}

func unresolvedText(f []engine.Finding) string {
	if len(f) == 0 {
		return ""
	}
	return fmt.Sprintf(", the first at offset %d", int64(f[0].Offset))
}
