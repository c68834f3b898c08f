// Package store keeps one copy of a volume on one disk: blocks, checksums, dirty regions and configuration records.
//
// The files and their bytes are drawn in pkg/mirror/DESIGN.md. A [Dir] is a store: a directory on a disk. A [Replica] is one
// volume's copy in it, open for one process. The store performs and remembers; what it should hold is decided above it.
package store

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
)

// Geometry of a replica. A page holds the entries of 512 KiB of blocks.
const (
	BlockSize      = digest.BlockSize
	RegionBlocks   = 1024
	RegionSize     = RegionBlocks * BlockSize
	PageSize       = 4096 // of entries, and what direct I/O reads and writes at least
	EntriesPerPage = PageSize / digest.EntrySize
	PagesPerRegion = RegionBlocks / EntriesPerPage
	// RegionsMax bounds what a decoder believes: 1 PiB of volume, 32 MiB of dirty bits.
	RegionsMax = 1 << 28
)

const (
	sectorSize  = 512 // what a power cut leaves whole
	entriesSize = PagesPerRegion * PageSize
	frameSize   = entriesSize + RegionSize

	// FormatVersion is the format of replicas that this package reads and writes.
	FormatVersion = 1

	slotOffset  = 0x2000 // in meta; the superblock and its twin are before it
	dirtyOffset = 0x4000
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check is the CRC-32C of p, its owner and its place: bytes that a disk wrote elsewhere do not pass.
func check(p []byte, owner quorum.UUID, place uint64) uint32 {
	crc := crc32.Update(0, castagnoli, p)
	crc = crc32.Update(crc, castagnoli, owner[:])
	return crc32.Update(crc, castagnoli, binary.LittleEndian.AppendUint64(nil, place))
}

func aligned(n int) []byte { return vfs.AlignedBuffer(n) }

// regionsOf is the number of regions that bytes of volume take up.
func regionsOf(size int64) int64 { return (size + RegionSize - 1) / RegionSize }
