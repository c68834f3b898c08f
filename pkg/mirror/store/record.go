package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// Session is the time between a writer's attach to a replica and its end.
type Session struct {
	ID    quorum.UUID // random, new at each attach
	Open  bool        // still open: a replica found so lost its writer
	Boot  quorum.UUID // boot ID of the kernel in which it was opened
	Mount uint64      // mount ID of the store's mount at that time
}

// Record is what a replica has promised and agreed to. It is replaced as a whole and survives a power cut at any point.
type Record struct {
	Sequence uint64       // grows with every record written
	Promised volume.Epoch // no writer of an older epoch is obeyed
	Lossy    bool         // it lost its cache with writes in it since it joined
	Session  Session
	Config   quorum.Config
}

const (
	recordMagic    = "BELAYREC"
	attributesAt   = 352
	votersAt       = 128
	voterSize      = 32
	payloadCheckAt = payloadSize - 4
)

// validateConfig says whether c can be recorded.
func validateConfig(c quorum.Config) error {
	n := len(c.Voters)
	switch {
	case n < 1 || n > quorum.ReplicasMax:
		return fmt.Errorf("%w configuration %s: %d voters, want 1 to %d", volume.ErrInvalid, c, n, quorum.ReplicasMax)
	case c.Members.Without(quorum.All(n)) != 0:
		return fmt.Errorf("%w configuration %s: a member is not a voter", volume.ErrInvalid, c)
	case len(c.Attributes) > quorum.AttributesMax:
		return fmt.Errorf("%w configuration %s: %d bytes of attributes, at most %d", volume.ErrInvalid, c, len(c.Attributes), quorum.AttributesMax)
	case c.Size < 0 || regionsOf(int64(c.Size)) > RegionsMax:
		return fmt.Errorf("%w configuration %s: size %s", volume.ErrInvalid, c, c.Size)
	}
	return nil
}

// encodeRecord writes r, whose configuration is valid, to p, which holds payloadSize bytes.
func encodeRecord(p []byte, r Record) {
	clear(p)
	le, c := binary.LittleEndian, r.Config
	copy(p, recordMagic)
	le.PutUint32(p[8:], FormatVersion)
	le.PutUint32(p[12:], uint32(len(c.Attributes)))
	le.PutUint64(p[16:], r.Sequence)
	le.PutUint64(p[24:], uint64(r.Promised))
	copy(p[32:], r.Session.ID[:])
	p[48], p[49] = bit(r.Session.Open), bit(r.Lossy)
	copy(p[56:], r.Session.Boot[:])
	le.PutUint64(p[72:], r.Session.Mount)
	encodeConfig(p, c)
	le.PutUint32(p[payloadCheckAt:], crc32.Checksum(p[:payloadCheckAt], castagnoli))
}

func encodeConfig(p []byte, c quorum.Config) {
	le := binary.LittleEndian
	le.PutUint64(p[80:], uint64(c.Epoch))
	le.PutUint32(p[88:], c.Step)
	le.PutUint32(p[92:], uint32(c.Flags))
	le.PutUint64(p[96:], uint64(c.Size))
	le.PutUint64(p[104:], uint64(c.Published))
	le.PutUint64(p[112:], uint64(c.Writer))
	p[120], p[121] = byte(len(c.Voters)), byte(c.Members)
	for i, v := range c.Voters {
		copy(p[votersAt+i*voterSize:], v.Store[:])
		copy(p[votersAt+i*voterSize+16:], v.Incarnation[:])
	}
	copy(p[288:], c.Digest[:])
	copy(p[320:], c.Head[:])
	copy(p[attributesAt:], c.Attributes)
}

// decodeRecord reads p, which holds payloadSize bytes: ErrDamaged or ErrFormat.
func decodeRecord(p []byte) (Record, error) {
	le := binary.LittleEndian
	if !bytes.Equal(p[:8], []byte(recordMagic)) || le.Uint32(p[payloadCheckAt:]) != crc32.Checksum(p[:payloadCheckAt], castagnoli) {
		return Record{}, fmt.Errorf("record: %w", ErrDamaged)
	}
	if f := le.Uint32(p[8:]); f != FormatVersion {
		return Record{}, fmt.Errorf("record of format %d: %w", f, ErrFormat)
	}
	if le.Uint32(p[12:]) > quorum.AttributesMax || p[120] > quorum.ReplicasMax || p[48] > 1 || p[49] > 1 {
		return Record{}, fmt.Errorf("record: %w: a field is out of range", ErrDamaged)
	}
	r := Record{
		Sequence: le.Uint64(p[16:]),
		Promised: volume.Epoch(le.Uint64(p[24:])),
		Lossy:    p[49] == 1,
		Session:  Session{ID: quorum.UUID(p[32:48]), Open: p[48] == 1, Boot: quorum.UUID(p[56:72]), Mount: le.Uint64(p[72:])},
		Config:   decodeConfig(p),
	}
	if err := validateConfig(r.Config); err != nil {
		return Record{}, fmt.Errorf("record: %w: %w", ErrDamaged, err)
	}
	return r, nil
}

// decodeConfig reads the fields of encodeConfig; the caller has checked the two lengths.
func decodeConfig(p []byte) quorum.Config {
	le := binary.LittleEndian
	c := quorum.Config{
		Epoch:     volume.Epoch(le.Uint64(p[80:])),
		Step:      le.Uint32(p[88:]),
		Flags:     quorum.Flags(le.Uint32(p[92:])),
		Size:      volume.Bytes(le.Uint64(p[96:])),
		Published: volume.Epoch(le.Uint64(p[104:])),
		Writer:    volume.Epoch(le.Uint64(p[112:])),
		Members:   quorum.Set(p[121]),
		Digest:    [32]byte(p[288:320]),
		Head:      [32]byte(p[320:352]),
	}
	for i := range int(p[120]) {
		v := p[votersAt+i*voterSize:]
		c.Voters = append(c.Voters, quorum.Voter{Store: quorum.UUID(v[:16]), Incarnation: quorum.UUID(v[16:32])})
	}
	if n := binary.LittleEndian.Uint32(p[12:]); n > 0 {
		c.Attributes = bytes.Clone(p[attributesAt : attributesAt+n])
	}
	return c
}

// sameConfig says whether two valid configurations are equal in every field.
func sameConfig(a, b quorum.Config) bool {
	var pa, pb [payloadSize]byte
	encodeRecord(pa[:], Record{Config: a})
	encodeRecord(pb[:], Record{Config: b})
	return pa == pb
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}
