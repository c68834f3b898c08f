package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

const (
	mib  = 1 << 20
	gib  = 1 << 30
	file = "data"
)

// The volume that the story is about, and what is in it.
var (
	main1 *orchestrator.Volume
	sum   string // of the 256 MiB
	fresh string // of the 8 MiB written later
)

func disk(w *world, i int) string { return filepath.Base(w.Stores[i]) }

func theMainJob(ctx context.Context, s *script, w *world) (err error) {
	if err := s.check("belay serve starts with three stores and answers Probe", w.Start(ctx)); err != nil {
		return err
	}
	main1, err = w.create(ctx, "main", gib, map[string]string{"replicas": "3", "fsType": "ext4", "verify": "off"})
	if err := s.check("CreateVolume: 1 GiB, three replicas, ext4", err); err != nil {
		return err
	}
	if err := s.check("ControllerPublish, NodeStage (mkfs, mount), NodePublish to the pod's directory", main1.Attach(ctx)); err != nil {
		return err
	}
	sum, err = write(main1, file, "an old block", 256*mib)
	if err := s.check("256 MiB written and synced, md5 "+short(sum), err); err != nil {
		return err
	}
	if err := s.check("NodeUnpublish", main1.Unpublish(ctx)); err != nil {
		return err
	}
	seen, err := unstageWatched(ctx, w, main1)
	if err := s.check("NodeUnstage: barrier, read back, digests compared, receipt signed", err); err != nil {
		return err
	}
	s.quote(seen)
	return s.check("ControllerUnpublish: OK, a receipt is in force", main1.ControllerUnpublish(ctx))
}

// unstageWatched unstages and tells what `belay why` says meanwhile.
func unstageWatched(ctx context.Context, w *world, c *orchestrator.Volume) (string, error) {
	ctx2, cancel := context.WithCancel(ctx)
	var seen []string
	var watch sync.WaitGroup
	watch.Go(func() { seen = watchBarrier(ctx2, w, c) })
	err := c.Unstage(ctx)
	cancel()
	watch.Wait()
	return strings.Join(seen, "\n"), err
}

func watchBarrier(ctx context.Context, w *world, c *orchestrator.Volume) (seen []string) {
	last := ""
	for ctx.Err() == nil {
		r, err := w.admin.Why(ctx, c.ID)
		if err == nil && r.Node != nil && r.Node.Job.Running {
			p := r.Node.Job.Progress
			if p.Phase != last && len(seen) < 8 || p.Phase == last && p.Total > 0 && len(seen) < 6 {
				seen = append(seen, fmt.Sprintf("barrier: %-8s %9s of %s", p.Phase, p.Done, p.Total))
			}
			last = p.Phase
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return seen
}

func theReceipt(ctx context.Context, s *script, w *world) error {
	text, err := w.ask(ctx, 0, "receipts", main1.ID)
	if err := s.check("belay receipts: signature and chain hold", err); err != nil {
		return err
	}
	s.quote(text)
	r, err := newest(ctx, w, main1)
	if err == nil && (r.Kind != receipt.Clean || len(r.Evidence) != 3 || !allAgree(r)) {
		err = fmt.Errorf("want a clean receipt with three equal digests, got %s with %d", r.Kind, len(r.Evidence))
	}
	if err := s.check("the receipt is clean: three replicas, one digest, all on stable media", err); err != nil {
		return err
	}
	text, err = w.ask(ctx, 0, "verify", main1.ID)
	if err := s.check("belay verify: everything read again, equal to the receipt", errors.Join(err, wantText(text, "equal to the newest receipt"))); err != nil {
		return err
	}
	s.quote(text)
	return nil
}

func allAgree(r receipt.Receipt) bool {
	for _, e := range r.Evidence {
		if !e.Digest.Equal(r.Expected) || !e.Durable {
			return false
		}
	}
	return true
}

func attachedAgain(ctx context.Context, s *script, w *world) error {
	if err := s.check("publish, stage, publish to the pod", main1.Attach(ctx)); err != nil {
		return err
	}
	return s.check("md5 is the same: "+short(sum), wantMD5(main1, file, sum))
}

func heldRefused(ctx context.Context, s *script, w *world) error {
	err := main1.ControllerUnpublish(ctx)
	if err := s.check("ControllerUnpublish while staged and mounted: FAILED_PRECONDITION, and who holds it", errors.Join(wantCode(err, "FailedPrecondition"), wantText(said(err), main1.Target))); err != nil {
		return err
	}
	s.quote(said(err))
	text, err := w.ask(ctx, 0, "why", main1.ID)
	if err := s.check("belay why", err); err != nil {
		return err
	}
	s.quote(text)
	fresh, err = write(main1, "fresh", "a fresh block", 8*mib)
	return s.check("the pod never noticed: 8 MiB more written and synced", err)
}

func freshFlip(ctx context.Context, s *script, w *world) error {
	if err := s.check("one byte of the 8 MiB flipped in store "+disk(w, 1), flip(w.Stores[1], main1, "a fresh block")); err != nil {
		return err
	}
	if err := s.check("detach: OK", main1.Detach(ctx)); err != nil {
		return err
	}
	r, err := newest(ctx, w, main1)
	if err == nil && (r.RepairCount == 0 || r.Kind != receipt.Clean || !allAgree(r)) {
		err = fmt.Errorf("want a clean receipt that tells of a repair, got %s with %d", r.Kind, r.RepairCount)
	}
	if err := s.check("the receipt tells that it was found by reading back, and repaired from a good copy", err); err != nil {
		return err
	}
	for _, m := range r.Repairs {
		s.quote(fmt.Sprintf("replica %.8s, %s at offset %d, from %.8s: %s", m.Replica, m.Length, int64(m.Offset), m.From, m.Cause))
	}
	return nil
}

func oldFlip(ctx context.Context, s *script, w *world) error {
	if err := s.check("the volume is detached; one byte of a verified block flipped in store "+disk(w, 2), flip(w.Stores[2], main1, "a fresh block")); err != nil {
		return err
	}
	var v admin.Verification
	err := w.askJSON(ctx, &v, 3, "verify", main1.ID)
	if err == nil && len(v.Findings) == 0 {
		err = errors.New("nothing was found")
	}
	if err := s.check("belay verify finds it: exit code 3, and which replica, where, and why", err); err != nil {
		return err
	}
	for _, f := range v.Findings {
		s.quote(fmt.Sprintf("replica %.8s, %s at offset %d: %s", f.Replica, f.Length, int64(f.Offset), f.Cause))
	}
	if err := s.check("attached again", main1.Attach(ctx)); err != nil {
		return err
	}
	text, err := w.ask(ctx, 3, "verify", main1.ID)
	if err := s.check("belay verify while attached mends it from a good copy", errors.Join(err, wantText(text, "mended"))); err != nil {
		return err
	}
	s.quote(text)
	ok, err := intact(w.Stores[2], main1, "a fresh block")
	if err == nil && !ok {
		err = errors.New("the block is not as it was written")
	}
	lines, err2 := w.metrics(`belay_detach_refused_total{reason="held"}`, `belay_receipts_total{kind="clean"}`, "belay_repaired_blocks_total 2",
		`belay_engine_up{volume="`+main1.ID+`"} 1`, `belay_replicas_in_sync{volume="`+main1.ID+`"} 3`)
	if err := s.check("the metrics have counted it", err2); err != nil {
		return err
	}
	s.quote(strings.Join(lines, "\n"))
	return s.check("it is right again on the disk, md5 too; detach: OK", errors.Join(err, wantMD5(main1, "fresh", fresh), main1.Detach(ctx)))
}

func backgroundFlip(ctx context.Context, s *script, w *world) error {
	c, err := w.create(ctx, "background", 128*mib, map[string]string{"verify": "1s"})
	if err := s.check("a volume that is verified every second", errors.Join(err, c.Attach(ctx))); err != nil {
		return err
	}
	want, err := write(c, file, "a block for later", 16*mib)
	if err := s.check("16 MiB written; detached and attached, so that they are old", errors.Join(err, c.Detach(ctx), c.Attach(ctx))); err != nil {
		return err
	}
	if err := s.check("one byte flipped in store "+disk(w, 0), flip(w.Stores[0], c, "a block for later")); err != nil {
		return err
	}
	err = orchestrator.Until(ctx, "the background verifier", func() (bool, error) { return intact(w.Stores[0], c, "a block for later") })
	if err := s.check("nobody asked: the background verifier has found and mended it on the disk", err); err != nil {
		return err
	}
	return s.check("md5 right, detach OK, deleted", errors.Join(wantMD5(c, file, want), c.Detach(ctx), c.Delete(ctx)))
}

func storesGone(ctx context.Context, s *script, w *world) error {
	if err := s.check("attached, unpublished from the pod", errors.Join(main1.Attach(ctx), main1.Unpublish(ctx))); err != nil {
		return err
	}
	back, err := away(w.Stores[0], w.Stores[1])
	if err := s.check("two of three stores are pulled", err); err != nil {
		return err
	}
	unstage := main1.Unstage(ctx)
	if err := s.check("NodeUnstage: UNAVAILABLE", wantCode(unstage, "Unavailable")); err != nil {
		return errors.Join(err, back())
	}
	s.quote(said(unstage))
	refused := main1.ControllerUnpublish(ctx)
	if err := s.check("ControllerUnpublish: UNAVAILABLE, nothing is touched", wantCode(refused, "Unavailable")); err != nil {
		return errors.Join(err, back())
	}
	s.quote(said(refused))
	if err := s.check("the stores are back", back()); err != nil {
		return err
	}
	err = orchestrator.Until(ctx, "NodeUnstage", func() (bool, error) { return main1.Unstage(ctx) == nil, nil })
	if err := s.check("NodeUnstage and ControllerUnpublish: OK", errors.Join(err, main1.ControllerUnpublish(ctx))); err != nil {
		return err
	}
	return s.check("attached again, md5 right, detached", errors.Join(main1.Attach(ctx), wantMD5(main1, "fresh", fresh), main1.Detach(ctx)))
}

func noCopyWins(ctx context.Context, s *script, w *world) error {
	c, err := w.create(ctx, "lost", 128*mib, map[string]string{"verify": "off"})
	if err := s.check("a volume of its own", errors.Join(err, c.Attach(ctx))); err != nil {
		return err
	}
	_, err = write(c, file, "a doomed block", mib)
	for _, store := range w.Stores {
		err = errors.Join(err, flip(store, c, "a doomed block"))
	}
	if err := s.check("one block written, and flipped in every store", err); err != nil {
		return err
	}
	err = errors.Join(c.Unpublish(ctx))
	unstage := c.Unstage(ctx)
	if err := s.check("NodeUnstage: DATA_LOSS, the volume is quarantined", errors.Join(err, wantCode(unstage, "DataLoss"))); err != nil {
		return err
	}
	s.quote(said(unstage))
	refused := c.ControllerUnpublish(ctx)
	if err := s.check("ControllerUnpublish: DATA_LOSS", wantCode(refused, "DataLoss")); err != nil {
		return err
	}
	var why detach.Report
	err = w.askJSON(ctx, &why, 0, "why", c.ID)
	if err == nil && why.Volume.State != engine.Quarantined {
		err = fmt.Errorf("state %s", why.Volume.State)
	}
	if err := s.check("belay why says so, and what to do", err); err != nil {
		return err
	}
	s.quote(why.Because + "\nnext: " + why.Next)
	text, err := w.ask(ctx, 0, "fence", c.ID, "--epoch", fmt.Sprint(why.Volume.Attachment.Epoch), "--reason", "the demo gives it up")
	if err := s.check("a person decides: belay fence, with epoch and reason, leaves a forced receipt", errors.Join(err, wantText(text, "forced"))); err != nil {
		return err
	}
	s.quote(text)
	return s.check("NodeUnstage and ControllerUnpublish: OK; deleted", errors.Join(c.Unstage(ctx), c.ControllerUnpublish(ctx), c.Delete(ctx)))
}

// intact says whether the block in the store is as it was written.
func intact(store string, c *orchestrator.Volume, mark string) (bool, error) {
	f, err := os.Open(store + "/volumes/" + c.ID + "/data")
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = find(f, markBlock(mark))
	return err == nil, nil
}

func newest(ctx context.Context, w *world, c *orchestrator.Volume) (receipt.Receipt, error) {
	var all admin.Receipts
	if err := w.askJSON(ctx, &all, 0, "receipts", c.ID); err != nil {
		return receipt.Receipt{}, err
	}
	if len(all.Entries) == 0 {
		return receipt.Receipt{}, errors.New("there is no receipt")
	}
	return all.Entries[len(all.Entries)-1].Receipt, nil
}

func wantText(text, want string) error {
	if strings.Contains(text, want) {
		return nil
	}
	return fmt.Errorf("%q does not say %q", text, want)
}

func short(sum string) string {
	if len(sum) < 8 {
		return sum
	}
	return sum[:8] + "…"
}
