package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

var owner = quorum.UUID{42}

func recordOf(seq uint64, promised volume.Epoch) Record {
	return Record{Sequence: seq, Promised: promised, Config: configAt(1, 1)}
}

func slotBytes(r Record) []byte {
	p := make([]byte, slotSize)
	encodeSlot(p, owner, r)
	return p
}

// chooseOf decides between what slots 0 and 1 hold.
func chooseOf(p [2][]byte) (Record, uint64, error) {
	return choose([2]slotState{decodeSlot(p[0], 0, owner), decodeSlot(p[1], 1, owner)})
}

// pair returns the slots that hold the records, in either order.
func pair(a, b Record) (p [2][]byte) {
	p[slotOf(a.Sequence)], p[slotOf(b.Sequence)] = slotBytes(a), slotBytes(b)
	return p
}

func TestRecordRoundTrip(t *testing.T) {
	for _, r := range []Record{recordOf(1, 0), fullRecord(8), {Sequence: 3, Config: quorum.Config{Voters: make([]quorum.Voter, 1)}}} {
		st := decodeSlot(slotBytes(r), slotOf(r.Sequence), owner)
		if st.err != nil || !same(st.record, r) {
			t.Errorf("record %d decodes as %+v, %v", r.Sequence, st.record, st.err)
		}
		if !bytes.Equal(st.record.Config.Attributes, r.Config.Attributes) {
			t.Errorf("attributes %q, want %q", st.record.Config.Attributes, r.Config.Attributes)
		}
	}
}

func TestSlotBelongsToItsPlace(t *testing.T) {
	p := slotBytes(recordOf(4, 1))
	if st := decodeSlot(p, 1, owner); !errors.Is(st.err, ErrDamaged) || st.intact != 0 {
		t.Errorf("slot 0 passes as slot 1: %v", st.err)
	}
	if st := decodeSlot(p, 0, quorum.UUID{43}); !errors.Is(st.err, ErrDamaged) || st.intact != 0 {
		t.Errorf("the slot of another replica passes: %v", st.err)
	}
	swapped := bytes.Clone(p)
	copy(swapped[:sectorSize], p[sectorSize:])
	if st := decodeSlot(swapped, 0, owner); !errors.Is(st.err, ErrDamaged) || st.intact != slotSectors-1 {
		t.Errorf("sector 1 passes as sector 0: %v", st.err)
	}
}

// Any byte of either slot flipped: the newest record, or damage; never the older one.
func TestFlippedByteNeverBringsBackAnOldRecord(t *testing.T) {
	older, newer := recordOf(6, 10), recordOf(7, 11)
	whole := pair(older, newer)
	for slot := range 2 {
		for i := range slotSize {
			for _, mask := range []byte{1, 0x80, 0xff} {
				p := whole
				p[slot] = bytes.Clone(whole[slot])
				p[slot][i] ^= mask
				got, _, err := chooseOf(p)
				switch {
				case slot == slotOf(newer.Sequence) && !errors.Is(err, ErrDamaged):
					t.Fatalf("byte %d of the newest slot: record %d, %v", i, got.Sequence, err)
				case slot == slotOf(older.Sequence) && (err != nil || !same(got, newer)):
					t.Fatalf("byte %d of the older slot: record %d, %v", i, got.Sequence, err)
				}
			}
		}
	}
}

// Any sectors of the newest slot gone, in any way that does not look like an older record.
func TestLostSectorsAreDamage(t *testing.T) {
	older, newer := recordOf(6, 10), recordOf(7, 11)
	for lost := 1; lost < 1<<slotSectors; lost++ {
		p := pair(older, newer)
		for i := range slotSectors {
			if lost>>i&1 == 1 {
				clear(p[1][i*sectorSize:][:sectorSize])
			}
		}
		if got, _, err := chooseOf(p); !errors.Is(err, ErrDamaged) {
			t.Fatalf("sectors %08b blank: record %d, %v", lost, got.Sequence, err)
		}
	}
}

// tear writes the sectors of the mask of src over dst.
func tear(dst, src []byte, mask int) []byte {
	out := bytes.Clone(dst)
	for i := range slotSectors {
		if mask>>i&1 == 1 {
			copy(out[i*sectorSize:][:sectorSize], src[i*sectorSize:])
		}
	}
	return out
}

const allSectors = 1<<slotSectors - 1

// Power cuts in two writes, one after the other, at any sectors: each time the last finished record counts, or the new one whole.
func TestTornWritesKeepTheLastRecord(t *testing.T) {
	for first := range 1 << slotSectors {
		disk := pair(recordOf(5, 9), recordOf(6, 10))
		attempt := recordOf(nextSequence(recordOf(6, 10), 6), 11)
		disk[slotOf(attempt.Sequence)] = tear(disk[slotOf(attempt.Sequence)], slotBytes(attempt), first)
		held, seen, err := chooseOf(disk)
		if err != nil {
			t.Fatalf("sectors %08b written: %v", first, err)
		}
		if want := whole(first == allSectors, attempt, recordOf(6, 10)); !same(held, want) {
			t.Fatalf("sectors %08b written: record %d, want %d", first, held.Sequence, want.Sequence)
		}
		step := 17 // divides 255; every cut of the second write for some cuts of the first
		if first%16 == 5 || first == allSectors {
			step = 1
		}
		tearAgain(t, disk, held, seen, step)
	}
}

func tearAgain(t *testing.T, disk [2][]byte, held Record, seen uint64, step int) {
	attempt := recordOf(nextSequence(held, seen), 12)
	slot := slotOf(attempt.Sequence)
	if slot == slotOf(held.Sequence) {
		t.Fatalf("record %d would be written over record %d", attempt.Sequence, held.Sequence)
	}
	before, after := disk[slot], slotBytes(attempt)
	other := decodeSlot(disk[1-slot], 1-slot, owner)
	for second := 0; second <= allSectors; second += step {
		states := [2]slotState{other, other}
		states[slot] = decodeSlot(tear(before, after, second), slot, owner)
		got, _, err := choose(states)
		if want := whole(second == allSectors, attempt, held); err != nil || !same(got, want) {
			t.Fatalf("then sectors %08b: record %d, %v, want %d", second, got.Sequence, err, want.Sequence)
		}
	}
}

func whole(all bool, yes, no Record) Record {
	if all {
		return yes
	}
	return no
}

func TestChoose(t *testing.T) {
	good := pair(recordOf(6, 10), recordOf(7, 11))
	blank := make([]byte, slotSize)
	bad := tear(good[1], blank, 1)
	torn := tear(good[1], slotBytes(recordOf(9, 12)), 0b1010)
	tornAndBad := tear(torn, blank, 1)
	old := tear(slotBytes(recordOf(5, 9)), blank, 0b11111110)
	cases := []struct {
		name string
		p    [2][]byte
		want uint64 // 0: damaged
		seen uint64
	}{
		{"both whole", good, 7, 7},
		{"newer torn", [2][]byte{good[0], torn}, 6, 9},
		{"newer torn, a sector damaged as well", [2][]byte{good[0], tornAndBad}, 6, 9},
		{"newer damaged", [2][]byte{good[0], bad}, 0, 7},
		{"newer blank", [2][]byte{good[0], blank}, 0, 6},
		{"older blank: it could have been the newer", [2][]byte{blank, good[1]}, 0, 7},
		{"older damaged, one sector left", [2][]byte{good[0], old}, 6, 6},
		{"both damaged", [2][]byte{blank, bad}, 0, 7},
		{"both torn", [2][]byte{tear(good[0], slotBytes(recordOf(8, 1)), 1), torn}, 0, 9},
		{"nothing", [2][]byte{blank, blank}, 0, 0},
	}
	for _, c := range cases {
		got, seen, err := chooseOf(c.p)
		if got.Sequence != c.want || seen != c.seen || (err != nil) != (c.want == 0) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: record %d, seen %d, %v", c.name, got.Sequence, seen, err)
		}
	}
}

func TestUnknownRecordFormat(t *testing.T) {
	p := pair(recordOf(6, 10), recordOf(7, 11))
	s := p[0][:sectorSize]
	s[sectorTagAt+2] = FormatVersion + 1
	putCheck(s[sectorCRCAt:], check(s[:sectorCRCAt], owner, sectorPlace(0, 0)))
	if _, _, err := chooseOf(p); !errors.Is(err, ErrFormat) {
		t.Errorf("a slot of a newer version: %v", err)
	}
}

func putCheck(p []byte, crc uint32) {
	for i := range 4 {
		p[i] = byte(crc >> (8 * i))
	}
}

func TestConfigThatCannotBeRecorded(t *testing.T) {
	for name, alter := range map[string]func(*quorum.Config){
		"no voters":  func(c *quorum.Config) { c.Voters = nil },
		"six voters": func(c *quorum.Config) { c.Voters = make([]quorum.Voter, 6) },
		"stranger":   func(c *quorum.Config) { c.Members = quorum.SetOf(2) },
		"attributes": func(c *quorum.Config) { c.Attributes = make([]byte, quorum.AttributesMax+1) },
		"size":       func(c *quorum.Config) { c.Size = -1 },
		"huge":       func(c *quorum.Config) { c.Size = 1 << 60 },
	} {
		c := configAt(1, 1)
		alter(&c)
		wantError(t, name, validateConfig(c), volume.ErrInvalid)
	}
}

func FuzzSlot(f *testing.F) {
	f.Add(slotBytes(fullRecord(8)), 0)
	f.Add(slotBytes(recordOf(7, 3)), 1)
	f.Add(make([]byte, slotSize), 0)
	f.Add(tear(slotBytes(recordOf(7, 3)), slotBytes(recordOf(9, 3)), 3), 1)
	f.Fuzz(func(t *testing.T, p []byte, slot int) {
		if len(p) != slotSize || slot < 0 || slot > 1 {
			return
		}
		st := decodeSlot(p, slot, owner)
		if st.err != nil {
			return
		}
		if got := decodeSlot(slotBytes(st.record), slot, owner); !same(got.record, st.record) {
			t.Errorf("%+v encodes as %+v", st.record, got.record)
		}
	})
}

// FuzzRecord gets past the checksums, which a fuzzer cannot guess.
func FuzzRecord(f *testing.F) {
	var p [payloadSize]byte
	encodeRecord(p[:], fullRecord(8))
	f.Add(p[:])
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) != payloadSize {
			return
		}
		p = bytes.Clone(p)
		encodeCheck(p)
		r, err := decodeRecord(p)
		if err != nil {
			return
		}
		var again [payloadSize]byte
		encodeRecord(again[:], r)
		if got, err := decodeRecord(again[:]); err != nil || !same(got, r) {
			t.Errorf("%+v encodes as %+v, %v", r, got, err)
		}
	})
}
