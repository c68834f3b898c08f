package enginetest

import (
	"errors"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// faultTests are about processes that die, replicas that go, and blocks that rot.
func faultTests() []test {
	return []test{
		{"WriterKilled", always, testWriterKilled},
		{"WriterKilledThenFenced", always, testWriterKilledThenFenced},
		{"QuorumGoneWhileDetached", redundancy, testQuorumGoneDetached},
		{"QuorumGoneAtTheBarrier", redundancy, testQuorumGoneBarrier},
		{"ReplicaGoneWhileAttached", redundancy, testReplicaGone},
		{"StaleReplicaIsNotBelieved", redundancy, testStaleReplica},
		{"DamagedReplicaIsMended", repair, testDamageMended},
		{"OldDamageIsFoundByVerify", repair, testOldDamage},
		{"NoCopyCanWin", repair, testNoCopyCanWin},
	}
}

func testWriterKilled(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 4, 1)
	s.Kill(s.T, id)
	_, err := s.Node.Attached(s.ctx, id)
	if err == nil { // the engine was started anew behind the device
		s.write(h, blockSize, 1, 2)
		s.leave(a, h, "receipt")
		return
	}
	s.refused("Attached after the writer died", err, engine.ErrDeviceLost)
	s.refused("Barrier after the writer died", s.Node.Barrier(s.ctx, a), engine.ErrDeviceLost)
	_, err = s.Node.Attach(s.ctx, a)
	s.refused("Attach over a lost device", err, engine.ErrDeviceLost)
	s.refused("Unpublish after the writer died", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.check(h.WriteAt(pattern(1, 9), 0) != nil || h.Flush() != nil, "a dead writer could write")
	_ = h.Close()
	s.ok("Detach of a lost device", s.Node.Detach(s.ctx, a))
	s.refused("Unpublish without a receipt", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	d2, h := s.attach(a)
	s.check(d2.Writer > d.Writer && d2.Unclean, "device after the writer died %+v", d2)
	s.holds(h, 0, 4, 1)
	s.leave(a, h, "receipt")
}

func testWriterKilledThenFenced(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 4, 1)
	s.Kill(s.T, id)
	_ = h.Close()
	b := s.stopOrFence(a)
	s.agree(b)
	s.seal(b, "receipt")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	_, h = s.attach(s.publish())
	s.holds(h, 0, 4, 1)
}

// most takes a majority of the volume's replicas away, and returns how to bring them back.
func (s *suite) most() (back func()) {
	s.Helper()
	var gone []engine.ReplicaID
	for _, r := range s.get().Replicas[:s.Replicas/2+1] {
		s.Down(s.T, r.ID)
		gone = append(gone, r.ID)
	}
	return func() {
		for _, r := range gone {
			s.Up(s.T, r)
		}
	}
}

// unavailable: whatever Get can still say, it says that the volume cannot be used.
func (s *suite) unavailable() {
	s.Helper()
	v, err := s.Control.Get(s.ctx, id)
	if err != nil {
		s.refused("Get without a quorum", err, engine.ErrUnavailable)
		return
	}
	s.check(v.State == engine.Unavailable && v.Reason != "", "without a quorum the volume is %s (%s)", v.State, v.Reason)
}

func testQuorumGoneDetached(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 2, 1)
	s.leave(a, h, "receipt")
	a = s.publish()
	before := s.get()
	back := s.most()
	s.unavailable()
	_, err := s.Node.Attach(s.ctx, a)
	s.refused("Attach without a quorum", err, engine.ErrUnavailable)
	s.refused("Unpublish without a quorum", s.Control.Unpublish(s.ctx, a), engine.ErrUnavailable)
	_, err = s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "test"})
	s.refused("Fence without a quorum", err, engine.ErrUnavailable)
	s.refused("Delete without a quorum", s.Control.Delete(s.ctx, id), engine.ErrUnavailable, engine.ErrAttached)
	back()
	after := s.get()
	s.check(after.State != engine.Unavailable && after.Attachment != nil && *after.Attachment == a && after.Sealed == before.Sealed,
		"before %+v, after %+v", before, after)
	s.receipts("receipt")
	_, h = s.attach(a)
	s.holds(h, 0, 2, 1)
}

func testQuorumGoneBarrier(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 8, 1)
	s.ok("close", h.Close())
	s.stop(a)
	early := s.evidence(a)
	back := s.most()
	_, err := s.Control.Evidence(s.ctx, a, nil)
	s.refused("Evidence without a quorum", err, engine.ErrUnavailable)
	s.refused("Seal without a quorum", s.Control.Seal(s.ctx, early, []byte("receipt")), engine.ErrUnavailable, engine.ErrStaleEpoch)
	s.refused("Unpublish without a quorum", s.Control.Unpublish(s.ctx, a), engine.ErrUnavailable)
	back()
	b := s.stopOrFence(a)
	s.check(s.agree(b) > s.Replicas/2, "evidence after the replicas came back %+v", b.Evidence)
	s.seal(b, "receipt")
	s.receipts("receipt")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	_, h = s.attach(s.publish())
	s.holds(h, 0, 8, 1)
}

func testReplicaGone(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 2, 1)
	gone := s.get().Replicas[0].ID
	s.Down(s.T, gone)
	s.write(h, 2*blockSize, 2, 2)
	v := s.get()
	s.check(v.State == engine.Degraded && v.Reason != "" && standing(v.Replicas, gone) != engine.InSync, "with a replica gone %+v", v)
	b := s.leave(a, h, "receipt")
	s.check(s.agree(b) == s.Replicas-1 && b.Replicas == s.Replicas && b.Clean, "evidence with a replica gone %+v", b)
	for _, e := range b.Evidence {
		s.check(e.ID != gone || e.State != engine.InSync, "a replica that is gone attests: %+v", e)
	}
	s.Up(s.T, gone)
	_, h = s.attach(s.publish())
	s.ok("Rebuild", s.Control.Rebuild(s.ctx, id, nil))
	v = s.get()
	s.check(v.State == engine.Healthy && standing(v.Replicas, gone) == engine.InSync, "after the rebuild %+v", v)
	s.holds(h, 0, 2, 1)
	s.holds(h, 2*blockSize, 2, 2)
	b = s.leave(*v.Attachment, h, "receipt 2")
	s.check(s.agree(b) == s.Replicas, "evidence after the rebuild %+v", b.Evidence)
}

func standing(replicas []engine.Replica, id engine.ReplicaID) engine.ReplicaState {
	for _, r := range replicas {
		if r.ID == id {
			return r.State
		}
	}
	return ""
}

// testStaleReplica: the replica that missed writes comes back alone beside one that has them; what they agree on is the newest.
func testStaleReplica(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 4, 1)
	replicas := s.get().Replicas
	s.Down(s.T, replicas[0].ID)
	s.write(h, 0, 4, 2)
	s.leave(a, h, "receipt")
	for _, r := range replicas[2:] {
		s.Down(s.T, r.ID)
	}
	s.Up(s.T, replicas[0].ID)
	if 2 <= s.Replicas/2 { // two are no majority: nothing may be shown at all
		s.unavailable()
		for _, r := range replicas[2:] {
			s.Up(s.T, r.ID)
		}
	}
	_, h = s.attach(s.publish())
	s.holds(h, 0, 4, 2)
	s.receipts("receipt")
}

func testDamageMended(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 8, 1)
	bad := s.get().Replicas[0].ID
	const off = 3*blockSize + 17
	s.Damage(s.T, id, bad, off, 0x10)
	b := s.leave(a, h, "receipt")
	s.check(len(b.Unresolved) == 0 && s.agree(b) == s.Replicas && b.Verified > 0, "barrier over a damaged block %+v", b)
	s.check(len(b.Repairs) > 0, "a damaged block was not told")
	for _, r := range b.Repairs {
		s.check(r.Replica == bad && r.From != bad && r.From != "" && covers(r.Finding, off) && r.Cause != "", "repair %+v", r)
	}
	v, err := s.Control.Verify(s.ctx, id, nil)
	s.ok("Verify", err)
	s.check(v.Good() && len(v.Repairs) == 0, "verification after the repair %+v", v)
	_, h = s.attach(s.publish())
	s.holds(h, 0, 8, 1)
}

func covers(f engine.Finding, off volume.Bytes) bool {
	return f.Offset <= off && off < f.Offset+f.Length
}

func testOldDamage(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 8, 1)
	s.leave(a, h, "receipt")
	bad := s.get().Replicas[s.Replicas-1].ID
	const off = 5 * blockSize
	s.Damage(s.T, id, bad, off, 0x01)
	v, err := s.Control.Verify(s.ctx, id, nil)
	s.ok("Verify", err)
	s.check(v.Volume == id && v.Read > 0 && v.Sealed && len(v.Unresolved) == 0, "verification %+v", v)
	s.check(told(v, bad, off), "damage in %s at %d was not told: %+v", bad, off, v)
	a = s.publish()
	_, h = s.attach(a)
	_, err = s.Control.Verify(s.ctx, id, nil)
	s.ok("Verify while attached", err)
	s.holds(h, 0, 8, 1)
	s.leave(a, h, "receipt 2")
	v, err = s.Control.Verify(s.ctx, id, nil)
	s.ok("Verify", err)
	s.check(v.Good() && len(v.Repairs) == 0, "damage was not mended: %+v", v)
}

func told(v engine.Verification, bad engine.ReplicaID, off volume.Bytes) bool {
	for _, r := range v.Repairs {
		v.Findings = append(v.Findings, r.Finding)
	}
	for _, f := range v.Findings {
		if f.Replica == bad && covers(f, off) && f.Cause != "" {
			return true
		}
	}
	return false
}

func testNoCopyCanWin(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 8, 1)
	const off = 2*blockSize + 5
	for i, r := range s.get().Replicas {
		s.Damage(s.T, id, r.ID, off, byte(1)<<i)
	}
	_ = h.Close()
	s.stop(a)
	b := s.evidence(a)
	s.check(len(b.Unresolved) > 0 && covers(b.Unresolved[0], off) && b.Unresolved[0].Cause != "", "barrier %+v", b)
	s.ok("Quarantine", s.Control.Quarantine(s.ctx, a, b))
	s.ok("Quarantine again", s.Control.Quarantine(s.ctx, a, b))
	v := s.get()
	s.check(v.State == engine.Quarantined && v.Reason != "", "state %s (%s)", v.State, v.Reason)
	s.refused("Unpublish of a quarantined volume", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.forced(a)
	_, err := s.Control.Publish(s.ctx, id, s.NodeID, engine.PublishOptions{})
	s.refused("Publish of a quarantined volume", err, engine.ErrQuarantined)
}

// forced lets go of a quarantined volume as an operator's override does.
func (s *suite) forced(a volume.Attachment) {
	s.Helper()
	_, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "override"})
	s.ok("Fence of a quarantined volume", err)
	b, err := s.Control.Evidence(s.ctx, a, nil)
	if errors.Is(err, engine.ErrQuarantined) {
		s.Fatalf("a quarantined volume gives no evidence, so that no override can let go of it: %v", err)
	}
	s.ok("Evidence", err)
	s.check(len(b.Unresolved) > 0, "unresolved ranges vanished: %+v", b)
	s.seal(b, "forced")
	s.receipts("forced")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
}
