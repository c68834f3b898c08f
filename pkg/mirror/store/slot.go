package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
)

// A slot is eight sectors, each with its own checksum and sequence. So a write that the power cut (all sectors
// whole, of two writes) is told from damage (a sector that does not check). The first was never answered and may
// be forgotten; the second may have been the newest record and must not be (PAR, FAST'18).
const (
	slotSize     = 4096
	slotSectors  = slotSize / sectorSize
	sectorBytes  = sectorSize - 16 // of the payload in each sector
	payloadSize  = slotSectors * sectorBytes
	sectorSeqAt  = sectorBytes
	sectorTagAt  = sectorSeqAt + 8
	sectorCRCAt  = sectorTagAt + 4
	sectorTag    = uint32('B') | 'R'<<8 | FormatVersion<<16
	sectorTagLow = 0xffff // the letters; the format version is above them
)

// slotOf is the slot that keeps the record of the sequence: the two alternate.
func slotOf(sequence uint64) int { return int(sequence & 1) }

// encodeSlot writes r to p, which holds slotSize bytes of the slot slotOf(r.Sequence).
func encodeSlot(p []byte, owner quorum.UUID, r Record) {
	var payload [payloadSize]byte
	encodeRecord(payload[:], r)
	le := binary.LittleEndian
	for i := range slotSectors {
		s := p[i*sectorSize:][:sectorSize]
		copy(s, payload[i*sectorBytes:][:sectorBytes])
		le.PutUint64(s[sectorSeqAt:], r.Sequence)
		le.PutUint32(s[sectorTagAt:], sectorTag)
		le.PutUint32(s[sectorCRCAt:], check(s[:sectorCRCAt], owner, sectorPlace(slotOf(r.Sequence), i)))
	}
}

func sectorPlace(slot, sector int) uint64 { return uint64(slot)<<8 | uint64(sector) }

// slotState is what a slot shows.
type slotState struct {
	intact    int    // sectors that check
	low, high uint64 // lowest and highest sequence that the intact ones show
	record    Record // where err is nil
	err       error  // nil: the record is whole
}

// decodeSlot reads p, slotSize bytes of the slot.
func decodeSlot(p []byte, slot int, owner quorum.UUID) slotState {
	st := slotState{low: ^uint64(0)}
	var payload [payloadSize]byte
	le := binary.LittleEndian
	for i := range slotSectors {
		s := p[i*sectorSize:][:sectorSize]
		tag, seq := le.Uint32(s[sectorTagAt:]), le.Uint64(s[sectorSeqAt:])
		if le.Uint32(s[sectorCRCAt:]) != check(s[:sectorCRCAt], owner, sectorPlace(slot, i)) || tag&sectorTagLow != sectorTag&sectorTagLow || slotOf(seq) != slot {
			continue
		}
		if tag != sectorTag {
			st.err = fmt.Errorf("record slot %d of format %d: %w", slot, tag>>16, ErrFormat)
			return st
		}
		st.intact++
		st.low, st.high = min(st.low, seq), max(st.high, seq)
		copy(payload[i*sectorBytes:], s[:sectorBytes])
	}
	st.record, st.err = wholeRecord(st, slot, payload[:])
	return st
}

func wholeRecord(st slotState, slot int, payload []byte) (Record, error) {
	if st.intact < slotSectors {
		return Record{}, fmt.Errorf("record slot %d: %w: %d of %d sectors do not check", slot, ErrDamaged, slotSectors-st.intact, slotSectors)
	}
	if st.low != st.high {
		return Record{}, fmt.Errorf("record slot %d: unfinished write", slot)
	}
	r, err := decodeRecord(payload)
	if err == nil && r.Sequence != st.high {
		err = fmt.Errorf("%w: sequence %d in sectors of %d", ErrDamaged, r.Sequence, st.high)
	}
	if err != nil {
		return Record{}, fmt.Errorf("record slot %d: %w", slot, err)
	}
	return r, nil
}

// olderThan says that the slot, whatever is wrong with it, holds no finished record as new as the sequence: a
// finished write leaves one sequence in all sectors, so one intact sector that is older, or two that differ, prove it.
func (st slotState) olderThan(sequence uint64) bool {
	return st.intact > 0 && (st.low < sequence || st.low != st.high)
}

// choose returns the record that counts, and the highest sequence that any sector shows. It is ErrDamaged where
// the newest record cannot be known, and never an older one instead of it.
func choose(slots [2]slotState) (r Record, seen uint64, err error) {
	seen = max(slots[0].high, slots[1].high)
	for _, st := range slots {
		if errors.Is(st.err, ErrFormat) {
			return r, seen, st.err
		}
	}
	switch a, b := slots[0], slots[1]; {
	case a.err == nil && b.err == nil && a.high > b.high:
		return a.record, seen, nil
	case a.err == nil && b.err == nil:
		return b.record, seen, nil
	case a.err == nil && b.olderThan(a.high):
		return a.record, seen, nil
	case b.err == nil && a.olderThan(b.high):
		return b.record, seen, nil
	default:
		return r, seen, fmt.Errorf("record: %w: %w: which one is the newest cannot be known from this replica alone", ErrDamaged, bothErrors(a.err, b.err))
	}
}

func bothErrors(a, b error) error {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	return fmt.Errorf("%w; %w", a, b)
}

// nextSequence follows the record r, where a sector may already show a sequence as high as seen. It goes to the
// slot that r is not in, and is above everything seen: two unfinished writes of one sequence could pass for a whole one.
func nextSequence(r Record, seen uint64) uint64 {
	next := max(r.Sequence, seen) + 1
	if slotOf(next) == slotOf(r.Sequence) {
		next++
	}
	return next
}
