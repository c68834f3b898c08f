package digest

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
	"testing"
)

var entries = []struct {
	name  string
	index int64
	entry Entry
}{
	{"never written", 7, Entry{}},
	{"zeros, written", 7, Entry{Version: Version{1, 1}}},
	{"first write", 0, Entry{Hash: Hash{1}, Version: Version{1, 1}}},
	{"without a version", 3, Entry{Hash: Hash{1}}},
	{"highest", math.MaxInt64, Entry{Hash: Hash{15: 0xff}, Version: Version{math.MaxUint32, math.MaxUint64}}},
}

func TestEntryRoundTrip(t *testing.T) {
	for _, c := range entries {
		p := bytes.Repeat([]byte{0xaa}, EntrySize)
		Encode(p, c.index, c.entry)
		if got, ok := Decode(p, c.index); !ok || got != c.entry {
			t.Errorf("%s: decoded as %v, %v", c.name, got, ok)
		}
		if zero := IsZero(p); zero != (c.entry == Entry{}) {
			t.Errorf("%s: all zeros: %v", c.name, zero)
		}
	}
}

func TestEntryDamageIsSeen(t *testing.T) {
	for _, c := range entries[1:] {
		p := make([]byte, EntrySize)
		Encode(p, c.index, c.entry)
		for i := range p {
			for bit := range 8 {
				q := slices.Clone(p)
				q[i] ^= 1 << bit
				if got, ok := Decode(q, c.index); ok {
					t.Errorf("%s: bit %d of byte %d flipped decodes as %v", c.name, bit, i, got)
				}
			}
		}
		if _, ok := Decode(p, c.index^1); ok {
			t.Errorf("%s: passes for the entry of another block", c.name)
		}
	}
}

func TestEntryCheckIsCRC32C(t *testing.T) {
	p := make([]byte, EntrySize)
	Encode(p, 0x0102030405060708, Entry{Hash: Hash{9, 8, 7}, Version: Version{4, 5}})
	whole := binary.LittleEndian.AppendUint64(slices.Clone(p[:28]), 0x0102030405060708)
	want := crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli))
	if got := binary.LittleEndian.Uint32(p[28:]); got != want {
		t.Errorf("check %#x, want %#x", got, want)
	}
}

func TestVersionOrder(t *testing.T) {
	order := []Version{{}, {0, 1}, {0, math.MaxUint64}, {1, 0}, {1, 1}, {2, 0}, {math.MaxUint32, 0}}
	for i, a := range order {
		for j, b := range order {
			if a.Less(b) != (i < j) || (a.Compare(b) == 0) != (i == j) || a.Compare(b) != -b.Compare(a) {
				t.Errorf("%s and %s compare as %d", a, b, a.Compare(b))
			}
		}
	}
}

func FuzzEntry(f *testing.F) {
	for _, c := range entries {
		p := make([]byte, EntrySize)
		Encode(p, c.index, c.entry)
		f.Add(p, c.index)
	}
	f.Fuzz(func(t *testing.T, p []byte, index int64) {
		if len(p) < EntrySize {
			return
		}
		e, ok := Decode(p, index)
		if !ok {
			return
		}
		again := make([]byte, EntrySize)
		Encode(again, index, e)
		if !bytes.Equal(again, p[:EntrySize]) {
			t.Errorf("%x decodes as %v, which encodes as %x", p[:EntrySize], e, again)
		}
	})
}
