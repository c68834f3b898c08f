package digest

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// EntrySize is the length of an encoded Entry in bytes. 512 is a multiple of it, so no entry crosses a sector.
const EntrySize = 32

// Version says which write put a block there. A higher one is newer; 0.0 is before every write.
type Version struct {
	Epoch    uint32 // low 32 bits of the writer's epoch
	Sequence uint64 // of the write within its epoch
}

// Compare is negative where v is older than o, 0 where they are the same, positive where v is newer.
func (v Version) Compare(o Version) int {
	if c := cmp.Compare(v.Epoch, o.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(v.Sequence, o.Sequence)
}

// Less says whether v is older than o.
func (v Version) Less(o Version) bool { return v.Compare(o) < 0 }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Epoch, v.Sequence) }

// Entry is what a replica keeps beside each block. The zero Entry is that of a block that was never written.
type Entry struct {
	Hash    Hash
	Version Version
}

// Encode writes e, the entry of the block index, to the first EntrySize bytes of dst. The zero Entry is EntrySize zeros.
func Encode(dst []byte, index int64, e Entry) {
	dst = dst[:EntrySize]
	if e == (Entry{}) {
		clear(dst)
		return
	}
	copy(dst, e.Hash[:])
	binary.LittleEndian.PutUint64(dst[16:], e.Version.Sequence)
	binary.LittleEndian.PutUint32(dst[24:], e.Version.Epoch)
	binary.LittleEndian.PutUint32(dst[28:], entryCheck(dst, index))
}

// Decode reads the entry of the block index from the first EntrySize bytes of src. It is false where they are
// damaged, or an entry of another block.
func Decode(src []byte, index int64) (Entry, bool) {
	src = src[:EntrySize]
	if IsZero(src) {
		return Entry{}, true
	}
	if binary.LittleEndian.Uint32(src[28:]) != entryCheck(src, index) {
		return Entry{}, false
	}
	e := Entry{Version: Version{
		Epoch:    binary.LittleEndian.Uint32(src[24:]),
		Sequence: binary.LittleEndian.Uint64(src[16:]),
	}}
	copy(e.Hash[:], src)
	return e, e != Entry{}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// entryCheck is the CRC-32C of 28 bytes and the index. The index goes in by hand: a buffer for it would escape
// to the heap, once for each block of every write.
func entryCheck(p []byte, index int64) uint32 {
	crc := ^crc32.Update(0, castagnoli, p[:28])
	for range 8 {
		crc = castagnoli[byte(crc)^byte(index)] ^ crc>>8
		index >>= 8
	}
	return ^crc
}
