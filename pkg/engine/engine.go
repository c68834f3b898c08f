// Package engine is the contract between the driver and a replicated block engine: what an engine can do, must refuse, and must prove.
//
// Every method is idempotent, honours ctx, may be called concurrently, and survives the death of its caller at any
// point: calling again finishes or repeats the work. Errors wrap the sentinels of this package. An error that wraps
// none of them is an outcome unknown: observe again, never assume.
package engine

import (
	"context"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Control is the controller's half: it decides and proves, and never touches a device.
type Control interface {
	// Capabilities states what the engine can do for volumes with these parameters; the driver never guesses.
	// ErrInvalid names a parameter that is unknown or malformed.
	Capabilities(ctx context.Context, parameters map[string]string) (Capabilities, error)

	// Create makes a volume that reads as zeros. The same Spec again returns the same volume; another Spec under
	// the same ID is ErrExists. ErrInvalid, ErrOutOfRange or ErrNoSpace leave nothing behind.
	Create(ctx context.Context, s Spec) (Volume, error)
	// Delete removes the volume; an unknown one is no error. ErrAttached while published or not sealed.
	Delete(ctx context.Context, id volume.ID) error
	// Get describes a volume. ErrNotFound only where a majority of its replicas' places could be read and know nothing
	// of it; ErrUnavailable where that cannot be told. A volume that can be described but not used has its State say so.
	Get(ctx context.Context, id volume.ID) (Volume, error)
	// List describes every volume, ordered by ID.
	List(ctx context.Context) ([]Volume, error)
	// Capacity says how much can be promised to new volumes with these parameters.
	Capacity(ctx context.Context, parameters map[string]string) (Capacity, error)
	// Expand grows the volume, online where it is attached, to at least size; never shrinks. The node half's
	// Resize shows the new size to the kernel.
	Expand(ctx context.Context, id volume.ID, size volume.Bytes) (Volume, error)
	// SetFormat records, at a majority, how far the volume's filesystem has come. Its stage never goes back; Doubt is set as it is
	// given.
	SetFormat(ctx context.Context, id volume.ID, f Format) error

	// Publish opens a new epoch in which node may attach. The same node and options again return the open
	// attachment; ErrExists where the options differ; ErrAttached where it is open to another node or not
	// sealed; ErrQuarantined where copies disagree.
	Publish(ctx context.Context, id volume.ID, node volume.NodeID, o PublishOptions) (volume.Attachment, error)
	// Unpublish closes the attachment. ErrNotSealed while a writer of it may still write or no receipt was kept.
	// An attachment that is closed already, or was never open, is no error.
	Unpublish(ctx context.Context, a volume.Attachment) error

	// Fence shuts out every writer of the attachment and of all older ones, dead, alive or asleep, reconnects
	// included, and takes the writer's place without a device. ErrAttached where that writer is alive and o does not
	// say that it may be killed. It stays in place until Seal.
	Fence(ctx context.Context, a volume.Attachment, o FenceOptions) (FenceProof, error)
	// Evidence makes everything acknowledged durable, reads back what was written since the last verification, repairs
	// what has a good copy, and tells what each replica says of itself. It needs a writer that Node.Barrier has
	// stopped, or Fence; ErrNotStopped otherwise. progress may be nil. Where the membership changed meanwhile it
	// starts over. Cancelling ctx stops the waiting, not the work: the next call joins it.
	Evidence(ctx context.Context, a volume.Attachment, progress func(Progress)) (Barrier, error)
	// Seal ends the writer's epoch at a majority and keeps the receipt, opaque bytes, there: both or neither is in
	// force. b must be the newest Barrier; ErrStaleEpoch where anything has happened since. The same call again is no error.
	Seal(ctx context.Context, b Barrier, receipt []byte) error
	// Receipts returns the kept receipts of the volume, oldest first, and only those whose seal is in force.
	Receipts(ctx context.Context, id volume.ID) ([][]byte, error)
	// Quarantine records at a majority that copies disagree and nobody can tell which is right.
	Quarantine(ctx context.Context, a volume.Attachment, b Barrier) error

	// Verify reads every replica of the volume again and compares it with its checksums and with the others. Where the
	// volume is attached it also repairs. ErrBusy where an attach interrupted it.
	Verify(ctx context.Context, id volume.ID, progress func(Progress)) (Verification, error)
	// Rebuild brings replicas that are not in sync back, and returns when all are or ctx ends.
	Rebuild(ctx context.Context, id volume.ID, progress func(Progress)) error

	// SalvagePlan tells what each replica of the volume holds, whether the volume comes up by the rules, and what a person may
	// decide where it does not. It changes nothing. read: every block of every replica is read and compared with its checksum. ErrNotFound
	// only where no replica is left of the volume; ErrUnavailable where that cannot be told.
	SalvagePlan(ctx context.Context, id volume.ID, read bool, progress func(Progress)) (SalvagePlan, error)
	// Salvage makes one replica what the volume is, by a person's decision, where the rules do not bring it up: under an epoch
	// above everything that can be, in force at a majority of the replicas that are there, so that no older truth comes back.
	// The barrier says what was found and given up; it is for a forced receipt. Until Seal the volume is quarantined, and the same
	// call again goes on. ErrNotNeeded where the rules suffice, ErrAttached where the volume has a writer, ErrInvalid where the
	// replica is not one of the plan's choices, ErrUnavailable where it cannot be read or written. Cancelling ctx stops the waiting, not the work.
	Salvage(ctx context.Context, id volume.ID, o SalvageOrder, progress func(Progress)) (Barrier, error)

	// CreateSnapshot, DeleteSnapshot, Clone and Upgrade have their place here; an engine that does not state
	// the capability answers ErrUnsupported.
	CreateSnapshot(ctx context.Context, id volume.ID, snapshot string) error
	DeleteSnapshot(ctx context.Context, id volume.ID, snapshot string) error
	Clone(ctx context.Context, source volume.ID, snapshot string, s Spec) (Volume, error)
	// Upgrade has an engine of another program serve the attached volume, without the workload noticing more than a
	// pause. Where that one cannot serve the old one serves on, and the error says why. progress may be nil.
	Upgrade(ctx context.Context, id volume.ID, binary string, progress func(Progress)) (Upgrade, error)
}

// Node is the node's half: the path of the data.
type Node interface {
	// Attach makes this node's engine the writer within the attachment: it fences older writers, recovers, and shows
	// a block device. Where the writer before had not flushed, the same commit puts the volume's filesystem in doubt:
	// see Format.AfterUnclean. Attaching again returns the same device. ErrStaleEpoch where the attachment is not the open one,
	// ErrUnavailable where too few replicas answer, ErrDeviceLost where a device of this attachment was lost and its
	// remains have not been detached, ErrQuarantined where copies disagree.
	Attach(ctx context.Context, a volume.Attachment) (Device, error)
	// Attached returns the device of the volume on this node: ErrNotFound where it has none, ErrDeviceLost where its
	// engine died and the device answers nothing but errors.
	Attached(ctx context.Context, id volume.ID) (Device, error)
	// Barrier stops the writer: it drains the requests in flight, flushes every in-sync replica, and refuses writes
	// afterwards. The device stays, readable. ErrDeviceLost where it is gone.
	Barrier(ctx context.Context, a volume.Attachment) error
	// Detach removes the device and ends its engine. ErrNotSealed where the epoch has no seal, unless the device is
	// lost. No device is no error.
	Detach(ctx context.Context, a volume.Attachment) error
	// Resize lets the kernel see the volume's present size.
	Resize(ctx context.Context, a volume.Attachment) error
}

// Spec is what a volume was asked to be. Parameters are the StorageClass's, without those of the driver itself.
type Spec struct {
	ID         volume.ID         `json:"id"`
	Name       string            `json:"name"`
	Size       volume.Bytes      `json:"size"`
	Parameters map[string]string `json:"parameters,omitempty"`
	// Labels are the driver's own facts, kept with the volume and returned as they are. At most 1 KiB as JSON.
	Labels map[string]string `json:"labels,omitempty"`
}

// State says what can be done with a volume now.
type State string

// States of a volume.
const (
	Healthy     State = "Healthy"     // every replica in sync
	Degraded    State = "Degraded"    // usable, with fewer replicas in sync than it should have
	Unavailable State = "Unavailable" // too few replicas answer; nothing is lost
	Quarantined State = "Quarantined" // copies disagree and nobody can tell which is right
)

// Volume describes a volume at one moment.
type Volume struct {
	Spec
	State  State  `json:"state"`
	Reason string `json:"reason,omitempty"` // why State is not Healthy
	Format Format `json:"format"`
	// Attachment is the open publication, nil where there is none. Options are those it was opened with.
	Attachment *volume.Attachment `json:"attachment,omitempty"`
	Options    PublishOptions     `json:"options,omitzero"`
	// Staged says that a writer has attached within the open attachment.
	Staged bool `json:"staged,omitempty"`
	// Sealed says that no writer of any epoch so far can write any more.
	Sealed bool `json:"sealed"`
	// Writer is the newest writer's epoch.
	Writer   volume.Epoch    `json:"writer"`
	Digest   Digest          `json:"digest"`          // as the seal has it; empty while not sealed
	Nodes    []volume.NodeID `json:"nodes,omitempty"` // nodes that can attach it; empty: any
	Replicas []Replica       `json:"replicas"`
	// Process serves the volume's device, nil where it has none.
	Process *Process `json:"process,omitempty"`
	// Head is the hash of the newest receipt in force, the link of the next one. Empty where there is none.
	Head []byte `json:"head,omitempty"`
}

// Format says how far a volume's filesystem has come. The zero value: never formatted.
type Format struct {
	Stage  FormatStage `json:"stage,omitempty"`
	FSType string      `json:"fsType,omitempty"`
	// Doubt is what is held against it. The engine raises it; a check of the filesystem settles it.
	Doubt Doubt `json:"doubt,omitempty"`
}

// Doubt says why a filesystem must be checked before it is mounted.
type Doubt string

// Doubts.
const (
	NoDoubt   Doubt = ""
	Unchecked Doubt = "unchecked" // a writer died or was shut out before it had flushed
	Damaged   Doubt = "damaged"   // a check found what replaying its journal does not mend
)

// AfterUnclean is the format once a writer has attached behind one that had not flushed.
func (f Format) AfterUnclean() Format {
	if f.Stage == Formatted && f.Doubt == NoDoubt {
		f.Doubt = Unchecked
	}
	return f
}

// FormatStage orders the stages of formatting.
type FormatStage string

// Stages of formatting. mkfs may run only in Unformatted, where the volume holds no data, and in Formatting, where it
// was never mounted.
const (
	Unformatted FormatStage = ""
	Formatting  FormatStage = "formatting"
	Formatted   FormatStage = "formatted"
)

// PublishOptions are what a publication was asked for; opaque to the engine except ReadOnly.
type PublishOptions struct {
	ReadOnly bool   `json:"readOnly,omitempty"`
	Mode     string `json:"mode,omitempty"` // the access mode's name
}

// FenceOptions bound what Fence may do.
type FenceOptions struct {
	// Kill allows ending a writer that is alive.
	Kill bool
	// Reason is why the writer is believed to be gone; kept in logs.
	Reason string
}

// FenceProof says who refuses the fenced writers from now on.
type FenceProof struct {
	Epoch   volume.Epoch `json:"epoch"` // every writer of an older epoch is refused
	Witness []ReplicaID  `json:"witness"`
}

// Device is a volume's block device on this node.
type Device struct {
	Path      string       `json:"path"`
	Size      volume.Bytes `json:"size"`
	BlockSize int          `json:"blockSize"`
	Writer    volume.Epoch `json:"writer"` // the epoch its engine attached with
	Blank     bool         `json:"blank"`  // no block of the volume holds anything but zeros
	// Unclean says that the previous writer within any attachment was shut out before it had flushed.
	Unclean bool `json:"unclean,omitempty"`
	// Stalled says why requests wait now, empty where they do not.
	Stalled string `json:"stalled,omitempty"`
	// Process serves the device; nil where the engine has no process for it.
	Process *Process `json:"process,omitempty"`
}

// Process is the engine process of a device.
type Process struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"` // 0 while none serves
	Since   time.Time `json:"since"`
	// Deaths is how many processes of this device ended unasked and were followed by another.
	Deaths int `json:"deaths,omitempty"`
	// Pause is how long requests waited when processes last changed.
	Pause time.Duration `json:"pause,omitempty"`
}

// Upgrade is the outcome of an upgrade.
type Upgrade struct {
	Volume volume.ID `json:"volume"`
	From   string    `json:"from"` // version
	To     string    `json:"to"`
	// Pause is how long requests waited.
	Pause time.Duration `json:"pause"`
}

// Capacity is what can be promised to new volumes.
type Capacity struct {
	Available volume.Bytes `json:"available"`
	Largest   volume.Bytes `json:"largest"` // largest single volume
	Smallest  volume.Bytes `json:"smallest"`
}

// Progress of a long piece of work. Total may grow while it runs.
type Progress struct {
	Phase string       `json:"phase"` // drain, flush, verify, seal, rebuild, recover
	Done  volume.Bytes `json:"done"`
	Total volume.Bytes `json:"total"`
	Since time.Time    `json:"since"`
}
