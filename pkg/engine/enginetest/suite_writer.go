package enginetest

import (
	"bytes"
	"context"
	"errors"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// writerTests are about one writer after the other, and what each leaves behind.
func writerTests() []test {
	return []test{
		{"NewVolumeReadsZeros", always, testReadsZeros},
		{"AttachIsIdempotent", always, testAttachIsIdempotent},
		{"DetachInOrder", always, testDetachInOrder},
		{"NothingBeforeItsTime", always, testNothingBeforeItsTime},
		{"BarrierStopsTheWriter", always, testBarrierStops},
		{"EvidenceAgrees", digests, testEvidenceAgrees},
		{"ReceiptsAreKeptInOrder", always, testReceiptsInOrder},
		{"OutdatedBarrierCannotSeal", always, testOutdatedBarrier},
		{"StageAgainInOneAttachment", always, testStageAgain},
		{"FenceSparesALivingWriter", always, testFenceSpares},
		{"FenceShutsTheWriterOut", always, testFenceShutsOut},
		{"FenceOfAnOldAttachment", always, testFenceOfOld},
		{"CancelledCallerCancelsNothing", always, testCancelled},
		{"CallerRestarts", always, testCallerRestarts},
		{"SealConcurrently", always, testSealConcurrently},
		{"ExpandOnline", growing, testExpandOnline},
		{"QuestionsWhileWriting", always, testQuestionsWhileWriting},
	}
}

func testReadsZeros(s *suite) {
	_, d, h := s.use()
	s.check(d.Blank, "a new volume is not blank")
	s.check(d.Size == s.Size && d.BlockSize == s.caps.BlockSizes[0] && d.Path != "" && d.Writer > 0, "device %+v", d)
	p := pattern(4, 1)
	for _, off := range []volume.Bytes{0, s.Size / 2, s.Size - 4*blockSize} {
		s.ok("read", h.ReadAt(p, int64(off)))
		s.check(bytes.Equal(p, make([]byte, len(p))), "a new volume does not read as zeros at %v", off)
	}
}

func testAttachIsIdempotent(s *suite) {
	a, d, h := s.use()
	again, err := s.Node.Attach(s.ctx, a)
	s.ok("Attach again", err)
	s.check(again.Path == d.Path && again.Writer == d.Writer, "attached %+v, again %+v", d, again)
	s.write(h, 0, 1, 1)
	got, err := s.Node.Attached(s.ctx, id)
	s.ok("Attached", err)
	s.check(got.Path == d.Path && got.Writer == d.Writer, "attached %+v, Attached says %+v", d, got)
	v := s.get()
	s.check(v.Staged && !v.Sealed && v.Writer == d.Writer, "attached volume %+v", v)
}

func testDetachInOrder(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 8, 1)
	s.write(h, s.Size-4*blockSize, 4, 2)
	b := s.leave(a, h, "receipt 1")
	s.check(b.Clean && b.Writer >= d.Writer && b.Size == s.Size && b.Replicas == s.Replicas, "barrier %+v", b)
	s.check(len(b.Unresolved) == 0 && len(b.Repairs) == 0 && len(b.Head) == 0, "barrier %+v", b)
	s.check(s.agree(b) == s.Replicas, "not every replica in sync: %+v", b.Evidence)
	v := s.get()
	s.check(v.Sealed && v.Attachment == nil && !v.Staged && v.State == engine.Healthy, "detached volume %+v", v)
	s.check(bytes.Equal(v.Head, hashOf("receipt 1")), "head %x is not the hash of the receipt", v.Head)
	_, err := s.Node.Attached(s.ctx, id)
	s.refused("Attached after Detach", err, engine.ErrNotFound)
	s.ok("Detach again", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish again", s.Control.Unpublish(s.ctx, a))
	d2, h := s.attach(s.publish())
	s.check(d2.Writer > d.Writer && !d2.Unclean && !d2.Blank, "device after a clean detach %+v", d2)
	s.holds(h, 0, 8, 1)
	s.holds(h, s.Size-4*blockSize, 4, 2)
}

func testNothingBeforeItsTime(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 1, 1)
	_, err := s.Control.Evidence(s.ctx, a, nil)
	s.refused("Evidence of a running writer", err, engine.ErrNotStopped)
	s.refused("Unpublish before the seal", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.refused("Detach before the seal", s.Node.Detach(s.ctx, a), engine.ErrNotSealed)
	s.write(h, 0, 1, 2)
	s.ok("close", h.Close())
	s.stop(a)
	s.refused("Unpublish before the seal", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.refused("Detach before the seal", s.Node.Detach(s.ctx, a), engine.ErrNotSealed)
	b := s.evidence(a)
	s.refused("Unpublish before the seal", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.receipts()
	s.seal(b, "receipt")
	s.receipts("receipt")
	s.ok("Seal again", s.Control.Seal(s.ctx, b, []byte("receipt")))
	s.refused("Seal with another receipt", s.Control.Seal(s.ctx, b, []byte("other")), engine.ErrStaleEpoch)
	s.receipts("receipt")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
}

func testBarrierStops(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 2, 1)
	s.stop(a)
	s.ok("Barrier again", s.Node.Barrier(s.ctx, a))
	s.check(h.WriteAt(pattern(2, 9), 0) != nil || h.Flush() != nil, "a write after the barrier was accepted")
	s.holds(h, 0, 2, 1)
	s.leave(a, h, "receipt")
	_, h = s.attach(s.publish())
	s.holds(h, 0, 2, 1)
}

func testEvidenceAgrees(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 4, 1)
	one := s.leave(a, h, "receipt 1")
	a = s.publish()
	_, h = s.attach(a)
	two := s.leave(a, h, "receipt 2")
	s.check(s.agree(one) == s.Replicas && s.agree(two) == s.Replicas, "replicas out of sync: %+v", two.Evidence)
	s.check(one.Evidence[0].Digest.Equal(two.Evidence[0].Digest), "the digest changed without a write: %v, %v", one.Evidence[0].Digest, two.Evidence[0].Digest)
	s.check(two.Writer > d.Writer, "writer %d after %d", two.Writer, d.Writer)
	a = s.publish()
	_, h = s.attach(a)
	s.write(h, blockSize, 1, 7)
	three := s.leave(a, h, "receipt 3")
	s.check(!two.Evidence[0].Digest.Equal(three.Evidence[0].Digest), "the digest did not change with a write: %v", three.Evidence[0].Digest)
}

func testReceiptsInOrder(s *suite) {
	s.create(id)
	var head []byte
	var want []string
	for _, receipt := range []string{"receipt 1", "receipt 2", "receipt 3"} {
		a := s.publish()
		_, h := s.attach(a)
		b := s.leave(a, h, receipt)
		s.check(bytes.Equal(b.Head, head), "barrier before %s names %x as head, want %x", receipt, b.Head, head)
		head = hashOf(receipt)
		want = append(want, receipt)
		s.receipts(want...)
	}
}

func testOutdatedBarrier(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 1, 1)
	s.ok("close", h.Close())
	s.stop(a)
	old := s.evidence(a)
	_, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "test"})
	s.ok("Fence", err)
	s.refused("Seal with an outdated barrier", s.Control.Seal(s.ctx, old, []byte("old")), engine.ErrStaleEpoch)
	s.receipts()
	b := s.evidence(a)
	s.check(b.Writer > old.Writer && b.Clean, "barrier after the fence %+v", b)
	s.refused("Seal with an outdated barrier", s.Control.Seal(s.ctx, old, []byte("old")), engine.ErrStaleEpoch)
	s.seal(b, "new")
	s.receipts("new")
}

func testStageAgain(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 1, 1)
	s.ok("close", h.Close())
	s.stop(a)
	old := s.evidence(a)
	s.seal(old, "receipt 1")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	d2, h := s.attach(a)
	s.check(d2.Writer > d.Writer, "writer %d after %d", d2.Writer, d.Writer)
	s.write(h, 0, 1, 2)
	s.check(!s.get().Sealed, "sealed with a writer")
	s.refused("Unpublish on the old receipt", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	s.refused("Seal with the old barrier", s.Control.Seal(s.ctx, old, []byte("receipt 1")), engine.ErrStaleEpoch)
	b := s.leave(a, h, "receipt 2")
	s.check(bytes.Equal(b.Head, hashOf("receipt 1")), "head %x", b.Head)
	s.receipts("receipt 1", "receipt 2")
}

func testFenceSpares(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 1, 1)
	_, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Reason: "test"})
	s.refused("Fence of a living writer", err, engine.ErrAttached)
	s.write(h, blockSize, 1, 2)
	b := s.leave(a, h, "receipt")
	s.check(b.Clean, "a refused fence made the detach unclean")
}

func testFenceShutsOut(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 4, 1)
	proof, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "test"})
	s.ok("Fence", err)
	s.check(proof.Epoch > d.Writer && len(proof.Witness) > s.Replicas/2, "proof %+v against writer %d", proof, d.Writer)
	again, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "test"})
	s.ok("Fence again", err)
	s.check(again.Epoch >= proof.Epoch, "fence at %d, then %d", proof.Epoch, again.Epoch)
	s.oldWriterIsShutOut(h)
	_, err = s.Node.Attach(s.ctx, a)
	s.check(err != nil, "a fenced attachment could attach again")
	b := s.evidence(a)
	s.check(!b.Clean, "a writer that never stopped is called clean")
	s.agree(b)
	s.seal(b, "receipt")
	s.oldWriterIsShutOut(h)
	_ = h.Close()
	s.ok("Detach of what is left", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	s.receipts("receipt")
	d2, h2 := s.attach(s.publish())
	s.check(d2.Writer > proof.Epoch && d2.Unclean, "device after a fence %+v", d2)
	s.holds(h2, 0, 4, 1)
}

// oldWriterIsShutOut: nothing that h writes is both accepted and made stable.
func (s *suite) oldWriterIsShutOut(h Handle) {
	s.Helper()
	s.check(h.WriteAt(pattern(4, 66), 0) != nil || h.Flush() != nil, "a fenced writer could write")
}

func testFenceOfOld(s *suite) {
	s.create(id)
	old := s.publish()
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, old))
	a := s.publish()
	_, h := s.attach(a)
	_, err := s.Control.Fence(s.ctx, old, engine.FenceOptions{Kill: true, Reason: "test"})
	s.refused("Fence of an old attachment", err, engine.ErrStaleEpoch)
	s.write(h, 0, 1, 1)
	s.check(s.leave(a, h, "receipt").Clean, "a fence of an old attachment made the new one unclean")
}

func testCancelled(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 256, 1)
	s.ok("close", h.Close())
	s.stop(a)
	ctx, cancel := context.WithCancel(s.ctx)
	_, err := s.Control.Evidence(ctx, a, func(engine.Progress) { cancel() })
	if err != nil && !errors.Is(err, context.Canceled) {
		s.Fatalf("Evidence whose caller left: %v", err)
	}
	cancel()
	gone, leave := context.WithCancel(s.ctx)
	leave()
	_, _ = s.Control.Evidence(gone, a, nil)
	b := s.evidence(a)
	s.check(b.Clean && s.agree(b) > 0, "barrier %+v", b)
	s.seal(b, "receipt")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
}

func testCallerRestarts(s *suite) {
	a, d, h := s.use()
	s.write(h, 0, 4, 1)
	_ = h.Close()
	s.Control, s.Node = s.Restart(s.T)
	v := s.get()
	s.check(v.Attachment != nil && *v.Attachment == a && v.Staged && !v.Sealed, "after a restart %+v", v)
	s.refused("Unpublish after a restart", s.Control.Unpublish(s.ctx, a), engine.ErrNotSealed)
	b := s.stopOrFence(a)
	s.seal(b, "receipt")
	s.Control, s.Node = s.Restart(s.T)
	s.receipts("receipt")
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	d2, h := s.attach(s.publish())
	s.check(d2.Writer > d.Writer, "writer %d after %d", d2.Writer, d.Writer)
	s.holds(h, 0, 4, 1)
}

// stopOrFence collects the evidence of a writer whose device may have been lost.
func (s *suite) stopOrFence(a volume.Attachment) engine.Barrier {
	s.Helper()
	_, err := s.Node.Attached(s.ctx, a.Volume)
	if err == nil {
		s.stop(a)
		return s.evidence(a)
	}
	s.refused("Attached", err, engine.ErrDeviceLost, engine.ErrNotFound)
	_, err = s.Control.Fence(s.ctx, a, engine.FenceOptions{Reason: "device lost"})
	s.ok("Fence of a dead writer", err)
	return s.evidence(a)
}

func testSealConcurrently(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 64, 1)
	s.ok("close", h.Close())
	s.ok("Barrier at once", together(4, func(int) error { return s.Node.Barrier(s.ctx, a) }))
	s.ok("Evidence at once", together(4, func(int) error {
		_, err := s.Control.Evidence(s.ctx, a, nil)
		return err
	}))
	b := s.evidence(a)
	s.ok("Seal at once", together(4, func(int) error { return s.Control.Seal(s.ctx, b, []byte("receipt")) }))
	s.receipts("receipt")
	s.ok("Detach at once", together(4, func(int) error { return s.Node.Detach(s.ctx, a) }))
	s.ok("Unpublish at once", together(4, func(int) error { return s.Control.Unpublish(s.ctx, a) }))
}

func testExpandOnline(s *suite) {
	a, _, h := s.use()
	s.write(h, 0, 1, 1)
	_, err := s.Control.Expand(s.ctx, id, 2*s.Size)
	s.ok("Expand", err)
	s.ok("Resize", s.Node.Resize(s.ctx, a))
	d, err := s.Node.Attached(s.ctx, id)
	s.ok("Attached", err)
	s.check(d.Size == 2*s.Size, "the device has %v, want %v", d.Size, 2*s.Size)
	s.ok("close", h.Close())
	h = s.Open(s.T, d)
	s.Cleanup(func() { _ = h.Close() })
	s.write(h, 2*s.Size-blockSize, 1, 3)
	b := s.leave(a, h, "receipt")
	s.check(b.Size == 2*s.Size, "the barrier speaks of %v", b.Size)
	_, h = s.attach(s.publish())
	s.holds(h, 0, 1, 1)
	s.holds(h, 2*s.Size-blockSize, 1, 3)
}

func testQuestionsWhileWriting(s *suite) {
	a, _, h := s.use()
	s.ok("at once", together(6, func(i int) error {
		for n := range 8 {
			if err := s.disturb(h, i, n); err != nil {
				return err
			}
		}
		return nil
	}))
	s.leave(a, h, "receipt")
}

func (s *suite) disturb(h Handle, who, n int) (err error) {
	switch who {
	case 0:
		_, err = s.Control.Get(s.ctx, id)
	case 1:
		_, err = s.Control.List(s.ctx)
	case 2:
		_, err = s.Control.Receipts(s.ctx, id)
	case 3:
		_, err = s.Node.Attached(s.ctx, id)
	default:
		off := int64(who*8+n) * blockSize
		if err = h.WriteAt(pattern(1, byte(n)), off); err == nil {
			err = h.Flush()
		}
	}
	return err
}

// aligned returns n zero bytes, aligned in memory as direct I/O wants them.
func aligned(n int) []byte { return vfs.AlignedBuffer(n) }
