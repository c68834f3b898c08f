// Package admin is what operators can ask a running `belay serve`: its volumes, their receipts and histories, a verification, and why a volume is
// held.
//
// It is one small API over a local socket, asked by the command line and later by the console; it decides nothing itself, and passes an operator's
// override on to the gate.
package admin

import (
	"context"
	"maps"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// DefaultSocket is where `belay serve` listens for operators unless told otherwise.
const DefaultSocket = "/run/belay/admin.sock"

// Methods of the API.
const (
	methodAbout    = "about"
	methodVolumes  = "volumes"
	methodReceipts = "receipts"
	methodVerify   = "verify"
	methodWhy      = "why"
	methodFence    = "fence"
	methodUpgrade  = "upgrade"
	methodHistory  = "history"
	methodNotices  = "notices"
)

// Codes name the errors that keep their identity between server and client: those of the engine and of the gate.
var Codes = codes()

func codes() map[string]error {
	all := maps.Clone(engine.Codes)
	maps.Copy(all, map[string]error{
		"held": detach.ErrHeld, "in-progress": detach.ErrInProgress, "node-silent": detach.ErrNodeSilent, "data-loss": detach.ErrDataLoss,
		"override": detach.ErrOverride, "journal": detach.ErrJournal,
	})
	return all
}

// About says who answers.
type About struct {
	Version string        `json:"version"`
	Node    volume.NodeID `json:"node"`
	Driver  string        `json:"driver"` // CSI name
	Stores  []string      `json:"stores"`
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
}

// Volume is a volume and the newest receipt of it that is in force.
type Volume struct {
	engine.Volume
	At           volume.NodeID    `json:"at,omitempty"` // the machine it lives on, where several are asked
	Receipt      *receipt.Receipt `json:"receipt,omitempty"`
	ReceiptError string           `json:"receiptError,omitempty"` // why none could be read
}

// ReceiptEntry is one kept receipt. Raw are the signed bytes that Hash is of.
type ReceiptEntry struct {
	Receipt receipt.Receipt `json:"receipt"` // zero where Error is set
	Hash    engine.HexBytes `json:"hash"`
	Raw     []byte          `json:"raw"`
	Error   string          `json:"error,omitempty"` // why it is not believed
}

// Receipts are all receipts of a volume that are in force, oldest first, and what is wrong with them.
type Receipts struct {
	Volume  volume.ID      `json:"volume"`
	Name    string         `json:"name"`
	Entries []ReceiptEntry `json:"receipts"`
	// Breaks are the places where the chain does not hold; empty: nothing was changed, removed or reordered.
	Breaks []receipt.Break `json:"breaks,omitempty"`
}

// Good says that every receipt is signed by a known key and the chain has no break.
func (r Receipts) Good() bool { return len(r.Breaks) == 0 }

// Comparison says how a verified volume stands to its newest receipt.
type Comparison string

// Comparisons.
const (
	NoReceipt  Comparison = "no receipt"    // none is in force
	Equal      Comparison = "equal"         // every replica holds what the receipt says
	Differs    Comparison = "differs"       // a replica does not, though nobody attached since
	Grown      Comparison = "grown since"   // expanded since, by zeros; every replica holds what its seal says
	Since      Comparison = "written since" // a writer attached after the receipt, so that it no longer tells the content
	Unreadable Comparison = "unreadable"    // the receipt is not believed: see Verification.ReceiptError
)

// Verification is the outcome of reading a volume again.
type Verification struct {
	engine.Verification
	Name         string           `json:"name"`
	Took         time.Duration    `json:"took"`
	Comparison   Comparison       `json:"comparison"`
	Receipt      *receipt.Receipt `json:"receipt,omitempty"`
	ReceiptError string           `json:"receiptError,omitempty"`
}

// Clean says that nothing was found that differs: neither left, nor mended, nor from the receipt.
func (v Verification) Clean() bool {
	return v.Good() && len(v.Repairs) == 0 && v.Comparison != Differs && v.Comparison != Unreadable
}

// Control is what is asked of the engine.
type Control interface {
	Get(ctx context.Context, id volume.ID) (engine.Volume, error)
	List(ctx context.Context) ([]engine.Volume, error)
	Receipts(ctx context.Context, id volume.ID) ([][]byte, error)
	Verify(ctx context.Context, id volume.ID, progress func(engine.Progress)) (engine.Verification, error)
	SalvagePlan(ctx context.Context, id volume.ID, read bool, progress func(engine.Progress)) (engine.SalvagePlan, error)
	Upgrade(ctx context.Context, id volume.ID, binary string, progress func(engine.Progress)) (engine.Upgrade, error)
}

// Gate is what is asked of the gate.
type Gate interface {
	Why(ctx context.Context, id volume.ID) (detach.Report, error)
	Override(ctx context.Context, o detach.Override) error
	Salvage(ctx context.Context, o detach.Salvage, progress func(engine.Progress)) (receipt.Receipt, error)
}

// Book is what is asked of the receipt book.
type Book interface {
	Verify(raw []byte) (receipt.Receipt, error)
	VerifyChain(raws [][]byte) []receipt.Break
}

type named struct {
	Volume string `json:"volume"` // ID or the orchestrator's name
}

// fencing is an override of a volume that is named as people do.
type fencing struct {
	Volume string       `json:"volume"`
	Epoch  volume.Epoch `json:"epoch"`
	Reason string       `json:"reason"`
	Actor  string       `json:"actor"`
}

// upgrading asks for an upgrade of a volume that is named as people do.
type upgrading struct {
	Volume string `json:"volume"`
	Binary string `json:"binary"`
}

type none struct{}
