package volume

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzIDs: an ID is safe as the name of a file and as a word; a name gives one ID, always the same, and an ID gives itself.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"pvc-1", "../..", "-", "a-", strings.Repeat("x", IDMax), strings.Repeat("x", IDMax+1), "Ärger", "A", "..", "\xff", "snapshot 1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil && (!errors.Is(err, ErrInvalid) || id != "") || err == nil && string(id) != s {
			t.Errorf("%q: %q, %v", s, id, err)
		}
		if err == nil && (len(id) > IDMax || filepath.Base(s) != s || s[0] == '.' || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '_' })) {
			t.Errorf("%q was taken", s)
		}
		named, nameErr := IDForName(s)
		if nameErr != nil {
			if !errors.Is(nameErr, ErrInvalid) || s != "" && len(s) <= NameMax {
				t.Errorf("%q: %v", s, nameErr)
			}
			return
		}
		if _, err := ParseID(string(named)); err != nil || id != "" && named != id {
			t.Errorf("%q gives %q: %v", s, named, err)
		}
		if again, err := IDForName(s); err != nil || again != named {
			t.Errorf("%q gives %q, then %q", s, named, again)
		}
	})
}

// FuzzNodeIDs: a node's ID can be sent and written: it is text, of one line.
func FuzzNodeIDs(f *testing.F) {
	for _, s := range []string{"node-1", "", "a b", "a\nb", "\x7f", "\xff", strings.Repeat("n", NodeMax+1), "Knoten-ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseNodeID(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || n != "" {
				t.Errorf("%q: %q, %v", s, n, err)
			}
			return
		}
		if string(n) != s || len(s) > NodeMax || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r\x00") {
			t.Errorf("%q was taken for %q", s, n)
		}
	})
}

// FuzzRoundUp: a size is rounded up to the next multiple, and told in few words.
func FuzzRoundUp(f *testing.F) {
	f.Add(int64(1), int64(4*MiB))
	f.Add(int64(1)<<60, int64(4*MiB))
	f.Add(int64(-5), int64(512))
	f.Fuzz(func(t *testing.T, size, unit int64) {
		b, u := Bytes(size), Bytes(unit)
		if text := b.String(); len(text) > 20 || text == "" {
			t.Errorf("%d: %q", size, text)
		}
		if size < 0 || size > 1<<61 || unit <= 0 || unit > 1<<61 {
			return
		}
		if got := b.RoundUp(u); got < b || got-b >= u || got%u != 0 {
			t.Errorf("%d rounded up to a multiple of %d is %d", size, unit, got)
		}
	})
}
