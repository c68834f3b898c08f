package engine

import (
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Outlook says whether a volume comes up by the rules alone.
type Outlook string

// Outlooks. Only the last two leave anything to decide.
const (
	OutlookInUse   Outlook = "in use"         // it is attached: it came up
	OutlookComesUp Outlook = "comes up"       // the next attach needs nobody's help
	OutlookWaits   Outlook = "waits"          // for replicas that are away; waiting loses nothing
	OutlookStuck   Outlook = "cannot come up" // whoever comes back: a person decides, or nobody can
)

// SalvagePlan is what every replica of a volume holds, whether the volume comes up by the rules, and what a person may decide where
// it does not. Modification times and file sizes play no part in it.
type SalvagePlan struct {
	Volume   volume.ID    `json:"volume"`
	Name     string       `json:"name"`
	Size     volume.Bytes `json:"size"`
	Outlook  Outlook      `json:"outlook"`
	Because  string       `json:"because"`
	WaitsFor []Replica    `json:"waitsFor,omitempty"` // away; one or more of them would bring it up
	// Newest is the newest configuration that any replica shows. Certain says that a majority was seen, so that no newer one was ever in force.
	Newest  string          `json:"newest"`
	Certain bool            `json:"certain"`
	Writer  volume.Epoch    `json:"writer"`            // newest writer that any replica knows of
	Since   time.Time       `json:"since,omitzero"`    // when that one attached
	Sealed  Digest          `json:"sealed,omitzero"`   // content that the newest receipt speaks of
	Head    HexBytes        `json:"head,omitempty"`    // hash of that receipt
	Receipt []byte          `json:"receipt,omitempty"` // that receipt, where any store that is there has it
	Read    volume.Bytes    `json:"read"`              // read for this plan, all replicas together
	Copies  []SalvageCopy   `json:"copies"`
	Choices []SalvageChoice `json:"choices,omitempty"` // empty where there is nothing to decide, or nothing to decide from
	// Salvaged is the newest salvage of this volume. Pending: it was decided and not finished; the same order again finishes it.
	Salvaged *Salvaged `json:"salvaged,omitempty"`
	Pending  bool      `json:"pending,omitempty"`
}

// SalvageCopy is one replica as it was found.
type SalvageCopy struct {
	Replica
	Incarnation string `json:"incarnation,omitempty"`
	// Admitted: the newest configuration names this very replica as a voter. Member: and as one that holds everything reported stable.
	Admitted bool `json:"admitted"`
	Member   bool `json:"member"`
	// Readable: its record and its content can be read. Why not is in Reason.
	Readable      bool         `json:"readable"`
	Doubtful      bool         `json:"doubtful,omitempty"` // its record is damaged, and what is shown may not be its newest
	Configuration string       `json:"configuration,omitempty"`
	Promised      volume.Epoch `json:"promised,omitempty"`
	Writer        volume.Epoch `json:"writer,omitempty"` // newest writer it knows of
	Since         time.Time    `json:"since,omitzero"`   // when that one attached
	Clean         bool         `json:"clean"`            // that writer had flushed
	Sealed        bool         `json:"sealed"`
	Lossy         bool         `json:"lossy,omitempty"` // lost its cache with writes in it
	Dirty         int          `json:"dirty"`           // regions that were being written
	Allocated     volume.Bytes `json:"allocated"`       // for people; no criterion
	Digest        Digest       `json:"digest,omitzero"` // by its own sums; of its dirty regions they say nothing
	// AsReceipt: Digest is the one that the newest receipt speaks of.
	AsReceipt bool `json:"asReceipt"`
	// Differs counts what is not as in the first member that can be read, by sums and checksums.
	DiffersFrom    ReplicaID `json:"differsFrom,omitempty"`
	DiffersRegions int       `json:"differsRegions"`
	DiffersBlocks  int       `json:"differsBlocks"`
	// Wrong and Unreadable count blocks, where everything was read: those that are not what their checksum says, and those that gave an error.
	Wrong      int `json:"wrong"`
	Unreadable int `json:"unreadable"`
}

// SalvageChoice is a replica that a person may decide for, and exactly what is lost or risked by it.
type SalvageChoice struct {
	From          ReplicaID `json:"from"`
	Place         string    `json:"place"`
	Configuration string    `json:"configuration"`
	// LostBlocks are known to hold newer content elsewhere, in LostRegions regions: that content is given up.
	LostBlocks  int      `json:"lostBlocks"`
	LostRegions int      `json:"lostRegions"`
	Loses       []string `json:"loses"` // sentences; empty: nothing that is known of
}

// SalvageOrder is a person's decision.
type SalvageOrder struct {
	From   ReplicaID `json:"from"`
	Reason string    `json:"reason"`
	// Kill allows giving up a device that stands still: its engine is ended, and who uses it sees errors.
	Kill bool `json:"kill,omitempty"`
}

// Salvaged is the durable trace of a salvage: it is in the volume's configuration and in the forced receipt.
type Salvaged struct {
	Epoch         volume.Epoch `json:"epoch"`
	From          ReplicaID    `json:"from"`
	Place         string       `json:"place,omitempty"`
	Configuration string       `json:"configuration"` // that the chosen replica held
	Newest        string       `json:"newest"`        // the newest that was seen then
	Replicas      int          `json:"replicas"`      // copies that the volume had been given
	LostBlocks    int          `json:"lostBlocks,omitempty"`
	Lost          string       `json:"lost,omitempty"` // what was given up or is in doubt
}
