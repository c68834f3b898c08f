package store

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// openPair opens a replica in each of two stores on the file system.
func openPair(t *testing.T, fsys vfs.FS) (a, b *Replica) {
	t.Helper()
	var out [2]*Replica
	for i, name := range []string{"/a/store", "/b/store"} {
		d, err := OpenDir(fsys, name, installation)
		must(t, err)
		out[i] = newReplica(t, d)
	}
	return out[0], out[1]
}

// TestTransfers: what is written to several replicas at once is what each would have been given by itself, also where
// it goes over the end of a frame.
func TestTransfers(t *testing.T) {
	a, b := openPair(t, vfs.NewMem())
	rng := rand.New(rand.NewPCG(1, 2))
	blocks, entries := blocksOf(rng, 7), blocksOf(rng, PagesPerRegion+2)
	const block, page = RegionBlocks - 3, PagesPerRegion - 1
	w := NewTransfers()
	for _, r := range []*Replica{a, b} {
		w.WriteBlocks(r, blocks, block)
		w.WriteEntries(r, entries, page)
	}
	ran := false
	w.Do(func() { ran = true })
	if w.Err(a) != nil || w.Err(b) != nil || !ran {
		t.Fatal(w.Err(a), w.Err(b), ran)
	}
	w.Free()
	for _, r := range []*Replica{a, b} {
		single, together := vfs.AlignedBuffer(len(blocks)), vfs.AlignedBuffer(len(blocks))
		singleEntries, togetherEntries := vfs.AlignedBuffer(len(entries)), vfs.AlignedBuffer(len(entries))
		must(t, r.ReadBlocks(single, block))
		must(t, r.ReadEntries(singleEntries, page))
		x := NewTransfers()
		x.ReadBlocks(r, together, block)
		x.ReadEntries(r, togetherEntries, page)
		x.Do(nil)
		must(t, x.Err(r))
		x.Free()
		if !bytes.Equal(single, blocks) || !bytes.Equal(together, blocks) {
			t.Error("blocks differ from what was written")
		}
		if !bytes.Equal(singleEntries, entries) || !bytes.Equal(togetherEntries, entries) {
			t.Error("entries differ from what was written")
		}
	}
}

// TestTransfersFailTheirReplica: a failure is that of the replica whose disk it was; a full disk fails none, unless
// something worse comes with it.
func TestTransfersFailTheirReplica(t *testing.T) {
	var sick atomic.Bool
	a, b := openPair(t, vfs.Faulty(vfs.NewMem(), func(op *vfs.Op) error {
		switch {
		case !sick.Load() || op.Kind != vfs.OpWrite || !strings.HasPrefix(op.Name, "/b/"):
			return nil
		case op.Offset%frameSize < entriesSize:
			return syscall.ENOSPC
		}
		return syscall.EIO
	}))
	sick.Store(true)
	write := func(blocks bool) (errA, errB error) {
		w := NewTransfers()
		defer w.Free()
		for _, r := range []*Replica{a, b} {
			w.WriteEntries(r, vfs.AlignedBuffer(PageSize), 0)
			if blocks {
				w.WriteBlocks(r, vfs.AlignedBuffer(BlockSize), 0)
			}
		}
		w.Do(nil)
		return w.Err(a), w.Err(b)
	}
	errA, errB := write(false)
	must(t, errA)
	wantError(t, "full disk", errB, syscall.ENOSPC)
	must(t, b.Failed())
	errA, errB = write(true)
	must(t, errA)
	wantError(t, "broken disk", errB, syscall.EIO)
	wantError(t, "its replica", b.Failed(), ErrFailed)
	sick.Store(false)
	errA, errB = write(true)
	must(t, errA)
	wantError(t, "failed replica", errB, ErrFailed)
	must(t, a.Failed())
	w := NewTransfers()
	defer w.Free()
	w.ReadBlocks(a, vfs.AlignedBuffer(BlockSize), -1)
	w.Do(nil)
	if w.Err(a) == nil {
		t.Error("a read before the first block succeeds")
	}
}
