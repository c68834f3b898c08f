package digest

import (
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// Sum is the digest of a set of blocks: the sum of their stretched hashes modulo 2^256, least significant word first.
// The zero Sum is that of a volume that reads as zeros. Order does not matter, and what was added can be subtracted.
type Sum [4]uint64

// SumSize is the length of an encoded Sum in bytes.
const SumSize = 32

// Add adds the block's hash to s. The zero Hash adds nothing.
func (k *Hasher) Add(s *Sum, h Hash) {
	if !h.IsZero() {
		*s = s.Plus(k.expandHash(h))
	}
}

// Sub takes the block's hash from s. The zero Hash takes nothing.
func (k *Hasher) Sub(s *Sum, h Hash) {
	if !h.IsZero() {
		*s = s.Minus(k.expandHash(h))
	}
}

// Plus returns s + o modulo 2^256.
func (s Sum) Plus(o Sum) (r Sum) {
	var c uint64
	r[0], c = bits.Add64(s[0], o[0], 0)
	r[1], c = bits.Add64(s[1], o[1], c)
	r[2], c = bits.Add64(s[2], o[2], c)
	r[3], _ = bits.Add64(s[3], o[3], c)
	return r
}

// Minus returns s - o modulo 2^256.
func (s Sum) Minus(o Sum) (r Sum) {
	var b uint64
	r[0], b = bits.Sub64(s[0], o[0], 0)
	r[1], b = bits.Sub64(s[1], o[1], b)
	r[2], b = bits.Sub64(s[2], o[2], b)
	r[3], _ = bits.Sub64(s[3], o[3], b)
	return r
}

// IsZero says that nothing was added, or everything taken again.
func (s Sum) IsZero() bool { return s == Sum{} }

// Bytes returns s in little-endian order.
func (s Sum) Bytes() (p [SumSize]byte) {
	for i, w := range s {
		binary.LittleEndian.PutUint64(p[8*i:], w)
	}
	return p
}

// SumOf is the inverse of Bytes. p holds at least SumSize bytes.
func SumOf(p []byte) (s Sum) {
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(p[8*i:])
	}
	return s
}

func (s Sum) String() string {
	p := s.Bytes()
	return hex.EncodeToString(p[:])
}
