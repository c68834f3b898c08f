package detach

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// GateConfig is what a Gate needs. Required unless said otherwise.
type GateConfig struct {
	Control engine.Control
	Book    *receipt.Book
	// Agents returns the way to a node's agent; an error where the node cannot be asked.
	Agents func(volume.NodeID) (AgentClient, error)

	// Lost says that a node is lost, and why that is believed; only a node that does not answer is asked about.
	// Optional: nil on a single machine.
	Lost func(ctx context.Context, node volume.NodeID) (reason string, lost bool)
	// Overrides returns an operator's override for the attachment, if there is one. Optional.
	Overrides func(ctx context.Context, a volume.Attachment) (Override, bool)

	Clock         func() time.Time // optional: time.Now
	Log           *slog.Logger     // optional: silent
	Events        Events           // optional
	StatusTimeout time.Duration    // optional: StatusTimeout
}

// StatusTimeout is how long a node may take to answer before it counts as silent.
const StatusTimeout = 5 * time.Second

// Override is an operator's word to let go of a volume although the gate says no. It is good for one epoch, hence once.
type Override struct {
	Volume volume.ID    `json:"volume"`
	Epoch  volume.Epoch `json:"epoch"` // of the attachment
	Reason string       `json:"reason"`
	Actor  string       `json:"actor"`
}

// Gate is the controller's half: it decides whether a detach may finish. Safe for concurrent use.
type Gate struct{}

// NewGate returns a gate. Call Close at the end.
func NewGate(c GateConfig) (*Gate, error) { return nil, errors.ErrUnsupported }

// Unpublish is ControllerUnpublish: on nil the volume is provably not attached to the node (to any node where node is
// empty), by a receipt in force or because no writer attached. See Decide for all answers. Work that it starts goes on
// when ctx ends: ErrInProgress then.
func (g *Gate) Unpublish(ctx context.Context, id volume.ID, node volume.NodeID) error {
	return errors.ErrUnsupported
}

// Override fences the volume's writers, alive or not, and puts a forced receipt in force, even where copies
// disagree. ErrOverride unless o names the open attachment's epoch, a reason and an actor. engine.ErrUnavailable where
// too few replicas answer to fence. Unpublish answers OK afterwards.
func (g *Gate) Override(ctx context.Context, o Override) error { return errors.ErrUnsupported }

// Why tells who holds the volume, who said what, and what to do next.
func (g *Gate) Why(ctx context.Context, id volume.ID) (Report, error) {
	return Report{}, errors.ErrUnsupported
}

// Close stops the gate's jobs, which the next Unpublish begins again, and waits for them.
func (g *Gate) Close() {}

// Report is what Why found.
type Report struct {
	Volume     engine.Volume    `json:"volume"`
	Node       *NodeStatus      `json:"node,omitempty"`      // nil: not asked, or silent
	NodeError  string           `json:"nodeError,omitempty"` // why the node is silent
	Receipts   int              `json:"receipts"`            // in force
	Receipt    *receipt.Receipt `json:"receipt,omitempty"`   // the newest in force
	ReceiptErr string           `json:"receiptError,omitempty"`
	Detached   bool             `json:"detached"` // nothing holds the volume
	Answer     string           `json:"answer"`   // what an Unpublish would answer now
	Because    string           `json:"because"`
	Next       string           `json:"next"` // what to do
}

// Text is the report on one screen.
func (r Report) Text() string { return "" }
