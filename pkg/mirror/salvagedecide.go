package mirror

import (
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// lostMax bounds the sentences that the volume's record keeps of what was lost.
const lostMax = 600

// plan is the configuration that will be in force: what everybody knows of the volume, with the chosen replica as the only member.
func (s *salvage) plan() error {
	l := s.look
	s.epoch = l.salvageEpoch()
	s.next = l.config
	s.next.Epoch, s.next.Step = s.epoch, 0
	s.next.Size, s.next.Members = l.size(), quorum.SetOf(0)
	s.next.Flags = l.config.Flags&quorum.Staged | quorum.Quarantined // neither sealed nor clean
	s.next.Writer = l.writer()
	if s.next.Writer == 0 {
		s.next.Writer = s.epoch // so that the next attach is unclean in any case
	}
	s.next.Digest, s.next.Head = [32]byte{}, s.head()
	s.next.Voters = nil
	for _, r := range s.view.Load().replicas {
		s.next.Voters = append(s.next.Voters, quorum.Voter{Store: r.dir.ID(), Incarnation: r.Superblock().Incarnation})
	}
	s.trace = s.traced()
	return s.writeTrace()
}

// salvageEpoch is above everything that was seen, and everything that can be on stores which were not.
func (l *look) salvageEpoch() volume.Epoch {
	var top volume.Epoch
	for _, h := range l.holdings {
		if h.why == nil {
			top = max(top, h.record.Promised, h.record.Config.Epoch)
		}
	}
	if l.floor != nil {
		top = max(top, l.floor.Epoch)
	}
	return (top/salvageStride + 1) * salvageStride
}

func (l *look) writer() (w volume.Epoch) {
	for _, h := range l.holdings {
		if h.why == nil {
			w = max(w, h.record.Config.Writer)
		}
	}
	return w
}

// traced is what is remembered. A salvage that was cut short has told already what there was before it changed anything.
func (s *salvage) traced() engine.Salvaged {
	a := attributesOf(s.look.config)
	if a.Pending && a.Salvaged.From == s.choice.From {
		t := *a.Salvaged
		t.Epoch = s.epoch
		return t
	}
	loses := s.choice.Loses
	if s.next.Head != s.look.config.Head {
		loses = append(loses, "the newest receipts are on none of the stores that are there")
	}
	return engine.Salvaged{
		Epoch: s.epoch, From: s.choice.From, Place: s.choice.Place, Configuration: s.choice.Configuration, Newest: s.look.config.String(),
		Replicas: s.look.wanted(), LostBlocks: s.choice.LostBlocks, Lost: clipped(strings.Join(loses, "; "), lostMax),
	}
}

func clipped(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// writeTrace puts the trace into the configuration. Where there is no room for all of it, sentences go before facts.
func (s *salvage) writeTrace() error {
	t, findings := s.trace, s.findings[:min(len(s.findings), quarantineFindings)]
	for _, most := range []int{lostMax, lostMax / 4, 0} {
		t.Lost = clipped(s.trace.Lost, most)
		err := editAttributes(&s.next, func(a *attributes) {
			a.Salvaged, a.Pending, a.Unresolved = &t, true, findings
			a.Format = s.look.format().AfterUnclean()
		})
		if err == nil {
			return nil
		}
		if findings = nil; most == 0 {
			return err
		}
	}
	return nil
}

// format is the furthest that the filesystem has come: a volume that was in use is never formatted again.
func (l *look) format() (f engine.Format) {
	for _, h := range l.holdings {
		if h.why != nil {
			continue
		}
		has := attributesOf(h.record.Config).Format
		if stageOrder[has.Stage] > stageOrder[f.Stage] || has.Stage == f.Stage && has.Doubt == engine.Damaged {
			f = has
		}
	}
	return f
}

// decide puts the salvage in force: remembered first, then accepted by the chosen replica, then by a majority.
func (s *salvage) decide() error {
	first := s.next
	first.Step = 1
	f := floor{Volume: s.super.UUID, Epoch: s.epoch, From: s.next.Voters[0]}
	if err := s.engine.setFloor(s.id, f); err != nil {
		return err
	}
	if err := s.acceptFirst(first); err != nil {
		return fmt.Errorf("%w: the chosen replica does not accept it: %w", engine.ErrUnavailable, err)
	}
	f.Done = true
	if err := s.engine.setFloor(s.id, f); err != nil {
		return err
	}
	s.log.Warn("volume salvaged by an operator's decision", "volume", s.id, "epoch", s.epoch, "replica", s.choice.From, "view", s.trace.Configuration, "newest", s.trace.Newest)
	return s.acceptRest()
}

func (s *salvage) acceptFirst(c quorum.Config) error {
	if s.chosen.doubtful {
		if err := s.source.Adopt(c); err != nil {
			return err
		}
	} else if err := s.source.Promise(s.epoch); err != nil {
		return err
	}
	_, failed := s.propose(&view{config: c, replicas: []*replica{s.source}}, c, s.openMark())
	return failed.err()
}

// acceptRest has the other replicas follow. A damaged record is given this one: whatever it had promised, a person has decided.
func (s *salvage) acceptRest() error {
	first := s.next
	first.Step = 1
	replicas := s.view.Load().replicas
	for _, r := range replicas[1:] {
		h := s.look.of(quorum.Voter{Store: r.dir.ID(), Incarnation: r.Superblock().Incarnation})
		if h == nil || !h.doubtful {
			continue
		}
		if err := r.Adopt(first); err != nil {
			r.Fail(err)
		}
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.view.Store(&view{config: s.next, replicas: replicas})
	return s.commit(s.next, true)
}

// head is the newest receipt of which all that came before is on the stores that are there; a chain that cannot be followed
// would keep the volume from ever being detached again.
func (s *salvage) head() [32]byte {
	all, _ := keptIn(s.id, dirsOf(s.look.peeks), s.log)
	for _, h := range [][32]byte{s.look.config.Head, s.chosen.record.Config.Head} {
		if _, err := chain(all, h, s.id); err == nil {
			return h
		}
	}
	return [32]byte{}
}

// bequeath gives every voter the receipts that the volume keeps.
func (s *salvage) bequeath() error {
	bequeath(s.id, s.next.Head, dirsOf(s.look.peeks), s.view.Load().voters(), s.log)
	return s.source.Failed()
}
