package detach

import (
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Access says how a volume is shown to its user.
type Access string

// Access types.
const (
	Mount Access = "mount"
	Block Access = "block"
)

// Phase is how far a volume has come on its node. A volume without an entry is detached from it.
//
//	(none) ──BeginStage──▶ staging ──FinishStage──▶ staged ──Unstage──▶ unstaging ──receipt in force──▶ (none)
//	                          └────────────────Unstage───────────────────▲
type Phase string

// Phases of an entry.
const (
	Staging   Phase = "staging"   // a device may exist, a mount may
	Staged    Phase = "staged"    // device and mount exist
	Unstaging Phase = "unstaging" // the way out has begun and is only left forwards
)

// Target is one place to which a staged volume is published.
type Target struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Entry is what the journal knows of one volume on this node.
type Entry struct {
	Attachment volume.Attachment `json:"attachment"`
	Staging    string            `json:"staging"` // the orchestrator's staging path
	Access     Access            `json:"access"`
	FSType     string            `json:"fsType,omitempty"`
	Flags      []string          `json:"flags,omitempty"` // mount flags
	ReadOnly   bool              `json:"readOnly,omitempty"`
	Device     string            `json:"device,omitempty"` // block device; empty until FinishStage
	Phase      Phase             `json:"phase"`
	Targets    []Target          `json:"targets,omitempty"`
	// Published says that it was published to a target at least once; Idle, when the last target went.
	Published bool      `json:"published,omitempty"`
	Idle      time.Time `json:"idle,omitzero"`
	// Unflushed is what the file system said when it could not write back: the receipt cannot be clean any more.
	Unflushed string `json:"unflushed,omitempty"`
	// Releasing names the run of the agent that may be writing back. A successor that finds it of another run cannot know
	// whether the kernel told that one of an error, which it tells once.
	Releasing string `json:"releasing,omitempty"`
	// Boot is the kernel's boot ID at the time of staging: mounts and devices of another boot are gone.
	Boot string `json:"boot,omitempty"`
}
