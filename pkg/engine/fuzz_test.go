package engine

import (
	"bytes"
	"encoding/json"
	"testing"
)

// FuzzHexBytes: bytes read as what they were written, and what is no hexadecimal is refused.
func FuzzHexBytes(f *testing.F) {
	f.Add([]byte{0, 1, 0xff}, "0001ff")
	f.Add([]byte{}, "0")
	f.Add([]byte(nil), "zz")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		p, err := json.Marshal(HexBytes(raw))
		var back, other HexBytes
		if err != nil || json.Unmarshal(p, &back) != nil || !bytes.Equal(back, raw) {
			t.Errorf("%x is written as %s, and reads as %x: %v", raw, p, back, err)
		}
		if err := other.UnmarshalText([]byte(text)); err == nil && len(other.String()) != len(text) || err != nil && other != nil {
			t.Errorf("%q reads as %x, %v", text, other, err)
		}
	})
}
