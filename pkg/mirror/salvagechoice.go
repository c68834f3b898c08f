package mirror

import (
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
)

// choices are what a person may decide for, the one that loses least first.
func (l *look) choices() (out []engine.SalvageChoice, err error) {
	for _, h := range l.readable() {
		c, err := l.choice(h)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (l *look) choice(h *holding) (engine.SalvageChoice, error) {
	c := engine.SalvageChoice{From: h.id(), Place: h.dir.Path(), Configuration: l.base(h).String()}
	lost, err := l.givenUp(h)
	if err != nil {
		return c, err
	}
	c.LostBlocks, c.LostRegions = lost.blocks, lost.regions
	c.Loses = l.loses(h, lost)
	return c, nil
}

// loses says, in the order of weight, what is given up or in doubt where h is chosen.
func (l *look) loses(h *holding, lost givenUp) (out []string) {
	say := func(when bool, format string, args ...any) {
		if when {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	base := l.base(h)
	say(h.doubtful, "its record is damaged: what is left of it says configuration %s, and it may have been part of a newer one", base)
	say(l.config.Newer(base), "its content is that of configuration %s, the newest is %s: every write that was acknowledged after it had left the in-sync set is lost", base, l.config)
	say(!memberOf(base, h.at), "it was not in sync under configuration %s either: its content may be older than that, and of several times", base)
	say(lost.blocks > 0, "%d blocks in %d regions go back to an older content; the newer one is on store %s", lost.blocks, lost.regions, strings.Join(lost.holders, ", "))
	out = append(out, l.unseen(h)...)
	say(len(h.dirty) > 0 && !base.Flags.Has(quorum.Clean), "%d regions (of %d KiB) were being written when its writer ended: what was not flushed then may be there, in part, or not", len(h.dirty), store.RegionSize>>10)
	out = append(out, l.damaged(h, base)...)
	return out
}

// unseen says what the replicas that cannot be asked may hold.
func (l *look) unseen(chosen *holding) (out []string) {
	var silent []string
	for i, v := range l.config.Voters {
		if h := l.of(v); h == chosen || h != nil && !h.doubtful {
			continue
		}
		text := l.place(v.Store)
		if l.config.Members.Has(i) {
			text += " (in sync)"
		}
		silent = append(silent, text)
	}
	switch {
	case len(silent) == 0:
	case l.certain():
		out = append(out, fmt.Sprintf("away, or with a damaged record, and not compared: %s", strings.Join(silent, ", ")))
	default:
		out = append(out, fmt.Sprintf("too many are away or have a damaged record to know whether they went on without the others: %s. What they alone acknowledged, under a configuration newer than %s, is lost; nobody here can tell whether there is any",
			strings.Join(silent, ", "), l.config))
	}
	return out
}

// damaged says what is wrong with the replica itself.
func (l *look) damaged(h *holding, base quorum.Config) (out []string) {
	if n, read := l.wrong[h]; read && n.wrong+n.unreadable > 0 {
		out = append(out, fmt.Sprintf("%d of its blocks are not what their checksum says, and %d cannot be read: those of which no other store has the right copy stay as they are, or become zeros where they cannot be read", n.wrong, n.unreadable))
	} else if base.Flags.Has(quorum.Quarantined) && !read {
		out = append(out, fmt.Sprintf("the blocks for which no copy can win%s become what this store holds; --read counts them", unresolvedText(attributesOf(base).Unresolved)))
	}
	if base.Flags.Has(quorum.Sealed) && h.total.Bytes() != base.Digest && len(h.dirty) == 0 {
		out = append(out, "its content is not the one that was sealed")
	}
	return out
}
