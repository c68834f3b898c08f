package enginetest

import (
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// salvageTests are about volumes that the rules do not bring up.
func salvageTests() []test {
	return []test{
		{"SalvageIsNotNeeded", salvage, testSalvageNotNeeded},
		{"SalvageFromAStaleReplica", salvage, testSalvageStale},
		{"SalvageIsPendingUntilSealed", salvage, testSalvagePending},
		{"SalvageOfAQuarantinedVolume", salvage, testSalvageQuarantined},
	}
}

func (s *suite) plan(read bool) engine.SalvagePlan {
	s.Helper()
	p, err := s.Control.SalvagePlan(s.ctx, id, read, nil)
	s.ok("SalvagePlan", err)
	s.check(p.Volume == id && p.Because != "", "plan %+v", p)
	return p
}

func (s *suite) trySalvage(from engine.ReplicaID) (engine.Barrier, error) {
	return s.Control.Salvage(s.ctx, id, engine.SalvageOrder{From: from, Reason: "test"}, nil)
}

func (s *suite) salvage(from engine.ReplicaID) engine.Barrier {
	s.Helper()
	b, err := s.trySalvage(from)
	s.ok("Salvage", err)
	s.check(!b.Clean && b.Salvaged != nil && b.Salvaged.From == from && b.Attachment.Epoch > 0 && b.Writer >= b.Attachment.Epoch, "barrier of a salvage %+v", b)
	return b
}

// testSalvageNotNeeded: where the rules suffice there is nothing to choose, whether the volume is in use or not.
func testSalvageNotNeeded(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 2, 1)
	from := s.get().Replicas[0].ID
	p := s.plan(false)
	s.check(p.Outlook == engine.OutlookInUse && len(p.Choices) == 0, "plan of an attached volume %+v", p)
	_, err := s.trySalvage(from)
	s.refused("Salvage of an attached volume", err, engine.ErrAttached)
	s.leave(a, h, "receipt")
	p = s.plan(true)
	s.check(p.Outlook == engine.OutlookComesUp && len(p.Choices) == 0 && p.Certain && len(p.Copies) == s.Replicas, "plan of a healthy volume %+v", p)
	for _, c := range p.Copies {
		s.check(c.Member && c.Admitted && c.Readable && c.AsReceipt && c.Wrong == 0 && c.DiffersBlocks == 0, "copy of a healthy volume %+v", c)
	}
	_, err = s.trySalvage(from)
	s.refused("Salvage of a healthy volume", err, engine.ErrNotNeeded)
	_, h = s.attach(s.publish())
	s.holds(h, 0, 2, 1)
}

// stale is a volume whose last writes its first replica alone has not got; the others are gone.
func (s *suite) stale() (from engine.ReplicaID, others []engine.ReplicaID, a volume.Attachment) {
	s.Helper()
	a, _, h := s.use()
	s.write(h, 0, 4, 1)
	for _, r := range s.get().Replicas {
		others = append(others, r.ID)
	}
	from, others = others[0], others[1:]
	s.leave(a, h, "receipt 1")
	s.Down(s.T, from)
	a = s.publish()
	_, h = s.attach(a)
	s.write(h, blockSize, 2, 2)
	s.leave(a, h, "receipt 2")
	a = s.publish()
	for _, r := range others {
		s.Down(s.T, r)
	}
	s.Up(s.T, from)
	return from, others, a
}

func (s *suite) up(replicas []engine.ReplicaID) {
	for _, r := range replicas {
		s.Up(s.T, r)
	}
}

// testSalvageStale: the chosen replica is what the volume is; those that come back are not, beside it or without it.
func testSalvageStale(s *suite) {
	from, others, _ := s.stale()
	p := s.plan(false)
	s.check(p.Outlook == engine.OutlookWaits && !p.Certain && len(p.WaitsFor) == len(others) && len(p.Choices) == 1 && p.Choices[0].From == from, "plan %+v", p)
	_, err := s.trySalvage(others[0])
	s.refused("Salvage from a replica that is gone", err, engine.ErrInvalid, engine.ErrUnavailable)
	_, err = s.Control.Salvage(s.ctx, id, engine.SalvageOrder{From: from}, nil)
	s.refused("Salvage without a reason", err, engine.ErrInvalid)
	b := s.salvage(from)
	s.seal(b, "forced")
	s.receipts("receipt 1", "forced")
	s.reads("after 1")
	s.up(others)
	s.reads("after 2")
	s.Down(s.T, from)
	s.unavailable()
	s.Control, s.Node = s.Restart(s.T)
	s.unavailable()
	s.check(s.plan(false).Outlook == engine.OutlookWaits, "the older truth alone: %+v", s.plan(false))
	s.Up(s.T, from)
	s.reads("after 3")
}

// reads attaches, wants what the first replica had, and detaches with the receipt.
func (s *suite) reads(receipt string) {
	s.Helper()
	var a volume.Attachment
	if v := s.get(); v.Attachment != nil {
		a = *v.Attachment
	} else {
		a = s.publish()
	}
	d, h := s.attach(a)
	s.check(d.Writer > 0, "device %+v", d)
	s.holds(h, 0, 4, 1)
	s.ok("close", h.Close())
	s.stop(a)
	b := s.evidence(a)
	raws, err := s.Control.Receipts(s.ctx, id)
	s.ok("Receipts", err)
	s.check(d.Unclean == (string(raws[len(raws)-1]) == "forced"), "device after %q %+v", raws[len(raws)-1], d)
	s.seal(b, receipt)
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
}

// testSalvagePending: cut short, it keeps the volume from being used, and the same order again finishes it, with all that was told.
func testSalvagePending(s *suite) {
	from, _, a := s.stale()
	first := s.salvage(from)
	s.Control, s.Node = s.Restart(s.T)
	v := s.get()
	s.check(v.State == engine.Quarantined && v.Reason != "", "a volume whose salvage is not finished %+v", v)
	_, err := s.Node.Attach(s.ctx, a)
	s.refused("Attach before the salvage is sealed", err, engine.ErrQuarantined, engine.ErrDeviceLost, engine.ErrBusy, engine.ErrStaleEpoch)
	p := s.plan(false)
	s.check(p.Outlook == engine.OutlookStuck && p.Pending && p.Salvaged.From == from && len(p.Choices) == 1, "plan %+v", p)
	b := s.salvage(from)
	s.check(b.Salvaged.Configuration == first.Salvaged.Configuration && b.Salvaged.Newest == first.Salvaged.Newest && b.Salvaged.Replicas == first.Salvaged.Replicas,
		"the trace was %+v, is %+v", first.Salvaged, b.Salvaged)
	s.refused("Seal of the first", s.Control.Seal(s.ctx, first, []byte("first")), engine.ErrStaleEpoch)
	s.seal(b, "forced")
	s.receipts("receipt 1", "forced")
	s.reads("after")
}

// testSalvageQuarantined: a person decides for a replica whose block is as wrong as the others'; the volume can be used again, and detached.
func testSalvageQuarantined(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 8, 1)
	const off = 2*blockSize + 5
	replicas := s.get().Replicas
	for i, r := range replicas {
		s.Damage(s.T, id, r.ID, off, byte(1)<<i)
	}
	_ = h.Close()
	s.stop(a)
	b := s.evidence(a)
	s.ok("Quarantine", s.Control.Quarantine(s.ctx, a, b))
	s.forced(a)
	p := s.plan(true)
	s.check(p.Outlook == engine.OutlookStuck && len(p.Choices) == s.Replicas, "plan %+v", p)
	for _, c := range p.Copies {
		s.check(c.Wrong == 1 && c.Readable, "copy %+v", c)
	}
	b = s.salvage(replicas[1].ID)
	s.check(len(b.Unresolved) == 1 && covers(b.Unresolved[0], off), "barrier %+v", b)
	s.seal(b, "salvaged")
	s.receipts("forced", "salvaged")
	a = s.publish()
	d, h := s.attach(a)
	s.check(d.Unclean, "device after a salvage %+v", d)
	s.holds(h, 0, 2, 1)
	want, got := pattern(8, 1), aligned(8*blockSize)
	want[off] ^= 1 << 1
	s.ok("read", h.ReadAt(got, 0))
	s.check(string(got) == string(want), "the block is not what the chosen replica held")
	b = s.leave(a, h, "receipt")
	s.check(len(b.Unresolved) == 0, "barrier after a salvage %+v", b)
}
