package store

import (
	"fmt"

	"github.com/belay-storage/belay/pkg/volume"
)

// ReadBlocks fills p, whole blocks at a multiple of vfs.Align in memory, from the block on.
func (r *Replica) ReadBlocks(p []byte, block int64) error {
	return r.eachFrame(blockGrid, p, block, (*Replica).readPart)
}

// WriteBlocks writes p, whole blocks at a multiple of vfs.Align in memory, from the block on, in ascending order of regions. It is
// durable after Sync. On a full disk (ENOSPC) some of it may be written and the replica goes on.
func (r *Replica) WriteBlocks(p []byte, block int64) error {
	return r.eachFrame(blockGrid, p, block, (*Replica).writePart)
}

// ReadEntries fills p, whole pages at a multiple of vfs.Align in memory, with the entries from the page on; page i holds those of
// blocks i*EntriesPerPage and following.
func (r *Replica) ReadEntries(p []byte, page int64) error {
	return r.eachFrame(entryGrid, p, page, (*Replica).readPart)
}

// WriteEntries writes what ReadEntries reads. It is durable after Sync. On a full disk as WriteBlocks.
func (r *Replica) WriteEntries(p []byte, page int64) error {
	return r.eachFrame(entryGrid, p, page, (*Replica).writePart)
}

// PunchBlocks gives n blocks back to the disk; they read as zeros. It is durable after Sync.
func (r *Replica) PunchBlocks(block, n int64) error {
	if err := r.inRange(block, n, RegionBlocks); err != nil {
		return err
	}
	for n > 0 {
		if err := r.Failed(); err != nil {
			return err
		}
		now := min(n, RegionBlocks-block%RegionBlocks)
		if err := r.wroteSpace("punching blocks", r.data.Punch(blockGrid.offset(block), now*BlockSize)); err != nil {
			return err
		}
		block, n = block+now, n-now
	}
	return nil
}

// Sync makes durable all blocks, entries and punches whose calls returned before.
func (r *Replica) Sync() error {
	if err := r.Failed(); err != nil {
		return err
	}
	return r.synced("syncing data", r.data.Datasync())
}

// NextData returns the first block not below the given one whose region may hold data or entries. It is false where
// there is none.
func (r *Replica) NextData(block int64) (int64, bool, error) {
	if err := r.inRange(block, 0, RegionBlocks); err != nil {
		return 0, false, err
	}
	info, err := r.data.Info()
	if err != nil {
		return 0, false, r.read("size", err)
	}
	from := block / RegionBlocks * frameSize
	if from >= info.Size {
		return 0, false, nil
	}
	off, err := r.data.NextData(from)
	if err != nil || off >= info.Size {
		return 0, false, r.read("holes", err)
	}
	return max(block, off/frameSize*RegionBlocks), true, nil
}

// grid is where the blocks, or the pages of entries, are within the frames.
type grid struct {
	size     int64 // of one, in bytes
	perFrame int64
	start    int64 // of the first in its frame
}

var (
	blockGrid = grid{BlockSize, RegionBlocks, entriesSize}
	entryGrid = grid{PageSize, PagesPerRegion, 0}
)

func (g grid) offset(index int64) int64 {
	return index/g.perFrame*frameSize + g.start + index%g.perFrame*g.size
}

// eachFrame cuts p, which lies in the grid from the index on, where frames end, and calls do with each part and its
// offset. do is a method expression: a closure would be allocated for each write.
func (r *Replica) eachFrame(g grid, p []byte, index int64, do func(r *Replica, p []byte, off int64) error) error {
	if int64(len(p))%g.size != 0 {
		return r.invalid(index, int64(len(p)))
	}
	if err := r.inRange(index, int64(len(p))/g.size, g.perFrame); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), (g.perFrame-index%g.perFrame)*g.size)
		if err := do(r, p[:n], g.offset(index)); err != nil {
			return err
		}
		p, index = p[n:], index+n/g.size
	}
	return nil
}

func (r *Replica) readPart(p []byte, off int64) error {
	return r.read("data", r.data.ReadAt(p, off))
}

func (r *Replica) writePart(p []byte, off int64) error {
	if err := r.Failed(); err != nil {
		return err
	}
	return r.wroteSpace("writing data", r.data.WriteAt(p, off))
}

func (r *Replica) read(what string, err error) error {
	if err == nil {
		return nil
	}
	return r.dir.errorf("volume %s: reading %s: %w", r.id, what, err)
}

func (r *Replica) inRange(index, n, perFrame int64) error {
	if last := RegionsMax * perFrame; index < 0 || n < 0 || index > last || n > last-index {
		return r.invalid(index, n)
	}
	return nil
}

func (r *Replica) invalid(index, n int64) error {
	return r.dir.replicaError(r.id, fmt.Errorf("%w range: %d from %d", volume.ErrInvalid, n, index))
}
