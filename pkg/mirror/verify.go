package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// Verify implements engine.Control. An attached volume is verified and mended by its engine process. A detached one is only read;
// an operation that needs it ends the reading with ErrBusy.
func (e *Engine) Verify(ctx context.Context, id volume.ID, progress func(engine.Progress)) (engine.Verification, error) {
	h := e.handle(id)
	if p, err := e.alive(ctx, id); err != nil || p != nil {
		if err != nil {
			return engine.Verification{}, err
		}
		return p.verify(ctx, progress)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := h.lock(ctx); err != nil {
		return engine.Verification{}, err
	}
	defer h.unlock()
	h.setVerify(cancel)
	defer h.setVerify(nil)
	out, err := e.read(ctx, id, progress)
	if errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%w: verification of volume %s was interrupted: %w", engine.ErrBusy, id, err)
	}
	return out, err
}

func (h *handle) setVerify(cancel context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.verify = cancel
}

// read reads every replica of a detached volume. It takes the replicas' locks but promises and changes nothing.
func (e *Engine) read(ctx context.Context, id volume.ID, progress func(engine.Progress)) (engine.Verification, error) {
	newest, err := e.survey(id).newest()
	if err != nil {
		return engine.Verification{}, err
	}
	s := newSession(OpenConfig{ID: id, Stores: e.stores.present(), Holder: e.holder("verify", id), Boot: e.boot, Log: e.Log, Events: e.Events})
	defer s.Close()
	s.view.Store(&view{config: newest, replicas: make([]*replica, len(newest.Voters))})
	if err := s.openVoters(); err != nil {
		return engine.Verification{}, err
	}
	return s.readAll(ctx, progress)
}

// reading is the state of reading a whole volume.
type reading struct {
	out   engine.Verification
	sums  map[*replica]digest.Sum
	read  map[*replica]volume.Bytes
	meter *meter
}

func (s *Session) readAll(ctx context.Context, progress func(engine.Progress)) (engine.Verification, error) {
	v := s.view.Load()
	todo, err := s.heldRegions()
	if err != nil {
		return engine.Verification{}, err
	}
	r := &reading{sums: map[*replica]digest.Sum{}, read: map[*replica]volume.Bytes{}, meter: newMeter("verify", progress)}
	r.meter.total = volume.Bytes(len(todo)*len(v.members())) * (store.RegionSize + store.PagesPerRegion*store.PageSize)
	r.out = engine.Verification{Volume: s.id, Size: v.config.Size, Sealed: v.config.Flags.Has(quorum.Sealed)}
	for _, region := range todo {
		if err := ctx.Err(); err != nil {
			return r.out, err
		}
		r.region(s, v, region)
	}
	return r.conclude(s, v), nil
}

// region reads one region of every member and notes what is wrong with each.
func (r *reading) region(s *Session, v *view, index int64) {
	var want blockset
	want.fill()
	images, failed := readImages(s.hash, v.members(), index, &want)
	for _, f := range failed {
		r.note(engine.Finding{Replica: f.replica.id(), Offset: volume.Bytes(index * store.RegionSize), Length: store.RegionSize, Cause: f.err.Error()})
	}
	for _, m := range images {
		var sum digest.Sum
		for i := range m.data {
			s.hash.Add(&sum, m.data[i])
		}
		r.sums[m.replica] = r.sums[m.replica].Plus(sum)
		r.read[m.replica] += m.bytes
		r.out.Read += m.bytes
		r.meter.add(m.bytes)
	}
	r.compare(images, index)
}

func (r *reading) compare(images []*image, index int64) {
	copies := make([]quorum.Copy, len(images))
	for i := range int64(store.RegionBlocks) {
		good := true
		for k, m := range images {
			copies[k] = m.copyOf(i)
			good = good && copies[k].Match() && copies[k].Data == copies[0].Data
		}
		if good {
			continue
		}
		r.judge(images, copies, index*store.RegionBlocks+i)
	}
}

// judge tells which copies of a block are wrong, and whether one is right.
func (r *reading) judge(images []*image, copies []quorum.Copy, block int64) {
	matching := slices.ContainsFunc(copies, quorum.Copy.Match)
	win, rule := quorum.Winner(copies, nil)
	if !matching || rule == quorum.ByNobody {
		if len(r.out.Unresolved) < ledgerMax {
			r.out.Unresolved = append(r.out.Unresolved, finding("", block, "no copy matches its checksum"))
		}
		return
	}
	for k, c := range copies {
		if !c.Match() || c.Data != copies[win].Data {
			r.note(finding(images[k].replica.id(), block, cause(c)))
		}
	}
}

func (r *reading) note(f engine.Finding) {
	if len(r.out.Findings) < ledgerMax {
		r.out.Findings = append(r.out.Findings, f)
	}
}

func (r *reading) conclude(s *Session, v *view) engine.Verification {
	if r.out.Sealed {
		r.out.Expected = engine.Digest{Algorithm: digest.Algorithm, Scope: "full", Bytes: v.config.Size, Sum: v.config.Digest[:]}
	}
	for i := range v.config.Voters {
		e := engine.Evidence{Replica: s.describe(v, i), Incarnation: v.config.Voters[i].Incarnation.String(), At: time.Now().UTC()}
		if m := v.replicas[i]; m != nil && v.config.Members.Has(i) {
			e.Digest, e.DigestBy, e.Verified, e.Durable = digestOf(r.sums[m], v.config.Size), engine.AttestReplica, r.read[m], true
			if r.out.Sealed && !e.Digest.Equal(r.out.Expected) {
				r.note(engine.Finding{Replica: m.id(), Length: v.config.Size, Cause: "its digest is not the one that was sealed"})
			}
		} else {
			e.Error = e.Reason
		}
		r.out.Evidence = append(r.out.Evidence, e)
	}
	return r.out
}

// Rebuild implements engine.Control: the engine process brings replicas back by itself; this waits for it.
func (e *Engine) Rebuild(ctx context.Context, id volume.ID, progress func(engine.Progress)) error {
	for {
		v, err := e.Get(ctx, id)
		if err != nil || v.State == engine.Healthy {
			return err
		}
		if p, err := e.alive(ctx, id); err != nil || p == nil {
			return errors.Join(err, e.rebuildDetached(ctx, id, progress))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: volume %s: %s: %w", engine.ErrBusy, id, v.Reason, ctx.Err())
		case <-time.After(reopenEvery):
		}
	}
}

// rebuildDetached refuses: a detached volume is rebuilt when it is next attached.
func (e *Engine) rebuildDetached(_ context.Context, id volume.ID, _ func(engine.Progress)) error {
	return fmt.Errorf("%w: volume %s is detached; its replicas are brought back when it is attached", engine.ErrUnsupported, id)
}
