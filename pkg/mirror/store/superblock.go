package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// Superblock says what a replica is. It is written once, when the replica is made.
type Superblock struct {
	Volume           volume.ID
	UUID             quorum.UUID // of the volume
	Store            quorum.UUID // that keeps the replica
	Incarnation      quorum.UUID // random, of this replica and no other before or after it
	Key              digest.Key  // of the volume's checksums
	LogicalBlockSize int         // of the device: 512 or 4096
	Created          time.Time   // to the nanosecond; the zero Time where unknown
}

const (
	superblockSize  = 4096
	superblockMagic = "BELAYSUP"
)

func (s Superblock) validate() error {
	if _, err := volume.ParseID(string(s.Volume)); err != nil {
		return err
	}
	if s.LogicalBlockSize != 512 && s.LogicalBlockSize != BlockSize {
		return fmt.Errorf("%w logical block size %d: want 512 or %d", volume.ErrInvalid, s.LogicalBlockSize, BlockSize)
	}
	if s.UUID.IsZero() || s.Store.IsZero() || s.Incarnation.IsZero() {
		return fmt.Errorf("%w superblock of %s: an identity is missing", volume.ErrInvalid, s.Volume)
	}
	return nil
}

// encodeSuperblock writes a valid s to p, which holds superblockSize bytes.
func encodeSuperblock(p []byte, s Superblock) {
	clear(p)
	le := binary.LittleEndian
	copy(p, superblockMagic)
	le.PutUint32(p[8:], FormatVersion)
	le.PutUint32(p[12:], BlockSize)
	le.PutUint32(p[16:], RegionBlocks)
	le.PutUint32(p[20:], uint32(s.LogicalBlockSize))
	copy(p[24:], s.UUID[:])
	copy(p[40:], s.Store[:])
	copy(p[56:], s.Incarnation[:])
	copy(p[72:], s.Key[:])
	if !s.Created.IsZero() {
		le.PutUint64(p[104:], uint64(s.Created.UnixNano()))
	}
	p[112] = byte(len(s.Volume))
	copy(p[113:176], s.Volume)
	le.PutUint32(p[4092:], crc32.Checksum(p[:4092], castagnoli))
}

// decodeSuperblock reads p, which holds superblockSize bytes: ErrDamaged or ErrFormat.
func decodeSuperblock(p []byte) (Superblock, error) {
	le := binary.LittleEndian
	if !bytes.Equal(p[:8], []byte(superblockMagic)) || le.Uint32(p[4092:]) != crc32.Checksum(p[:4092], castagnoli) {
		return Superblock{}, fmt.Errorf("superblock: %w", ErrDamaged)
	}
	if f := le.Uint32(p[8:]); f != FormatVersion || le.Uint32(p[12:]) != BlockSize || le.Uint32(p[16:]) != RegionBlocks {
		return Superblock{}, fmt.Errorf("superblock of format %d, %d-byte blocks, %d blocks a region: %w", f, le.Uint32(p[12:]), le.Uint32(p[16:]), ErrFormat)
	}
	s := Superblock{
		LogicalBlockSize: int(le.Uint32(p[20:])),
		UUID:             quorum.UUID(p[24:40]),
		Store:            quorum.UUID(p[40:56]),
		Incarnation:      quorum.UUID(p[56:72]),
		Key:              digest.Key(p[72:104]),
	}
	if ns := int64(le.Uint64(p[104:])); ns != 0 {
		s.Created = time.Unix(0, ns).UTC()
	}
	s.Volume = volume.ID(p[113 : 113+min(int(p[112]), volume.IDMax)])
	if err := s.validate(); err != nil {
		return Superblock{}, fmt.Errorf("superblock: %w: %w", ErrDamaged, err)
	}
	return s, nil
}

// decodeSuperblocks reads the superblock and its twin from p. It succeeds where one of them is good; damaged lists
// the copies that are not. Two good ones that differ are both damaged.
func decodeSuperblocks(p []byte) (s Superblock, damaged []int, err error) {
	var errs [2]error
	var copies [2]Superblock
	for i := range copies {
		copies[i], errs[i] = decodeSuperblock(p[i*superblockSize:][:superblockSize])
	}
	switch {
	case errs[0] == nil && errs[1] == nil && copies[0] != copies[1]:
		return s, []int{0, 1}, fmt.Errorf("superblock: %w: its two copies contradict each other", ErrDamaged)
	case errs[0] == nil && errs[1] == nil:
		return copies[0], nil, nil
	case errs[0] == nil:
		return copies[0], []int{1}, nil
	case errs[1] == nil:
		return copies[1], []int{0}, nil
	}
	return s, []int{0, 1}, errs[0]
}
