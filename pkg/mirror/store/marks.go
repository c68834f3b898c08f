package store

import (
	"fmt"
	"slices"
	"sync"

	"github.com/belay-storage/belay/pkg/volume"
)

// batches groups the marks of writers that come while meta is being written: the first of them writes for all.
type batches struct {
	mu   sync.Mutex
	next *batch
}

type batch struct {
	regions []int64
	done    chan struct{}
	err     error // valid when done is closed
}

// join adds the regions to the batch that is written next. first says that the caller writes it.
func (b *batches) join(regions []int64) (next *batch, first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if first = b.next == nil; first {
		b.next = &batch{done: make(chan struct{})}
	}
	b.next.regions = append(b.next.regions, regions...)
	return b.next, first
}

// seal ends the batch: who comes later joins another.
func (b *batches) seal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = nil
}

// loadDirty reads the dirty map. What cannot be read is dirty as far as anything can have been written.
func (r *Replica) loadDirty() error {
	p, err := r.readDirtyMap()
	if err != nil {
		return err
	}
	data, err := r.data.Info()
	if err != nil {
		return err
	}
	written := regionsOf(int64(r.record.Load().Config.Size))
	covered := min(max(written, (data.Size+frameSize-1)/frameSize), RegionsMax)
	var damaged int
	r.dirty, damaged = decodeDirty(p, r.super.Incarnation, written, covered)
	r.written = slices.Clone(r.dirty)
	if damaged > 0 {
		r.damage = append(r.damage, fmt.Sprintf("%d units of the dirty map were damaged and count as all dirty", damaged))
	}
	return nil
}

// readDirtyMap returns the pages of meta that may hold the dirty map.
func (r *Replica) readDirtyMap() ([]byte, error) {
	meta, err := r.meta.Info()
	if err != nil {
		return nil, err
	}
	pages := min((max(meta.Size-dirtyOffset, 0)+PageSize-1)/PageSize, pagesFor(RegionsMax))
	p := aligned(int(pages * PageSize))
	if len(p) == 0 {
		return nil, nil
	}
	return p, r.meta.ReadAt(p, dirtyOffset)
}

// IsDirty says whether the region is marked, durably.
func (r *Replica) IsDirty(region int64) bool {
	r.dirtyMu.RLock()
	defer r.dirtyMu.RUnlock()
	return r.dirty.has(region)
}

// Dirty lists the regions for which IsDirty is true, in ascending order.
func (r *Replica) Dirty() []int64 {
	r.dirtyMu.RLock()
	defer r.dirtyMu.RUnlock()
	return r.dirty.list()
}

// MarkDirty marks the regions. When it returns nil that is durable. Concurrent calls share a write and a sync. On a full
// disk (ENOSPC) nothing is marked and the replica goes on.
func (r *Replica) MarkDirty(regions []int64) error {
	if err := r.checkRegions(regions); err != nil {
		return err
	}
	if err := r.Failed(); err != nil || r.allDirty(regions) {
		return err
	}
	b, first := r.batches.join(regions)
	if !first {
		<-b.done
		return b.err
	}
	r.metaMu.Lock()
	r.batches.seal()
	b.err = r.writeMarks(b.regions)
	r.metaMu.Unlock()
	close(b.done)
	return b.err
}

func (r *Replica) allDirty(regions []int64) bool {
	r.dirtyMu.RLock()
	defer r.dirtyMu.RUnlock()
	return !slices.ContainsFunc(regions, func(i int64) bool { return !r.dirty.has(i) })
}

// writeMarks makes the marks durable before anybody can see them: who sees one writes data without another.
func (r *Replica) writeMarks(regions []int64) error {
	r.written = r.written.grown(slices.Max(regions) + 1)
	for _, i := range regions {
		r.written.set(i)
	}
	if err := r.writeDirtyPages(pagesOf(regions)); err != nil {
		return err
	}
	r.dirtyMu.Lock()
	defer r.dirtyMu.Unlock()
	r.dirty = r.dirty.grown(int64(len(r.written)) * 64)
	for _, i := range regions {
		r.dirty.set(i)
	}
	return nil
}

// ClearDirty takes the marks away. The caller has made the regions' sums durable, and nothing is written to the
// regions meanwhile: IsDirty is false from the start of the call. When it returns nil that is durable.
func (r *Replica) ClearDirty(regions []int64) error {
	if err := r.checkRegions(regions); err != nil || len(regions) == 0 {
		return err
	}
	r.metaMu.Lock()
	defer r.metaMu.Unlock()
	if err := r.Failed(); err != nil {
		return err
	}
	r.dirtyMu.Lock()
	regions = slices.DeleteFunc(slices.Clone(regions), func(i int64) bool { return !r.dirty.has(i) })
	for _, i := range regions {
		r.dirty.unset(i)
		r.written.unset(i)
	}
	r.dirtyMu.Unlock()
	return r.writeDirtyPages(pagesOf(regions))
}

// extendDirty writes the units of the regions below n: only with them on the disk is a blank unit known to be a lost one.
func (r *Replica) extendDirty(n int64) error {
	had := pagesFor(regionsOf(int64(r.record.Load().Config.Size)))
	r.written = r.written.grown(n)
	var pages []int64
	for g := had; g < pagesFor(n); g++ {
		pages = append(pages, g)
	}
	return r.writeDirtyPages(pages)
}

// writeDirtyPages writes pages of the dirty map, durably.
func (r *Replica) writeDirtyPages(pages []int64) error {
	if err := r.Failed(); err != nil || len(pages) == 0 {
		return err
	}
	p := aligned(PageSize)
	for _, g := range pages {
		r.written.encodePage(p, g, r.super.Incarnation)
		if err := r.meta.WriteAt(p, dirtyOffset+g*PageSize); err != nil {
			return r.wroteSpace("writing the dirty map", err)
		}
	}
	return r.synced("syncing the dirty map", r.meta.Datasync())
}

// pagesOf lists the pages that hold the regions, each once.
func pagesOf(regions []int64) []int64 {
	pages := make([]int64, 0, len(regions))
	for _, i := range regions {
		pages = append(pages, i/pageRegions)
	}
	slices.Sort(pages)
	return slices.Compact(pages)
}

func (r *Replica) checkRegions(regions []int64) error {
	if slices.ContainsFunc(regions, func(i int64) bool { return i < 0 || i >= RegionsMax }) {
		return r.dir.replicaError(r.id, fmt.Errorf("%w regions: %d to %d", volume.ErrInvalid, slices.Min(regions), slices.Max(regions)))
	}
	return nil
}
