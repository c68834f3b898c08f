package detach

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Releaser takes a volume's mounts away and proves that nothing holds its device.
type Releaser interface {
	// Release syncs the file system through the descriptor opened at staging, unmounts every target that is left and
	// the staging path, and proves that nothing holds the device. Never lazily, never by force. Doing it
	// again, or where nothing is mounted, is no error. Where d is DeviceLost or DeviceNone it does not sync and
	// unmounts all the same. ErrHeld where somebody uses a mount or the device; engine.ErrDeviceLost where the device
	// died meanwhile; ErrWriteback, once, where data could not be written back: it is called again then.
	Release(ctx context.Context, e Entry, d DeviceState) error
	// Holders lists, for people, the mounts and processes that use the volume now.
	Holders(ctx context.Context, e Entry) []string
}

// ForgottenAfter is how long after the last target went a staged volume counts as forgotten by the orchestrator:
// kubelet unstages within seconds, and tries again for ever where that fails.
const ForgottenAfter = time.Minute

// AgentConfig is what an Agent needs. Required unless said otherwise.
type AgentConfig struct {
	Node     volume.NodeID
	Engine   engine.Node
	Control  engine.Control
	Journal  *Journal
	Releaser Releaser
	Book     *receipt.Book

	Clock          func() time.Time // optional: time.Now
	Log            *slog.Logger     // optional: silent
	Events         Events           // optional
	ForgottenAfter time.Duration    // optional: ForgottenAfter
	Boot           string           // optional: the kernel's boot ID
}

// Agent is the node's half: it keeps the stage journal and does the work that ends in a receipt, as one job a
// volume that outlives the call which began it. Safe for concurrent use.
type Agent struct{}

// NewAgent returns an agent. Call Resume before the first request, and Close at the end.
func NewAgent(c AgentConfig) (*Agent, error) { return nil, errors.ErrUnsupported }

// BeginStage notes durably that the volume is about to be staged; Phase, Boot and what the journal itself keeps are
// set here. The same staging again is no error. Where the way out had begun, or an entry of an older attachment is left,
// that is finished first. ErrHeld where it is staged elsewhere; engine.ErrExists where it is staged in another way; else
// the errors of Unstage.
func (a *Agent) BeginStage(ctx context.Context, e Entry) error { return errors.ErrUnsupported }

// FinishStage notes that device and mount exist. engine.ErrNotFound without an entry.
func (a *Agent) FinishStage(ctx context.Context, id volume.ID, device string) error {
	return errors.ErrUnsupported
}

// AddTarget notes durably that the volume is about to be published to t. ErrInProgress where the way out has begun,
// engine.ErrNotFound where the volume is not staged.
func (a *Agent) AddTarget(ctx context.Context, id volume.ID, t Target) error {
	return errors.ErrUnsupported
}

// RemoveTarget notes that nothing is mounted at path any more. An unknown path or volume is no error.
func (a *Agent) RemoveTarget(ctx context.Context, id volume.ID, path string) error {
	return errors.ErrUnsupported
}

// Entry returns the journal's entry; false where there is none. ErrJournal where it is damaged.
func (a *Agent) Entry(id volume.ID) (Entry, bool, error) { return Entry{}, false, errors.ErrUnsupported }

// Unstage takes the volume off this node: release, barrier, evidence, judgement, receipt, detach. On nil a receipt is in
// force, or no writer ever attached, and the journal has no entry. The work goes on when ctx ends: ErrInProgress then, and
// the next call joins it. A failed run starts again with the next call. ErrHeld, ErrDataLoss, ErrJournal,
// engine.ErrUnavailable.
func (a *Agent) Unstage(ctx context.Context, id volume.ID, staging string) error {
	return errors.ErrUnsupported
}

// Finish is Unstage without the orchestrator: from the journal, and only where that proves that nobody else will
// do it (see Finishable); ErrHeld otherwise.
func (a *Agent) Finish(ctx context.Context, at volume.Attachment) error { return errors.ErrUnsupported }

// Resume continues what the last process left unfinished, without waiting for it, and logs what else it finds: call
// it once at the start. Its error names the damaged entries; everything else is resumed all the same.
func (a *Agent) Resume(ctx context.Context) error { return errors.ErrUnsupported }

// Status tells what this node knows of the volume. It never waits for a job.
func (a *Agent) Status(ctx context.Context, id volume.ID) (NodeStatus, error) {
	return NodeStatus{}, errors.ErrUnsupported
}

// Close stops the jobs, which the next process resumes, and waits for them.
func (a *Agent) Close() {}

// Journal is the durable record of what is staged on this node: one file a volume, replaced atomically. Safe for
// concurrent use on different volumes.
type Journal struct{}

// OpenJournal returns the journal in dir, which it makes where needed.
func OpenJournal(fs vfs.FS, dir string) (*Journal, error) { return nil, errors.ErrUnsupported }
