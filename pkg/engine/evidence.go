package engine

import (
	"bytes"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// ReplicaID is the stable name of one copy: a store, "osd.3", a replica's name.
type ReplicaID string

// Attestation says on whose word a fact rests.
type Attestation string

// Attestations, weakest first.
const (
	AttestNone    Attestation = ""        // nobody says it
	AttestClaim   Attestation = "claim"   // the primary or the client says it about the replica
	AttestReplica Attestation = "replica" // read from the replica itself, and it was proven which one that was
)

// FlushReach says how far a completed flush is known to reach.
type FlushReach string

// Reaches of a flush.
const (
	FlushUnknown FlushReach = ""
	FlushLocal   FlushReach = "local"  // the writer's copy only
	FlushInSync  FlushReach = "insync" // stable on every replica in sync at its completion
)

// FenceScope is the narrowest thing that can be shut out.
type FenceScope string

// Scopes of a fence.
const (
	FenceNone    FenceScope = ""
	FenceNode    FenceScope = "node"    // all volumes of a node at once
	FenceSession FenceScope = "session" // one attachment
)

// Capabilities are what an engine can do for a volume.
type Capabilities struct {
	Position, Digest Attestation
	Flush            FlushReach
	Fence            FenceScope
	FenceTTL         time.Duration // longest fence the engine keeps by itself; 0: for ever
	ReplicasMax      int
	BlockSizes       []int // logical block sizes of the device, the default first
	OnlineExpand     bool
	Thin             bool
	Repair           bool // mends a bad copy from a good one
	NodeLocal        bool // volumes live on the node that made them
	Snapshot         bool
	Clone            bool
	LiveUpgrade      bool
	Salvage          bool
}

// ReplicaState is a replica's standing.
type ReplicaState string

// States of a replica.
const (
	InSync      ReplicaState = "InSync"
	Rebuilding  ReplicaState = "Rebuilding"
	Stale       ReplicaState = "Stale"       // answers, and is not in the in-sync set
	Unreachable ReplicaState = "Unreachable" // does not answer
	Unknown     ReplicaState = "Unknown"     // answers, and what it says cannot be trusted: a damaged record, another incarnation
)

// Replica is one copy as the engine sees it now. Copies in one Domain fail together and count once towards safety.
type Replica struct {
	ID       ReplicaID    `json:"id"`
	Domain   string       `json:"domain"`
	Place    string       `json:"place"` // for people: directory, host
	State    ReplicaState `json:"state"`
	Progress float64      `json:"progress,omitempty"` // of a rebuild, 0 to 1
	Reason   string       `json:"reason,omitempty"`
}

// Position places a replica in the volume's history. Generations are equal or not, never ordered; Sequence orders
// within one, 0 is unknown.
type Position struct {
	Generation string `json:"generation"`
	Sequence   uint64 `json:"sequence"`
}

// Digest is a checksum of logical content. Two compare only where Algorithm, Scope and Bytes are equal.
type Digest struct {
	Algorithm string       `json:"algorithm,omitempty"` // empty: none taken
	Scope     string       `json:"scope,omitempty"`     // "full", or "delta:" and a snapshot
	Bytes     volume.Bytes `json:"bytes,omitempty"`
	Sum       HexBytes     `json:"sum,omitempty"`
}

// Comparable says whether equal sums mean equal content.
func (d Digest) Comparable(o Digest) bool {
	return d.Algorithm != "" && d.Algorithm == o.Algorithm && d.Scope == o.Scope && d.Bytes == o.Bytes
}

// Equal says that both are of the same content. Digests that do not compare are not equal.
func (d Digest) Equal(o Digest) bool { return d.Comparable(o) && bytes.Equal(d.Sum, o.Sum) }

// Evidence is what is known of one replica at a barrier.
type Evidence struct {
	Replica
	Incarnation string      `json:"incarnation,omitempty"` // random, new whenever the replica starts from nothing
	Position    Position    `json:"position"`
	PositionBy  Attestation `json:"positionBy,omitempty"`
	Digest      Digest      `json:"digest"`
	DigestBy    Attestation `json:"digestBy,omitempty"`
	// Durable: everything up to Position is on this replica's stable media.
	Durable bool `json:"durable"`
	// Lossy: it lost its cache with writes in it since it joined, and was made identical since.
	Lossy    bool         `json:"lossy,omitempty"`
	Verified volume.Bytes `json:"verified"` // read back from its media for this barrier
	At       time.Time    `json:"at"`
	Error    string       `json:"error,omitempty"` // why it could not answer; empty where it did
}

// Barrier is all that is known of a volume at one point of its history at which no writer can write.
type Barrier struct {
	Attachment volume.Attachment `json:"attachment"`
	Writer     volume.Epoch      `json:"writer"` // the epoch that collected it
	View       string            `json:"view"`   // the configuration in force; another one makes the barrier worthless
	// Clean: the writer itself drained and flushed. Otherwise it was fenced, and what it had acknowledged without a
	// flush may be gone.
	Clean    bool         `json:"clean"`
	Size     volume.Bytes `json:"size"`
	Replicas int          `json:"replicas"` // copies the volume should have
	Expected Digest       `json:"expected"` // what the engine itself expects; empty where it cannot know
	Evidence []Evidence   `json:"evidence"`
	Verified volume.Bytes `json:"verified"` // read back, all replicas together
	Repairs  []Repair     `json:"repairs,omitempty"`
	// Unresolved are ranges for which no copy can win.
	Unresolved []Finding `json:"unresolved,omitempty"`
	Head       []byte    `json:"head,omitempty"` // hash of the newest receipt in force before this barrier
	// Salvaged: the content is what a person decided for, and no receipt says so yet.
	Salvaged *Salvaged `json:"salvaged,omitempty"`
}

// Finding is a range of a replica that is not what it should be.
type Finding struct {
	Replica ReplicaID    `json:"replica,omitempty"` // empty: all of them
	Offset  volume.Bytes `json:"offset"`
	Length  volume.Bytes `json:"length"`
	Cause   string       `json:"cause"`
}

// Repair is a Finding that was mended, and from where.
type Repair struct {
	Finding
	From ReplicaID `json:"from"`
}

// Verification is the outcome of reading a whole volume again.
type Verification struct {
	Volume     volume.ID    `json:"volume"`
	Size       volume.Bytes `json:"size"`
	Read       volume.Bytes `json:"read"` // all replicas together
	Evidence   []Evidence   `json:"evidence"`
	Expected   Digest       `json:"expected"` // the seal's where sealed, else the writer's
	Sealed     bool         `json:"sealed"`
	Findings   []Finding    `json:"findings,omitempty"`   // not repaired
	Repairs    []Repair     `json:"repairs,omitempty"`    // repaired
	Unresolved []Finding    `json:"unresolved,omitempty"` // no copy can win
}

// Good says that every replica that should answer did, and holds what it should.
func (v Verification) Good() bool { return len(v.Findings) == 0 && len(v.Unresolved) == 0 }
