// Package digest is the arithmetic of checksums: of a block, of a replica's whole content, and of what an entry keeps for each block.
//
// Nothing here has a clock, goroutine, disk or network. The bytes are drawn in pkg/mirror/DESIGN.md.
package digest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"

	"github.com/zeebo/xxh3"
)

// Algorithm names how blocks are hashed and added. Sums of different algorithms, or under different keys, never compare.
const Algorithm = "belay-1:xxh3-128+sum256"

// BlockSize is the number of bytes that one Hash covers.
const BlockSize = 4096

// Hash is the keyed checksum of one block and of its place. The zero Hash is that of a block of zeros, at any place.
type Hash [16]byte

// IsZero says that the block is all zeros.
func (h Hash) IsZero() bool { return h == Hash{} }

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// Key is a volume's secret. It does not print: neither fmt nor JSON shows its bytes.
type Key [32]byte

const redacted = "(secret)"

// NewKey returns a random key.
func NewKey() (Key, error) {
	var k Key
	if _, err := rand.Read(k[:]); err != nil {
		return Key{}, fmt.Errorf("random key: %w", err)
	}
	return k, nil
}

// Format implements fmt.Formatter, for every verb.
func (Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler.
func (Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Hasher hashes the blocks of one volume. Its methods may be called concurrently.
//
// The hash is fast and keyed, not cryptographic: who does not know the key cannot aim at a collision, who knows it can.
type Hasher struct {
	seed   [4]uint64 // of seedOf
	expand [8]uint64 // of expandHash
}

// NewHasher returns the Hasher of the volume that has the key.
func NewHasher(k Key) *Hasher {
	var h Hasher
	var words [12]uint64
	for n := range 3 {
		d := sha256.Sum256(append(k[:], byte(n)))
		for i := range 4 {
			words[4*n+i] = binary.LittleEndian.Uint64(d[8*i:])
		}
	}
	copy(h.seed[:], words[:4])
	copy(h.expand[:], words[4:])
	return &h
}

// Block returns the Hash of p, one block, at the block index of the volume. It is the zero Hash if and only if p is all zeros.
func (k *Hasher) Block(index int64, p []byte) (h Hash) {
	if IsZero(p) {
		return h
	}
	u := xxh3.Hash128Seed(p, k.seedOf(uint64(index)))
	if u.Lo|u.Hi == 0 {
		u.Lo = 1
	}
	binary.LittleEndian.PutUint64(h[:8], u.Lo)
	binary.LittleEndian.PutUint64(h[8:], u.Hi)
	return h
}

// seedOf maps each index to a seed of its own: every step is a bijection, so no two blocks of a volume share one,
// and a block written to the place of another never passes for it but by chance.
func (k *Hasher) seedOf(x uint64) uint64 {
	x += k.seed[0]
	x ^= x >> 32
	x *= k.seed[1] | 1
	x ^= x >> 29
	x *= k.seed[2] | 1
	x ^= x >> 32
	return x ^ k.seed[3]
}

// expandHash stretches a hash to the width of a Sum. Sums of 128 bits would let somebody who sees hashes look
// for sets of blocks with equal sums; at 256 bits, under a key, that is out of reach.
func (k *Hasher) expandHash(h Hash) Sum {
	lo, hi := binary.LittleEndian.Uint64(h[:8]), binary.LittleEndian.Uint64(h[8:])
	return Sum{
		fold(lo^k.expand[0], hi^k.expand[1]),
		fold(lo^k.expand[2], hi^k.expand[3]),
		fold(lo^k.expand[4], hi^k.expand[5]),
		fold(lo^k.expand[6], hi^k.expand[7]),
	}
}

// fold multiplies to 128 bits and xors the halves.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

var zeros [BlockSize]byte

// IsZero says whether all bytes of p are zero.
func IsZero(p []byte) bool {
	if len(p) > 0 && p[0] != 0 {
		return false
	}
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
