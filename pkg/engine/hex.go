package engine

import (
	"encoding/hex"
	"fmt"
)

// HexBytes is a byte string that reads and writes itself as lower-case hexadecimal.
type HexBytes []byte

// MarshalText implements encoding.TextMarshaler.
func (h HexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *HexBytes) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("hexadecimal: %w", err)
	}
	*h = b
	return nil
}

func (h HexBytes) String() string { return hex.EncodeToString(h) }
