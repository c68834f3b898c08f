package enginetest

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// lifeTests are about volumes and publications; no device is involved.
func lifeTests() []test {
	return []test{
		{"Capabilities", always, testCapabilities},
		{"Capacity", always, testCapacity},
		{"CreateIsIdempotent", always, testCreateIsIdempotent},
		{"CreateRefuses", always, testCreateRefuses},
		{"CreateConcurrently", always, testCreateConcurrently},
		{"UnknownVolume", always, testUnknownVolume},
		{"ListIsOrdered", always, testListIsOrdered},
		{"DeleteIsIdempotent", always, testDeleteIsIdempotent},
		{"DeleteRefusesWhileAttached", always, testDeleteRefuses},
		{"PublishIsIdempotent", always, testPublishIsIdempotent},
		{"PublishElsewhereWhileOpen", nodes, testPublishElsewhere},
		{"PublishConcurrently", always, testPublishConcurrently},
		{"EpochsGrow", always, testEpochsGrow},
		{"UnpublishNeverStaged", always, testUnpublishNeverStaged},
		{"ExpandNeverShrinks", always, testExpand},
		{"FormatNeverGoesBack", always, testFormat},
		{"UncleanPutsInDoubt", always, testDoubt},
		{"Unsupported", always, testUnsupported},
	}
}

func testCapabilities(s *suite) {
	_, err := s.Control.Capabilities(s.ctx, map[string]string{"no-such-parameter": "1"})
	s.refused("Capabilities with an unknown parameter", err, engine.ErrInvalid)
	s.check(s.caps.ReplicasMax >= s.Replicas, "%d replicas at most, the harness makes %d", s.caps.ReplicasMax, s.Replicas)
	s.check(len(s.caps.BlockSizes) > 0 && s.caps.BlockSizes[0] > 0, "block sizes %v", s.caps.BlockSizes)
	s.check(s.caps.Fence != engine.FenceNone, "an engine that cannot fence cannot keep the promise")
}

func testCapacity(s *suite) {
	c, err := s.Control.Capacity(s.ctx, s.Parameters)
	s.ok("Capacity", err)
	s.check(c.Available >= s.Size, "%v available, volumes of %v are wanted", c.Available, s.Size)
	s.check(c.Smallest > 0 && c.Smallest <= c.Largest && c.Largest <= c.Available, "capacity %+v", c)
	_, err = s.Control.Capacity(s.ctx, map[string]string{"no-such-parameter": "1"})
	s.refused("Capacity with an unknown parameter", err, engine.ErrInvalid)
}

func testCreateIsIdempotent(s *suite) {
	first := s.create(id)
	s.check(first.ID == id && first.Name == s.spec(id).Name && first.Size == s.Size, "created %+v", first.Spec)
	s.check(first.Attachment == nil && first.State == engine.Healthy && len(first.Replicas) == s.Replicas, "new volume %+v", first)
	s.check(first.Format == engine.Format{}, "new volume has format %+v", first.Format)
	again := s.create(id)
	s.check(reflect.DeepEqual(first.Spec, again.Spec), "created %+v, then %+v", first.Spec, again.Spec)
	other := s.spec(id)
	other.Size *= 2
	_, err := s.Control.Create(s.ctx, other)
	s.refused("Create with another size", err, engine.ErrExists)
	other = s.spec(id)
	other.Name += "!"
	_, err = s.Control.Create(s.ctx, other)
	s.refused("Create with another name", err, engine.ErrExists)
	s.check(s.get().Size == s.Size, "a refused Create changed the volume")
}

func testCreateRefuses(s *suite) {
	capacity, err := s.Control.Capacity(s.ctx, s.Parameters)
	s.ok("Capacity", err)
	cases := []struct {
		name    string
		change  func(*engine.Spec)
		classes []error
	}{
		{"unknown parameter", func(c *engine.Spec) { c.Parameters = map[string]string{"no-such-parameter": "1"} }, []error{engine.ErrInvalid}},
		{"no size", func(c *engine.Spec) { c.Size = 0 }, []error{engine.ErrOutOfRange, engine.ErrInvalid}},
		{"negative size", func(c *engine.Spec) { c.Size = -s.Size }, []error{engine.ErrOutOfRange, engine.ErrInvalid}},
		{"absurd size", func(c *engine.Spec) { c.Size = 1 << 62 }, []error{engine.ErrOutOfRange}},
		{"more than there is", func(c *engine.Spec) { c.Size = (capacity.Largest + 1).RoundUp(4 * volume.MiB) }, []error{engine.ErrOutOfRange, engine.ErrNoSpace}},
		{"path as ID", func(c *engine.Spec) { c.ID = "../escape" }, []error{engine.ErrInvalid, volume.ErrInvalid}},
		{"long ID", func(c *engine.Spec) { c.ID = volume.ID(strings.Repeat("a", 64)) }, []error{engine.ErrInvalid, volume.ErrInvalid}},
	}
	for _, c := range cases {
		spec := s.spec(id)
		c.change(&spec)
		_, err := s.Control.Create(s.ctx, spec)
		s.refused("Create with "+c.name, err, c.classes...)
	}
	all, err := s.Control.List(s.ctx)
	s.ok("List", err)
	s.check(len(all) == 0, "refused Creates left %d volumes behind", len(all))
	_, err = s.Control.Get(s.ctx, id)
	s.refused("Get", err, engine.ErrNotFound)
}

// together runs f n times at once and returns the errors.
func together(n int, f func(int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func testCreateConcurrently(s *suite) {
	s.ok("Create at once", together(8, func(int) error {
		_, err := s.Control.Create(s.ctx, s.spec(id))
		if errors.Is(err, engine.ErrBusy) {
			err = nil // refused for now; the caller comes again
		}
		return err
	}))
	s.create(id)
	all, err := s.Control.List(s.ctx)
	s.ok("List", err)
	s.check(len(all) == 1, "%d volumes", len(all))
}

func testUnknownVolume(s *suite) {
	_, err := s.Control.Get(s.ctx, id)
	s.refused("Get", err, engine.ErrNotFound)
	_, err = s.Control.Publish(s.ctx, id, s.NodeID, engine.PublishOptions{})
	s.refused("Publish", err, engine.ErrNotFound)
	_, err = s.Control.Expand(s.ctx, id, s.Size)
	s.refused("Expand", err, engine.ErrNotFound)
	_, err = s.Control.Receipts(s.ctx, id)
	s.refused("Receipts", err, engine.ErrNotFound)
	_, err = s.Node.Attached(s.ctx, id)
	s.refused("Attached", err, engine.ErrNotFound)
	s.ok("Delete", s.Control.Delete(s.ctx, id))
	a := volume.Attachment{Volume: id, Node: s.NodeID, Epoch: 1}
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	s.ok("Detach", s.Node.Detach(s.ctx, a))
	_, err = s.Node.Attach(s.ctx, a)
	s.refused("Attach", err, engine.ErrNotFound, engine.ErrStaleEpoch)
}

func testListIsOrdered(s *suite) {
	for _, id := range []volume.ID{"c", "a", "b"} {
		s.create(id)
	}
	all, err := s.Control.List(s.ctx)
	s.ok("List", err)
	var ids []volume.ID
	for _, v := range all {
		ids = append(ids, v.ID)
	}
	s.check(slices.Equal(ids, []volume.ID{"a", "b", "c"}), "listed %v", ids)
}

func testDeleteIsIdempotent(s *suite) {
	s.create(id)
	s.ok("Delete", s.Control.Delete(s.ctx, id))
	s.ok("Delete again", s.Control.Delete(s.ctx, id))
	_, err := s.Control.Get(s.ctx, id)
	s.refused("Get", err, engine.ErrNotFound)
	s.create(id)
}

func testDeleteRefuses(s *suite) {
	s.create(id)
	a := s.publish()
	s.refused("Delete while published", s.Control.Delete(s.ctx, id), engine.ErrAttached)
	_, h := s.attach(a)
	s.write(h, 0, 1, 1)
	s.refused("Delete while attached", s.Control.Delete(s.ctx, id), engine.ErrAttached)
	s.holds(h, 0, 1, 1)
	s.leave(a, h, "receipt")
	s.ok("Delete after detach", s.Control.Delete(s.ctx, id))
}

func testPublishIsIdempotent(s *suite) {
	s.create(id)
	a := s.publish()
	s.check(s.publish() == a, "published twice, not the same")
	v := s.get()
	s.check(v.Attachment != nil && *v.Attachment == a && !v.Staged, "published volume %+v", v)
	_, err := s.Control.Publish(s.ctx, id, s.NodeID, engine.PublishOptions{Mode: "SINGLE_NODE_READER_ONLY", ReadOnly: true})
	s.refused("Publish with other options", err, engine.ErrExists)
}

func testPublishElsewhere(s *suite) {
	s.create(id)
	a := s.publish()
	_, err := s.Control.Publish(s.ctx, id, s.Elsewhere, engine.PublishOptions{})
	s.refused("Publish elsewhere", err, engine.ErrAttached)
	_, h := s.attach(a)
	_, err = s.Control.Publish(s.ctx, id, s.Elsewhere, engine.PublishOptions{})
	s.refused("Publish elsewhere", err, engine.ErrAttached)
	s.leave(a, h, "receipt")
	b, err := s.Control.Publish(s.ctx, id, s.Elsewhere, engine.PublishOptions{})
	s.ok("Publish elsewhere after detach", err)
	_, err = s.Node.Attach(s.ctx, b)
	s.refused("Attach on the wrong node", err, engine.ErrStaleEpoch)
}

func testPublishConcurrently(s *suite) {
	s.create(id)
	var mu sync.Mutex
	got := map[volume.Attachment]bool{}
	s.ok("Publish at once", together(8, func(int) error {
		a, err := s.Control.Publish(s.ctx, id, s.NodeID, engine.PublishOptions{})
		if errors.Is(err, engine.ErrBusy) {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		got[a] = true
		return err
	}))
	s.check(len(got) == 1, "attachments %v", got)
}

func testEpochsGrow(s *suite) {
	s.create(id)
	var last volume.Epoch
	for range 4 {
		a := s.publish()
		s.check(a.Epoch > last, "epoch %d after %d", a.Epoch, last)
		last = a.Epoch
		s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
	}
}

func testUnpublishNeverStaged(s *suite) {
	s.create(id)
	old := s.publish()
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, old))
	s.ok("Unpublish again", s.Control.Unpublish(s.ctx, old))
	s.check(s.get().Attachment == nil, "attached after Unpublish")
	_, err := s.Node.Attach(s.ctx, old)
	s.refused("Attach to a closed attachment", err, engine.ErrStaleEpoch)
	a := s.publish()
	s.ok("Unpublish of an old attachment", s.Control.Unpublish(s.ctx, old))
	v := s.get()
	s.check(v.Attachment != nil && *v.Attachment == a, "Unpublish of an old attachment closed the new one")
	_, err = s.Node.Attach(s.ctx, old)
	s.refused("Attach to an old attachment", err, engine.ErrStaleEpoch)
	s.receipts()
}

func testExpand(s *suite) {
	s.create(id)
	v, err := s.Control.Expand(s.ctx, id, 2*s.Size)
	s.ok("Expand", err)
	s.check(v.Size == 2*s.Size && s.get().Size == 2*s.Size, "expanded to %v, is %v", 2*s.Size, v.Size)
	v, err = s.Control.Expand(s.ctx, id, s.Size)
	s.ok("Expand to less", err)
	s.check(v.Size == 2*s.Size, "shrunk to %v", v.Size)
	_, err = s.Control.Expand(s.ctx, id, 1<<62)
	s.refused("Expand to an absurd size", err, engine.ErrOutOfRange)
	s.check(s.get().Size == 2*s.Size, "a refused Expand changed the size to %v", s.get().Size)
}

func testFormat(s *suite) {
	s.create(id)
	steps := []engine.Format{{Stage: engine.Formatting, FSType: "ext4"}, {Stage: engine.Formatted, FSType: "ext4"}}
	for _, f := range steps {
		s.ok("SetFormat", s.Control.SetFormat(s.ctx, id, f))
		s.ok("SetFormat again", s.Control.SetFormat(s.ctx, id, f))
		s.check(s.get().Format == f, "format is %+v, want %+v", s.get().Format, f)
	}
	for _, f := range []engine.Format{{}, steps[0], {Stage: engine.Formatted, FSType: "xfs"}} {
		_ = s.Control.SetFormat(s.ctx, id, f) // refused or ignored: what counts is that nothing changes
		s.check(s.get().Format == steps[1], "format went from %+v to %+v", steps[1], s.get().Format)
	}
	for _, d := range []engine.Doubt{engine.Damaged, engine.Unchecked, engine.NoDoubt} {
		f := steps[1]
		f.Doubt = d
		s.ok("SetFormat with a doubt", s.Control.SetFormat(s.ctx, id, f))
		s.check(s.get().Format == f, "format is %+v, want %+v", s.get().Format, f)
	}
}

// testDoubt: a writer that had not flushed puts the filesystem in doubt, and only who checks it takes that away.
func testDoubt(s *suite) {
	a, _, h := s.use()
	s.shutOut(a, h, "receipt 1")
	a = s.publish()
	d, h := s.attach(a)
	s.check(d.Unclean && s.get().Format == engine.Format{}, "without a filesystem, after a fence: %+v, %+v", d, s.get().Format)
	formatted := engine.Format{Stage: engine.Formatted, FSType: "ext4"}
	s.ok("SetFormat", s.Control.SetFormat(s.ctx, id, formatted))
	s.leave(a, h, "receipt 2")
	a = s.publish()
	_, h = s.attach(a)
	s.check(s.get().Format == formatted, "in doubt after a clean writer: %+v", s.get().Format)
	s.shutOut(a, h, "receipt 3")
	doubted := formatted
	doubted.Doubt = engine.Unchecked
	for _, receipt := range []string{"receipt 4", "receipt 5"} { // the second after a clean one: nobody has checked
		a = s.publish()
		_, h = s.attach(a)
		s.check(s.get().Format == doubted, "format is %+v, want %+v", s.get().Format, doubted)
		s.leave(a, h, receipt)
	}
	s.ok("SetFormat after a check", s.Control.SetFormat(s.ctx, id, formatted))
	a = s.publish()
	_, h = s.attach(a)
	s.check(s.get().Format == formatted, "in doubt after a check: %+v", s.get().Format)
	s.leave(a, h, "receipt 6")
}

// shutOut fences a living writer, and detaches what is left with a receipt.
func (s *suite) shutOut(a volume.Attachment, h Handle, receipt string) {
	s.Helper()
	s.write(h, 0, 4, 1)
	_, err := s.Control.Fence(s.ctx, a, engine.FenceOptions{Kill: true, Reason: "test"})
	s.ok("Fence", err)
	s.seal(s.evidence(a), receipt)
	_ = h.Close()
	s.ok("Detach of what is left", s.Node.Detach(s.ctx, a))
	s.ok("Unpublish", s.Control.Unpublish(s.ctx, a))
}

func testUnsupported(s *suite) {
	s.create(id)
	calls := []struct {
		name   string
		stated bool
		call   func() error
	}{
		{"CreateSnapshot", s.caps.Snapshot, func() error { return s.Control.CreateSnapshot(s.ctx, id, "snapshot") }},
		{"DeleteSnapshot", s.caps.Snapshot, func() error { return s.Control.DeleteSnapshot(s.ctx, id, "snapshot") }},
		{"Clone", s.caps.Clone, func() error {
			_, err := s.Control.Clone(s.ctx, id, "", s.spec("suite-clone"))
			return err
		}},
		{"Upgrade", s.caps.LiveUpgrade, func() error { _, err := s.Control.Upgrade(s.ctx, id, "/no/such/binary", nil); return err }},
		{"Salvage", s.caps.Salvage, func() error {
			_, err := s.Control.Salvage(s.ctx, id, engine.SalvageOrder{From: s.get().Replicas[0].ID, Reason: "because"}, nil)
			return err
		}},
	}
	for _, c := range calls {
		if !c.stated {
			s.refused(c.name, c.call(), engine.ErrUnsupported)
		}
	}
	before, err := s.Control.List(s.ctx)
	s.ok("List", err)
	s.check(len(before) == 1, "an unsupported call left %d volumes", len(before))
}
