package detach

import (
	"context"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// DeviceState is what the node's engine says of a volume's block device.
type DeviceState string

// States of a device.
const (
	DeviceNone    DeviceState = "none"    // provably none
	DeviceAlive   DeviceState = "alive"   // serves, or stalls
	DeviceLost    DeviceState = "lost"    // answers nothing but errors
	DeviceUnknown DeviceState = "unknown" // could not be told; taken for alive
)

// JobStatus is the state of the work that ends in a receipt.
type JobStatus struct {
	Running  bool            `json:"running"`
	Since    time.Time       `json:"since,omitzero"` // of this run
	Progress engine.Progress `json:"progress,omitzero"`
	Failed   string          `json:"failed,omitempty"` // why the newest finished run failed
}

// NodeStatus is what a node says of a volume.
type NodeStatus struct {
	Node   volume.NodeID `json:"node"`
	Entry  *Entry        `json:"entry,omitempty"` // nil: the journal has none
	Device DeviceState   `json:"device"`
	Path   string        `json:"path,omitempty"` // of the device
	// Stalled says why requests to the device wait now, empty where they do not.
	Stalled string `json:"stalled,omitempty"`
	// Process serves the device, nil where that is not known.
	Process *engine.Process `json:"process,omitempty"`
	// Rebooted says that the entry is from before the machine's last start: its mounts are gone.
	Rebooted bool `json:"rebooted,omitempty"`
	// Idle is how long ago the last target went; 0 where there are targets or never were any.
	Idle           time.Duration `json:"idle,omitempty"`
	ForgottenAfter time.Duration `json:"forgottenAfter"`
	Job            JobStatus     `json:"job,omitzero"`
	Holders        []string      `json:"holders,omitempty"` // mounts and processes that use it, for people
	Error          string        `json:"error,omitempty"`   // what could not be told, and why
}

// AgentClient is the gate's way to a node. *Agent is one; so is a client of it on another machine.
type AgentClient interface {
	// Status tells what the node knows of the volume. An error means that the node did not answer.
	Status(ctx context.Context, id volume.ID) (NodeStatus, error)
	// Finish ends the attachment from the journal, where the orchestrator forgot to: see Agent.Finish.
	Finish(ctx context.Context, a volume.Attachment) error
}
