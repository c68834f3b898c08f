package mirror

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// attributes are what a configuration says of its volume beyond the protocol; JSON in the record.
type attributes struct {
	Name       string                `json:"name"`
	Parameters map[string]string     `json:"parameters,omitempty"`
	Labels     map[string]string     `json:"labels,omitempty"`
	Format     engine.Format         `json:"format,omitzero"`
	Node       volume.NodeID         `json:"node,omitempty"` // of the open attachment
	Options    engine.PublishOptions `json:"options,omitzero"`
	// Unresolved are the findings for which the volume was quarantined.
	Unresolved []engine.Finding `json:"unresolved,omitempty"`
	// Since is when the newest writer attached.
	Since time.Time `json:"since,omitzero"`
	// Salvaged is the newest salvage. Pending: no receipt tells of it yet.
	Salvaged *engine.Salvaged `json:"salvaged,omitempty"`
	Pending  bool             `json:"pending,omitempty"`
}

// pendingOf is the salvage of which no receipt tells yet.
func pendingOf(c quorum.Config) *engine.Salvaged {
	if a := attributesOf(c); a.Pending {
		return a.Salvaged
	}
	return nil
}

// attributesOf reads a configuration's attributes. They were written by us and are covered by the record's checksum; what
// cannot be read reads as nothing.
func attributesOf(c quorum.Config) (a attributes) {
	if json.Unmarshal(c.Attributes, &a) != nil {
		return attributes{}
	}
	return a
}

// withAttributes returns c with a, or ErrInvalid where they are too long.
func withAttributes(c quorum.Config, a attributes) (quorum.Config, error) {
	raw, err := json.Marshal(a)
	if err != nil {
		return c, fmt.Errorf("attributes of a volume: %w", err)
	}
	if len(raw) > quorum.AttributesMax {
		return c, fmt.Errorf("%w: name, parameters and labels take %d bytes, at most %d fit", engine.ErrInvalid, len(raw), quorum.AttributesMax)
	}
	c.Attributes = raw
	return c, nil
}

// editAttributes changes the attributes of c.
func editAttributes(c *quorum.Config, edit func(*attributes)) error {
	a := attributesOf(*c)
	edit(&a)
	next, err := withAttributes(*c, a)
	if err == nil {
		*c = next
	}
	return err
}
