package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// Config is what a server answers from. All fields are required.
type Config struct {
	About   About
	Control Control
	Gate    Gate
	Book    Book
	History History
	Board   *Board
	// Checking says how far the check of a volume's filesystem is, "" where none runs.
	Checking func(volume.ID) string
	Log      *slog.Logger
}

type server struct{ Config }

// NewServer returns a server for the API; wire.Listen makes the socket that it serves.
func NewServer(c Config) *wire.Server {
	s, w := server{c}, wire.NewServer(Codes, c.Log)
	wire.Handle(w, methodAbout, func(context.Context, none, func(none)) (About, error) { return c.About, nil })
	wire.Handle(w, methodVolumes, s.volumes)
	wire.Handle(w, methodReceipts, s.receipts)
	wire.Handle(w, methodVerify, s.verify)
	wire.Handle(w, methodWhy, s.why)
	wire.Handle(w, methodFence, s.fence)
	wire.Handle(w, methodUpgrade, s.upgrade)
	wire.Handle(w, methodHistory, s.history)
	wire.Handle(w, methodNotices, s.notices)
	s.handleSalvage(w)
	return w
}

// plain is the name without this machine's, where a handle says it lives here.
func (s server) plain(name string) string {
	if id, node, err := volume.ParseHandle(name); err == nil && node != "" && node == s.About.Node {
		return string(id)
	}
	return name
}

// resolve finds the volume that has the ID, or else the orchestrator's name.
func (s server) resolve(ctx context.Context, name string) (engine.Volume, error) {
	name = s.plain(name)
	id, err := volume.IDForName(name)
	if err != nil {
		return engine.Volume{}, fmt.Errorf("%w: %w", engine.ErrInvalid, err)
	}
	v, err := s.Control.Get(ctx, id)
	if !errors.Is(err, engine.ErrNotFound) {
		return v, err
	}
	all, listErr := s.Control.List(ctx)
	if listErr != nil {
		return engine.Volume{}, listErr
	}
	for _, v := range all {
		if v.Name == name {
			return v, nil
		}
	}
	return engine.Volume{}, fmt.Errorf("%w; `belay volumes` lists those there are", err)
}

func (s server) volumes(ctx context.Context, _ none, _ func(none)) (Listing, error) {
	all, err := s.Control.List(ctx)
	if err != nil {
		return Listing{}, err
	}
	out := make([]Volume, 0, len(all))
	for _, v := range all {
		r, err := s.newest(ctx, v)
		out = append(out, Volume{Volume: v, Receipt: r, ReceiptError: text(err)})
	}
	return Listing{Volumes: out}, nil
}

// newest returns the newest receipt in force; nil without an error where there is none.
func (s server) newest(ctx context.Context, v engine.Volume) (*receipt.Receipt, error) {
	if len(v.Head) == 0 {
		return nil, nil
	}
	raws, err := s.Control.Receipts(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	if len(raws) == 0 || !bytes.Equal(receipt.Hash(raws[len(raws)-1]), v.Head) {
		return nil, fmt.Errorf("volume %s: the receipt that its seal names (%.16s…) is not among the %d kept", v.ID, engine.HexBytes(v.Head), len(raws))
	}
	r, err := s.Book.Verify(raws[len(raws)-1])
	if err != nil {
		return nil, err
	}
	return &r, nil
}

func (s server) receipts(ctx context.Context, n named, _ func(none)) (Receipts, error) {
	v, err := s.resolve(ctx, n.Volume)
	if err != nil {
		return Receipts{}, err
	}
	raws, err := s.Control.Receipts(ctx, v.ID)
	if err != nil {
		return Receipts{}, err
	}
	out := Receipts{Volume: v.ID, Name: v.Name, Entries: make([]ReceiptEntry, 0, len(raws)), Breaks: s.Book.VerifyChain(raws)}
	for _, raw := range raws {
		r, err := s.Book.Verify(raw)
		out.Entries = append(out.Entries, ReceiptEntry{Receipt: r, Hash: receipt.Hash(raw), Raw: raw, Error: text(err)})
	}
	// What was cut off at the end shows only against the engine's own head.
	if last := len(raws) - 1; len(v.Head) > 0 && (last < 0 || !bytes.Equal(receipt.Hash(raws[last]), v.Head)) {
		out.Breaks = append(out.Breaks, receipt.Break{Index: len(raws), Cause: fmt.Sprintf("the seal names receipt %.16s…, which is not the newest kept", engine.HexBytes(v.Head))})
	}
	return out, nil
}

func (s server) verify(ctx context.Context, n named, progress func(engine.Progress)) (Verification, error) {
	v, err := s.resolve(ctx, n.Volume)
	if err != nil {
		return Verification{}, err
	}
	r, receiptErr := s.newest(ctx, v)
	began := time.Now()
	found, err := s.Control.Verify(ctx, v.ID, progress)
	if err != nil {
		return Verification{}, err
	}
	return Verification{
		Verification: found, Name: v.Name, Took: time.Since(began), Receipt: r, ReceiptError: text(receiptErr),
		Comparison: compare(v, found, r, receiptErr),
	}, nil
}

// compare says how what was read stands to the newest receipt. A receipt tells the content only until the next writer
// attaches. Digests of two sizes do not compare: of a volume that has grown, the engine's own seal tells the content.
func compare(v engine.Volume, found engine.Verification, r *receipt.Receipt, receiptErr error) Comparison {
	switch {
	case receiptErr != nil:
		return Unreadable
	case r == nil:
		return NoReceipt
	case !v.Sealed || !found.Sealed || v.Writer > r.Writer:
		return Since
	case found.Size > r.Size:
		return held(found.Evidence, found.Expected, Grown)
	}
	return held(found.Evidence, r.Expected, Equal)
}

// held is same where every replica in sync holds that content.
func held(by []engine.Evidence, content engine.Digest, same Comparison) Comparison {
	for _, e := range by {
		if e.Error == "" && e.State == engine.InSync && !e.Digest.Equal(content) {
			return Differs
		}
	}
	return same
}

func (s server) fence(ctx context.Context, f fencing, _ func(none)) (receipt.Receipt, error) {
	v, err := s.resolve(ctx, f.Volume)
	if err != nil {
		return receipt.Receipt{}, err
	}
	if err := s.Gate.Override(ctx, detach.Override{Volume: v.ID, Epoch: f.Epoch, Reason: f.Reason, Actor: f.Actor}); err != nil {
		return receipt.Receipt{}, err
	}
	if v, err = s.Control.Get(ctx, v.ID); err != nil {
		return receipt.Receipt{}, err
	}
	r, err := s.newest(ctx, v)
	if err == nil && r == nil {
		err = fmt.Errorf("volume %s: the override was taken, and no receipt is in force", v.ID)
	}
	if err != nil {
		return receipt.Receipt{}, err
	}
	return *r, nil
}

// upgrade goes on when the caller hangs up: what was begun ends as an upgrade or as none.
func (s server) upgrade(ctx context.Context, u upgrading, progress func(engine.Progress)) (engine.Upgrade, error) {
	v, err := s.resolve(ctx, u.Volume)
	if err != nil {
		return engine.Upgrade{}, err
	}
	return s.Control.Upgrade(context.WithoutCancel(ctx), v.ID, u.Binary, progress)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
