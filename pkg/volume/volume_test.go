package volume

import (
	"errors"
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	for _, good := range []string{"a", "pvc-1a2b", "0", strings.Repeat("a", IDMax)} {
		if id, err := ParseID(good); err != nil || string(id) != good {
			t.Errorf("%q: %q, %v", good, id, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", ".", "..", "../x", "a/b", "a\x00", "A", "ä", "a b", strings.Repeat("a", IDMax+1), "a\n"} {
		if id, err := ParseID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %q, %v", bad, id, err)
		}
	}
}

func TestIDForName(t *testing.T) {
	seen := map[ID]string{}
	for _, name := range []string{"pvc-1", "PVC-1", "pvc_1", "../../etc/passwd", "ä", "...", strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("-", NameMax)} {
		id, err := IDForName(name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		if _, err := ParseID(string(id)); err != nil {
			t.Errorf("%q gives %q: %v", name, id, err)
		}
		if other, twice := seen[id]; twice {
			t.Errorf("%q and %q both give %q", name, other, id)
		}
		seen[id] = name
		if again, _ := IDForName(name); again != id {
			t.Errorf("%q gives %q, then %q", name, id, again)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", NameMax+1)} {
		if _, err := IDForName(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseNodeID(t *testing.T) {
	for _, bad := range []string{"", strings.Repeat("n", NodeMax+1), "a\nb", "a\x7f"} {
		if _, err := ParseNodeID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if n, err := ParseNodeID("node-1.example"); err != nil || n != "node-1.example" {
		t.Error(n, err)
	}
}

func TestBytesText(t *testing.T) {
	for b, want := range map[Bytes]string{0: "0 B", 512: "512 B", KiB: "1 KiB", 3 * MiB / 2: "1.5 MiB", GiB: "1 GiB", 5 * TiB: "5 TiB", -GiB: "-1 GiB"} {
		if got := b.String(); got != want {
			t.Errorf("%d: %q, want %q", int64(b), got, want)
		}
	}
	if got := Bytes(1).RoundUp(4 * MiB); got != 4*MiB {
		t.Errorf("rounded to %d", got)
	}
}
