// Package quorum is the arithmetic of the mirror engine: majorities, configurations, who may acknowledge, which copy wins.
//
// Everything here is a pure function of its arguments: no clock, goroutine, disk or network.
package quorum

import (
	"encoding/hex"
	"fmt"
	"math/bits"

	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// ReplicasMax is the largest number of replicas of a volume.
const ReplicasMax = 5

// UUID is a random identity: of a volume, a store, or one incarnation of a replica.
type UUID [16]byte

func (u UUID) String() string { return hex.EncodeToString(u[:]) }

// IsZero says that no identity was given.
func (u UUID) IsZero() bool { return u == UUID{} }

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(u) {
		return fmt.Errorf("identity %q: want %d hexadecimal digits", text, 2*len(u))
	}
	copy(u[:], b)
	return nil
}

// Voter is one replica's place in the volume: the store that keeps it and the incarnation that was admitted.
// A replica of another incarnation never votes (invariant I9).
type Voter struct {
	Store       UUID `json:"store"`
	Incarnation UUID `json:"incarnation"`
}

// Set is a set of voters, by their index in Config.Voters.
type Set uint8

// SetOf returns the set of the indexes.
func SetOf(indexes ...int) (s Set) {
	for _, i := range indexes {
		s |= 1 << i
	}
	return s
}

// All returns the set of the first n voters.
func All(n int) Set { return Set(1<<n - 1) }

// Has says whether i is in s.
func (s Set) Has(i int) bool { return s&(1<<i) != 0 }

// With returns s and i.
func (s Set) With(i int) Set { return s | 1<<i }

// Without returns s less o.
func (s Set) Without(o Set) Set { return s &^ o }

// Len is the number of voters in s.
func (s Set) Len() int { return bits.OnesCount8(uint8(s)) }

// Indexes lists s in ascending order.
func (s Set) Indexes() []int {
	out := make([]int, 0, s.Len())
	for i := range 8 {
		if s.Has(i) {
			out = append(out, i)
		}
	}
	return out
}

// Config is what a majority of the voters holds of a volume. Configurations are totally ordered by (Epoch, Step)
// (invariant I7). Every change of the volume, of its members or of its publication is a new configuration.
type Config struct {
	Epoch volume.Epoch
	Step  uint32

	Voters  []Voter // 1 to ReplicasMax, fixed at creation
	Members Set     // the in-sync set: each holds everything reported stable

	Size  volume.Bytes
	Flags Flags

	// Published is the epoch of the open attachment, 0 where there is none.
	Published volume.Epoch
	// Writer is the newest epoch in which a writer attached with a device, 0 where none ever did.
	Writer volume.Epoch
	// Digest is the digest of the content where Sealed.
	Digest [32]byte
	// Head is the SHA-256 of the newest receipt in force, zero where there is none.
	Head [32]byte
	// Attributes is JSON that this package does not read. At most AttributesMax bytes.
	Attributes []byte
}

// AttributesMax bounds Config.Attributes, so that a record fits one block of the store.
const AttributesMax = 3072

// Flags of a configuration.
type Flags uint32

// The flags. Sealed: no writer of this or an older epoch can write. Clean: the last writer flushed before it was
// sealed. Staged: a writer attached within the open attachment. Quarantined: copies disagree and nobody can tell
// which is right. Deleted: the volume is gone and its replicas may be removed.
const (
	Sealed Flags = 1 << iota
	Clean
	Staged
	Quarantined
	Deleted
)

// Has says whether all of f are set.
func (f Flags) Has(o Flags) bool { return f&o == o }

// Newer says whether c comes after o.
func (c Config) Newer(o Config) bool {
	return c.Epoch > o.Epoch || c.Epoch == o.Epoch && c.Step > o.Step
}

// Same says whether both are the same point of the volume's history.
func (c Config) Same(o Config) bool { return c.Epoch == o.Epoch && c.Step == o.Step }

// Place returns the index of the voter, or -1 where it is not one.
func (c Config) Place(v Voter) int {
	for i, o := range c.Voters {
		if o == v {
			return i
		}
	}
	return -1
}

func (c Config) String() string { return fmt.Sprintf("%d.%d", c.Epoch, c.Step) }

// Majority is the smallest number of n voters of which any two such groups share one.
func Majority(n int) int {
	if mutant.HalfIsMajority {
		return max((n+1)/2, 1)
	}
	return n/2 + 1
}
