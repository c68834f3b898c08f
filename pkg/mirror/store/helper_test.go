package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

var installation = quorum.UUID{1, 2, 3}

const testID = volume.ID("pvc-1")

func openStore(t testing.TB, fsys vfs.FS) *Dir {
	t.Helper()
	d, err := OpenDir(fsys, "/disk/store", installation)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func superOf(d *Dir) Superblock {
	return Superblock{
		Volume:           testID,
		UUID:             quorum.UUID{4},
		Store:            d.ID(),
		Incarnation:      quorum.UUID{5, 6},
		Key:              digest.Key{7},
		LogicalBlockSize: 4096,
		Created:          time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
	}
}

func configAt(e volume.Epoch, step uint32) quorum.Config {
	return quorum.Config{
		Epoch:      e,
		Step:       step,
		Voters:     []quorum.Voter{{Store: quorum.UUID{1}, Incarnation: quorum.UUID{2}}, {Store: quorum.UUID{3}, Incarnation: quorum.UUID{4}}},
		Members:    quorum.SetOf(0, 1),
		Size:       64 * RegionSize,
		Attributes: []byte(`{"fsType":"ext4"}`),
	}
}

// fullRecord has every field set, and attributes as long as they may be.
func fullRecord(seq uint64) Record {
	c := configAt(9, 3)
	c.Flags = quorum.Sealed | quorum.Deleted
	c.Published, c.Writer = 8, 7
	c.Digest, c.Head = [32]byte{1, 31: 2}, [32]byte{3, 31: 4}
	c.Attributes = bytes.Repeat([]byte{'x'}, quorum.AttributesMax)
	for len(c.Voters) < quorum.ReplicasMax {
		c.Voters = append(c.Voters, quorum.Voter{Store: quorum.UUID{15: byte(len(c.Voters))}, Incarnation: quorum.UUID{0: 9}})
	}
	c.Members = quorum.All(quorum.ReplicasMax)
	return Record{
		Sequence: seq, Promised: 11, Lossy: true, Config: c,
		Session: Session{ID: quorum.UUID{1}, Open: true, Boot: quorum.UUID{2}, Mount: 77},
	}
}

func newReplica(t testing.TB, d *Dir) *Replica {
	t.Helper()
	if err := d.Create(superOf(d), configAt(1, 1)); err != nil {
		t.Fatal(err)
	}
	return openReplica(t, d)
}

func openReplica(t testing.TB, d *Dir) *Replica {
	t.Helper()
	r, err := d.Open(testID, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// newMem is an empty disk with a replica, closed.
func newMem(t testing.TB) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	must(t, newReplica(t, openStore(t, m)).Close())
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

// same compares records in every field.
func same(a, b Record) bool {
	return a.Sequence == b.Sequence && a.Promised == b.Promised && a.Lossy == b.Lossy && a.Session == b.Session && sameConfig(a.Config, b.Config)
}

// alter changes a file behind everybody's back.
func alter(t testing.TB, fsys vfs.FS, name string, off int64, change func([]byte)) {
	t.Helper()
	f, err := fsys.Open(name, 0)
	must(t, err)
	defer f.Close()
	p := make([]byte, 512)
	must(t, f.ReadAt(p, off))
	change(p)
	must(t, f.WriteAt(p, off))
	must(t, f.Datasync())
}

func blocksOf(rng *rand.Rand, n int) []byte {
	p := vfs.AlignedBuffer(n * BlockSize)
	for i := 0; i < len(p); i += 64 {
		p[i] = byte(rng.Uint32())
	}
	return p
}
