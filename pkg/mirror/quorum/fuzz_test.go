package quorum

import "testing"

// FuzzUUID: an identity reads as what it was written, and as nothing else; what is refused leaves none behind.
func FuzzUUID(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff")
	f.Add("00112233445566778899AABBCCDDEEFF")
	f.Add("00112233")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		var u, again UUID
		if err := u.UnmarshalText([]byte(s)); err != nil {
			if !u.IsZero() {
				t.Errorf("%q is refused, and is %v", s, u)
			}
			return
		}
		if err := again.UnmarshalText([]byte(u.String())); err != nil || again != u || len(s) != 2*len(u) {
			t.Errorf("%q reads as %v, and that as %v: %v", s, u, again, err)
		}
	})
}
