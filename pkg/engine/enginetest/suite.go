package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// testTimeout bounds one subtest: an engine that waits where it should refuse fails instead of hanging.
const testTimeout = 2 * time.Minute

// id is the volume of most tests.
const id volume.ID = "suite-volume"

// needs says of what an engine must be capable for a test to be about it. Nothing else leaves a test out.
type needs func(h *Harness, c engine.Capabilities) bool

func always(*Harness, engine.Capabilities) bool { return true }

func redundancy(h *Harness, _ engine.Capabilities) bool { return h.Replicas >= 3 }

func repair(h *Harness, c engine.Capabilities) bool { return redundancy(h, c) && c.Repair }

func digests(_ *Harness, c engine.Capabilities) bool { return c.Digest != engine.AttestNone }

func nodes(h *Harness, c engine.Capabilities) bool { return h.Elsewhere != "" && !c.NodeLocal }

func salvage(h *Harness, c engine.Capabilities) bool { return redundancy(h, c) && c.Salvage }

func growing(_ *Harness, c engine.Capabilities) bool { return c.OnlineExpand }

// test is one subtest.
type test struct {
	name  string
	needs needs
	run   func(*suite)
}

// Suite runs every test of the contract; fresh makes a new, empty engine for each.
func Suite(t *testing.T, fresh func(t *testing.T) *Harness) {
	tests := slices.Concat(lifeTests(), writerTests(), faultTests(), salvageTests())
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			h := fresh(t)
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			caps, err := h.Control.Capabilities(ctx, h.Parameters)
			if err != nil {
				t.Fatalf("Capabilities: %v", err)
			}
			if c.needs(h, caps) {
				c.run(&suite{T: t, Harness: h, ctx: ctx, caps: caps})
			}
		})
	}
}

// suite is one running subtest.
type suite struct {
	*testing.T
	*Harness
	ctx  context.Context
	caps engine.Capabilities
}

func (s *suite) ok(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// refused wants an error of one of the classes.
func (s *suite) refused(what string, err error, classes ...error) {
	s.Helper()
	for _, c := range classes {
		if errors.Is(err, c) {
			return
		}
	}
	s.Fatalf("%s: got %v, want one of %q", what, err, classes)
}

func (s *suite) check(holds bool, format string, args ...any) {
	s.Helper()
	if !holds {
		s.Fatalf(format, args...)
	}
}

func (s *suite) spec(id volume.ID) engine.Spec {
	return engine.Spec{ID: id, Name: "the " + string(id), Size: s.Size, Parameters: s.Parameters}
}

func (s *suite) create(id volume.ID) engine.Volume {
	s.Helper()
	v, err := s.Control.Create(s.ctx, s.spec(id))
	s.ok("Create", err)
	return v
}

func (s *suite) get() engine.Volume {
	s.Helper()
	v, err := s.Control.Get(s.ctx, id)
	s.ok("Get", err)
	return v
}

func (s *suite) publish() volume.Attachment {
	s.Helper()
	a, err := s.Control.Publish(s.ctx, id, s.NodeID, engine.PublishOptions{Mode: "SINGLE_NODE_WRITER"})
	s.ok("Publish", err)
	s.check(a.Volume == id && a.Node == s.NodeID && a.Epoch > 0, "Publish returned %v", a)
	return a
}

func (s *suite) attach(a volume.Attachment) (engine.Device, Handle) {
	s.Helper()
	d, err := s.Node.Attach(s.ctx, a)
	s.ok("Attach", err)
	h := s.Open(s.T, d)
	s.Cleanup(func() { _ = h.Close() })
	return d, h
}

// use creates, publishes and attaches the volume.
func (s *suite) use() (volume.Attachment, engine.Device, Handle) {
	s.Helper()
	s.create(id)
	a := s.publish()
	d, h := s.attach(a)
	return a, d, h
}

// write writes blocks filled from seed at off and flushes.
func (s *suite) write(h Handle, off volume.Bytes, blocks int, seed byte) {
	s.Helper()
	s.ok("write", h.WriteAt(pattern(blocks, seed), int64(off)))
	s.ok("flush", h.Flush())
}

func (s *suite) holds(h Handle, off volume.Bytes, blocks int, seed byte) {
	s.Helper()
	p := aligned(blocks * blockSize)
	s.ok("read", h.ReadAt(p, int64(off)))
	s.check(bytes.Equal(p, pattern(blocks, seed)), "at %d: not what was written with seed %d", int64(off), seed)
}

func (s *suite) stop(a volume.Attachment) {
	s.Helper()
	s.ok("Barrier", s.Node.Barrier(s.ctx, a))
}

func (s *suite) evidence(a volume.Attachment) engine.Barrier {
	s.Helper()
	b, err := s.Control.Evidence(s.ctx, a, nil)
	s.ok("Evidence", err)
	s.check(b.Attachment == a, "Evidence is for %v, asked for %v", b.Attachment, a)
	s.check(b.View != "", "Evidence without a view")
	return b
}

func (s *suite) seal(b engine.Barrier, receipt string) {
	s.Helper()
	s.ok("Seal", s.Control.Seal(s.ctx, b, []byte(receipt)))
}

// leave detaches in order, with the receipt.
func (s *suite) leave(a volume.Attachment, h Handle, receipt string) engine.Barrier {
	s.Helper()
	s.ok("close", h.Close())
	s.stop(a)
	b := s.evidence(a)
	s.seal(b, receipt)
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	return b
}

func (s *suite) receipts(want ...string) {
	s.Helper()
	got, err := s.Control.Receipts(s.ctx, id)
	s.ok("Receipts", err)
	s.check(len(got) == len(want), "%d receipts in force, want %d", len(got), len(want))
	for i := range want {
		s.check(string(got[i]) == want[i], "receipt %d is %q, want %q", i, got[i], want[i])
	}
}

// agree checks that every replica in sync confirms one content, and returns how many do.
func (s *suite) agree(b engine.Barrier) (insync int) {
	s.Helper()
	var first *engine.Evidence
	for i, e := range b.Evidence {
		if e.State != engine.InSync {
			continue
		}
		insync++
		s.check(e.Error == "" && e.Durable, "replica %s in sync: durable=%t, error %q", e.ID, e.Durable, e.Error)
		if s.caps.Digest == engine.AttestNone {
			continue
		}
		s.check(e.DigestBy != engine.AttestNone, "replica %s: nobody attests its digest", e.ID)
		if first == nil {
			first = &b.Evidence[i]
		}
		s.check(e.Digest.Equal(first.Digest), "replicas %s and %s: %v and %v", first.ID, e.ID, first.Digest, e.Digest)
	}
	if first != nil && b.Expected.Algorithm != "" {
		s.check(first.Digest.Equal(b.Expected), "replicas hold %v, the engine expects %v", first.Digest, b.Expected)
	}
	return insync
}

// pattern is content that differs from block to block and from seed to seed.
func pattern(blocks int, seed byte) []byte {
	p := aligned(blocks * blockSize)
	for i := range blocks {
		sum := sha256.Sum256(fmt.Appendf(nil, "%d/%d", seed, i))
		copy(p[i*blockSize:], bytes.Repeat(sum[:], blockSize/len(sum)))
	}
	return p
}

func hashOf(receipt string) []byte {
	sum := sha256.Sum256([]byte(receipt))
	return sum[:]
}
