package store

import (
	"bytes"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

func encodeCheck(p []byte) { putCheck(p[len(p)-4:], crc32.Checksum(p[:len(p)-4], castagnoli)) }

func testSuper() Superblock {
	return Superblock{
		Volume: "pvc-1", UUID: quorum.UUID{1}, Store: quorum.UUID{2}, Incarnation: quorum.UUID{3},
		Key: digest.Key{4, 31: 5}, LogicalBlockSize: 512, Created: time.Unix(5, 6).UTC(),
	}
}

func twins(s Superblock) []byte {
	p := make([]byte, 2*superblockSize)
	encodeSuperblock(p[:superblockSize], s)
	encodeSuperblock(p[superblockSize:], s)
	return p
}

func TestSuperblockRoundTrip(t *testing.T) {
	long := testSuper()
	long.Volume, long.Created = volume.ID(strings.Repeat("a", volume.IDMax)), time.Time{}
	for _, s := range []Superblock{testSuper(), long} {
		got, damaged, err := decodeSuperblocks(twins(s))
		if got != s || damaged != nil || err != nil {
			t.Errorf("%+v decodes as %+v, damaged %v, %v", s, got, damaged, err)
		}
	}
}

func TestSuperblockFlippedByte(t *testing.T) {
	whole := twins(testSuper())
	for i := range whole {
		p := bytes.Clone(whole)
		p[i] ^= 0x10
		got, damaged, err := decodeSuperblocks(p)
		if got != testSuper() || len(damaged) != 1 || damaged[0] != i/superblockSize || err != nil {
			t.Fatalf("byte %d flipped: %+v, damaged %v, %v", i, got, damaged, err)
		}
	}
}

func TestSuperblocksDamaged(t *testing.T) {
	other := testSuper()
	other.Incarnation = quorum.UUID{9}
	contradiction := twins(testSuper())
	copy(contradiction, twins(other)[:superblockSize])
	newer := twins(testSuper())
	for _, p := range [][]byte{newer[:superblockSize], newer[superblockSize:]} {
		p[8] = FormatVersion + 1
		encodeCheck(p)
	}
	for _, c := range []struct {
		name string
		p    []byte
		want error
	}{
		{"blank", make([]byte, 2*superblockSize), ErrDamaged},
		{"contradiction", contradiction, ErrDamaged},
		{"newer version", newer, ErrFormat},
	} {
		if _, damaged, err := decodeSuperblocks(c.p); !errors.Is(err, c.want) || len(damaged) != 2 {
			t.Errorf("%s: damaged %v, %v", c.name, damaged, err)
		}
	}
}

func TestSuperblockRefused(t *testing.T) {
	for name, alter := range map[string]func(*Superblock){
		"path trick":     func(s *Superblock) { s.Volume = "../x" },
		"block size":     func(s *Superblock) { s.LogicalBlockSize = 1024 },
		"no incarnation": func(s *Superblock) { s.Incarnation = quorum.UUID{} },
	} {
		s := testSuper()
		alter(&s)
		wantError(t, name, s.validate(), volume.ErrInvalid)
		if _, _, err := decodeSuperblocks(twins(s)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: decodes: %v", name, err)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	f.Add(twins(testSuper())[:superblockSize])
	f.Add(make([]byte, superblockSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) != superblockSize {
			return
		}
		p = bytes.Clone(p)
		encodeCheck(p)
		s, err := decodeSuperblock(p)
		if err != nil {
			return
		}
		if got, _, err := decodeSuperblocks(twins(s)); err != nil || got != s {
			t.Errorf("%+v encodes as %+v, %v", s, got, err)
		}
	})
}
