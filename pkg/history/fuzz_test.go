package history

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

func encoded(f *testing.F, id volume.ID) []byte {
	f.Helper()
	at := time.Date(2026, 11, 24, 9, 42, 0, 0, time.UTC)
	h := History{Volume: id, Dropped: 3, Until: at}
	for i := range 4 {
		e := entry(i + 1)
		e.Time, e.Took = at.Add(time.Duration(i)*time.Second), time.Millisecond
		h.Entries = append(h.Entries, e)
	}
	good, err := encode(h)
	if err != nil {
		f.Fatal(err)
	}
	return good
}

// FuzzDecode: what is read of any file is written as what reads the same again, and what was left out is counted.
func FuzzDecode(f *testing.F) {
	good := encoded(f, vol)
	f.Add(good)
	f.Add(good[:len(good)-5])
	f.Add([]byte("00000000 {}\n\n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := decode(vol, raw)
		if err != nil {
			return
		}
		if h.Damaged > len(raw) || h.Damaged == 0 && len(raw) > 0 && len(h.Entries) > len(raw)/crcLen {
			t.Errorf("%d bytes: %d damaged, %d entries", len(raw), h.Damaged, len(h.Entries))
		}
		again, err := encode(h)
		if err != nil {
			t.Fatal(err)
		}
		back, err := decode(vol, again)
		if h.Damaged = 0; err != nil || !reflect.DeepEqual(back, h) {
			t.Errorf("what was read does not read again: %+v, %+v, %v", h, back, err)
		}
	})
}

// FuzzDamagedHistory changes a byte: entries are lost and counted, none is another than it was, and none comes from another volume's file.
func FuzzDamagedHistory(f *testing.F) {
	good := encoded(f, vol)
	want, err := decode(vol, good)
	if err != nil {
		f.Fatal(err)
	}
	for at := uint(0); at < uint(len(good)); at += 7 {
		f.Add(at, byte(1))
	}
	f.Fuzz(func(t *testing.T, at uint, change byte) {
		raw := bytes.Clone(good)
		at %= uint(len(raw))
		raw[at] ^= change
		h, err := decode(vol, raw)
		if err != nil {
			t.Fatalf("byte %d changed by %#x: %v", at, change, err)
		}
		if lost := len(want.Entries) - len(h.Entries); lost < 0 || lost > 2 || lost > 0 && h.Damaged == 0 {
			t.Errorf("byte %d changed by %#x: %d entries lost, %d bytes damaged", at, change, lost, h.Damaged)
		}
		left := want.Entries
		for _, e := range h.Entries {
			for len(left) > 0 && !reflect.DeepEqual(left[0], e) {
				left = left[1:]
			}
			if len(left) == 0 {
				t.Fatalf("byte %d changed by %#x: entry %+v", at, change, e)
			}
		}
		if other, err := decode(vol+"-other", raw); err != nil || len(other.Entries) > 0 {
			t.Errorf("another volume has the entries %+v, %v", other.Entries, err)
		}
	})
}
