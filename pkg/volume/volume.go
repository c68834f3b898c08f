// Package volume is the vocabulary that every other package shares: volume and node names, epochs, sizes and attachments.
//
// It has no clock, goroutine, disk or network, and imports nothing of ours.
package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrInvalid is wrapped by every error that says a name or size cannot be used.
var ErrInvalid = errors.New("invalid")

// ID names a volume. It is safe as a file name: see [ParseID].
type ID string

// NodeID names a machine as the container orchestrator knows it.
type NodeID string

// Epoch is a writer's generation. It grows with every attach of a volume and never repeats; 0 means none.
type Epoch uint64

// Limits of names. NameMax and NodeMax are the limits of the CSI specification (section "Size Limits").
const (
	IDMax   = 63
	NameMax = 128
	NodeMax = 256
)

const idHashLen = 12

// ParseID returns s as an ID, or ErrInvalid unless s is 1 to 63 of a-z, 0-9 and '-', not starting or ending in '-'.
func ParseID(s string) (ID, error) {
	if s == "" {
		return "", fmt.Errorf("%w volume ID: missing", ErrInvalid)
	}
	if !plain(s) {
		return "", fmt.Errorf("%w volume ID %q: want 1 to %d of a-z, 0-9 and '-', starting and ending in a letter or digit", ErrInvalid, clip(s), IDMax)
	}
	return ID(s), nil
}

// IDForName returns the ID of the volume that carries the orchestrator's name: the name itself where it can be
// an ID, otherwise a readable rest of it and a hash of the whole. The same name always gives the same ID.
func IDForName(name string) (ID, error) {
	switch {
	case name == "":
		return "", fmt.Errorf("%w volume name: missing", ErrInvalid)
	case len(name) > NameMax:
		return "", fmt.Errorf("%w volume name %q: %d bytes, at most %d", ErrInvalid, clip(name), len(name), NameMax)
	case plain(name):
		return ID(name), nil
	}
	sum := sha256.Sum256([]byte(name))
	tail := hex.EncodeToString(sum[:])[:idHashLen]
	head := strings.Trim(strings.Map(plainRune, strings.ToLower(name)), "-")
	head = strings.Trim(head[:min(len(head), IDMax-idHashLen-1)], "-")
	if head == "" {
		return ID("vol-" + tail), nil
	}
	return ID(head + "-" + tail), nil
}

// ParseNodeID returns s as a NodeID, or ErrInvalid where it is empty, too long, no UTF-8 or holds control characters.
func ParseNodeID(s string) (NodeID, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("%w node ID: missing", ErrInvalid)
	case len(s) > NodeMax:
		return "", fmt.Errorf("%w node ID %q: %d bytes, at most %d", ErrInvalid, clip(s), len(s), NodeMax)
	case !utf8.ValidString(s): // it would be written and sent as something else
		return "", fmt.Errorf("%w node ID %q: no UTF-8", ErrInvalid, clip(s))
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("%w node ID %q: control characters", ErrInvalid, clip(s))
	}
	return NodeID(s), nil
}

// Attachment identifies one publication of a volume to a node: what ControllerPublish opened under Epoch.
// Engines that start anew within it use newer epochs; the attachment keeps the one it was opened with.
type Attachment struct {
	Volume ID     `json:"volume"`
	Node   NodeID `json:"node"`
	Epoch  Epoch  `json:"epoch"`
}

func (a Attachment) String() string {
	return fmt.Sprintf("volume %s on node %s (epoch %d)", a.Volume, a.Node, a.Epoch)
}

func plain(s string) bool {
	if len(s) > IDMax || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '-' && plainRune(r) != r || r > 0x7f })
}

func plainRune(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
		return r
	}
	return '-'
}

func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
