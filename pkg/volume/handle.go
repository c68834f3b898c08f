package volume

import (
	"fmt"
	"strings"
)

// handleAt stands between the volume and its node. No ID has one in it, and no node's name of the orchestrators that we know.
const handleAt = "@"

// HandleMax is the limit of the CSI specification for a volume_id (section "Size Limits").
const HandleMax = 128

// Handle is how the orchestrator of several machines names a volume whose replicas are all on node: "ID@NODE". ErrInvalid
// where that is too long.
func Handle(id ID, node NodeID) (string, error) {
	h := string(id) + handleAt + string(node)
	if len(h) > HandleMax {
		return "", fmt.Errorf("%w volume handle %q: %d bytes, at most %d; the node needs a shorter name", ErrInvalid, clip(h), len(h), HandleMax)
	}
	return h, nil
}

// ParseHandle reads a handle, or the ID of a volume that belongs to no one machine: node is empty then.
func ParseHandle(s string) (id ID, node NodeID, err error) {
	head, tail, at := strings.Cut(s, handleAt)
	if id, err = ParseID(head); err != nil || !at {
		return id, "", err
	}
	node, err = ParseNodeID(tail)
	return id, node, err
}
