package digest

import (
	"bytes"
	"testing"
)

// FuzzDamagedEntry changes a byte of an entry, or looks for it at another block: it is refused.
func FuzzDamagedEntry(f *testing.F) {
	for _, c := range entries {
		for at := range uint(EntrySize) {
			f.Add(c.entry.Hash[:], c.entry.Version.Sequence, c.entry.Version.Epoch, c.index, at, byte(1), int64(0))
		}
		f.Add(c.entry.Hash[:], c.entry.Version.Sequence, c.entry.Version.Epoch, c.index, uint(0), byte(0), int64(1))
	}
	f.Fuzz(func(t *testing.T, hash []byte, sequence uint64, epoch uint32, index int64, at uint, change byte, elsewhere int64) {
		e := Entry{Version: Version{Epoch: epoch, Sequence: sequence}}
		copy(e.Hash[:], hash)
		p := make([]byte, EntrySize)
		Encode(p, index, e)
		if got, ok := Decode(p, index); !ok || got != e {
			t.Fatalf("%v reads as %v, %t", e, got, ok)
		}
		if elsewhere != 0 && !IsZero(p) { // one that was never written is the same everywhere
			if got, ok := Decode(p, index+elsewhere); ok {
				t.Errorf("that of block %d is taken for that of %d: %v", index, index+elsewhere, got)
			}
		}
		if change == 0 {
			return
		}
		p[at%EntrySize] ^= change
		if got, ok := Decode(p, index); ok && !IsZero(p) {
			t.Errorf("byte %d changed by %#x, and %v is believed", at%EntrySize, change, got)
		}
	})
}

// FuzzSum: a sum reads as what it was written, and what was added can be subtracted in any order.
func FuzzSum(f *testing.F) {
	f.Add(make([]byte, SumSize), bytes.Repeat([]byte{0xff}, SumSize))
	f.Add(bytes.Repeat([]byte{0xff}, SumSize), append([]byte{1}, make([]byte, SumSize-1)...))
	f.Fuzz(func(t *testing.T, p, q []byte) {
		if len(p) < SumSize || len(q) < SumSize {
			return
		}
		a, b := SumOf(p), SumOf(q)
		if out := a.Bytes(); !bytes.Equal(out[:], p[:SumSize]) {
			t.Errorf("%x reads as %v", p[:SumSize], a)
		}
		if a.Plus(b) != b.Plus(a) || a.Plus(b).Minus(b) != a || a.Minus(b).Plus(b) != a || !a.Minus(a).IsZero() {
			t.Errorf("%v and %v: sum %v", a, b, a.Plus(b))
		}
	})
}
