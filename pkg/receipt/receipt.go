// Package receipt is the durable, signed proof of a finished detach, and the book that signs, reads and chains such proofs.
//
// A receipt is evidence, never a permission: safety rests on the fence of the next attach. It is one JSON object in
// canonical form (see [Parse]), so that the same facts are always the same bytes and its hash can be a link of a chain.
package receipt

import (
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Version is the version of the format that this package writes.
const Version = 1

// Kind says how a detach ended.
type Kind string

// Kinds, the strongest last: where several apply, the last of them is the receipt's.
const (
	Clean    Kind = "clean"    // the writer flushed, and every replica that the volume should have agrees
	Degraded Kind = "degraded" // fewer replicas in sync than the volume should have
	Fenced   Kind = "fenced"   // the writer was shut out before it had flushed: what it had not synced may be gone
	Forced   Kind = "forced"   // an operator overrode the gate
)

// KindOf is the precedence of kinds: forced over fenced over degraded over clean. flushed says that the writer itself
// flushed; whole, that as many replicas are in sync as the volume should have.
func KindOf(forced, flushed, whole bool) Kind {
	switch {
	case forced:
		return Forced
	case !flushed:
		return Fenced
	case !whole:
		return Degraded
	}
	return Clean
}

// Receipt is what the gate signs when a detach has finished. Field order is the order of the canonical form: fields
// are only ever added, with omitempty, and an incompatible change is a new Version.
type Receipt struct {
	Version    int               `json:"version"`
	Kind       Kind              `json:"kind"`
	Name       string            `json:"name"` // the orchestrator's name of the volume
	Attachment volume.Attachment `json:"attachment"`
	Writer     volume.Epoch      `json:"writer"` // the epoch that collected the evidence; every writer up to it is shut out
	View       string            `json:"view"`   // the configuration that was in force
	// Clean says that the writer itself flushed and the file system wrote everything back.
	Clean    bool            `json:"clean"`
	Size     volume.Bytes    `json:"size"`
	Replicas int             `json:"replicas"` // copies the volume should have
	Expected engine.Digest   `json:"expected"` // what the engine itself expected
	Evidence []Replica       `json:"evidence"`
	Verified volume.Bytes    `json:"verified"`          // read back from media, all replicas together
	Repairs  []engine.Repair `json:"repairs,omitempty"` // at most ListMax of them, RepairCount in all
	// RepairCount and UnresolvedCount are the numbers found, of which the lists hold the first.
	RepairCount     int              `json:"repairCount,omitempty"`
	Unresolved      []engine.Finding `json:"unresolved,omitempty"` // only ever in a forced receipt
	UnresolvedCount int              `json:"unresolvedCount,omitempty"`
	// Salvaged: the content is what a person decided for, and what that gave up. Only ever in a forced receipt.
	Salvaged *engine.Salvaged `json:"salvaged,omitempty"`
	Reason   string           `json:"reason,omitempty"` // why the writer was fenced, or the override's reason
	Actor    string           `json:"actor,omitempty"`  // who overrode
	At       time.Time        `json:"at"`               // wall clock of the signer, UTC, whole milliseconds
	Previous engine.HexBytes  `json:"previous,omitempty"`
	Key      string           `json:"key"` // who signed: see KeyID
}

// Replica is what one replica said of itself.
type Replica struct {
	ID          engine.ReplicaID    `json:"id"`
	Domain      string              `json:"domain,omitempty"`
	Place       string              `json:"place,omitempty"`
	State       engine.ReplicaState `json:"state"`
	Incarnation string              `json:"incarnation,omitempty"`
	Position    engine.Position     `json:"position"`
	PositionBy  engine.Attestation  `json:"positionBy,omitempty"`
	Digest      engine.Digest       `json:"digest"`
	DigestBy    engine.Attestation  `json:"digestBy,omitempty"`
	Durable     bool                `json:"durable"`
	Lossy       bool                `json:"lossy,omitempty"`
	Verified    volume.Bytes        `json:"verified,omitempty"`
	Error       string              `json:"error,omitempty"`
}
