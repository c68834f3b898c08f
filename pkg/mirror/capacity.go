package mirror

import (
	"context"
	"fmt"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/volume"
)

// roomOf is what can still be promised on one store.
type roomOf struct {
	dir  *store.Dir
	disk uint64
	free volume.Bytes
}

// room is what each writable store that is there can still take: what its file system has, times the overcommit, less what volumes
// were promised and do not use yet. Stores on one file system share it.
func (e *Engine) room() ([]roomOf, error) {
	dirs := e.stores.present()
	promised, err := e.promised(dirs)
	if err != nil {
		return nil, err
	}
	free, sharing := map[uint64]volume.Bytes{}, map[uint64]volume.Bytes{}
	var out []roomOf
	for _, d := range dirs {
		sp, err := d.Space()
		if err != nil || sp.ReadOnly {
			continue
		}
		free[sp.Device] = volume.Bytes(float64(sp.Available) * e.Overcommit)
		sharing[sp.Device]++
		out = append(out, roomOf{dir: d, disk: sp.Device})
	}
	for _, d := range dirs {
		if sp, err := d.Space(); err == nil {
			free[sp.Device] -= promised[d]
		}
	}
	for i := range out {
		out[i].free = max(0, free[out[i].disk]/sharing[out[i].disk])
	}
	return out, nil
}

// promised is what the volumes on each store may still come to use there.
func (e *Engine) promised(dirs []*store.Dir) (map[*store.Dir]volume.Bytes, error) {
	out := map[*store.Dir]volume.Bytes{}
	for _, id := range idsIn(dirs) {
		f := survey(dirs, id)
		c, ok := f.candidate()
		if !ok {
			continue
		}
		for _, p := range f.peeks {
			if p.err != nil {
				continue
			}
			used, err := p.dir.Allocated(id)
			if err != nil {
				return nil, fmt.Errorf("%w: store %s: %w", engine.ErrUnavailable, p.dir.Path(), err)
			}
			out[p.dir] += max(0, withEntries(c.Size)-volume.Bytes(used))
		}
	}
	return out, nil
}

// withEntries is the space that a volume of that size takes when it is full.
func withEntries(size volume.Bytes) volume.Bytes {
	return size + size/store.BlockSize*digest.EntrySize
}

// largestVolume is the largest volume with n replicas that fits: the n-th best store decides, and stores that share
// a file system have its room divided already.
func largestVolume(room []roomOf, n int) volume.Bytes {
	if len(room) < n {
		return 0
	}
	frees := make([]volume.Bytes, len(room))
	for i, r := range room {
		frees[i] = r.free
	}
	slices.SortFunc(frees, func(a, b volume.Bytes) int { return int((b - a) / store.RegionSize) })
	worst := frees[n-1]
	return worst / (store.BlockSize + digest.EntrySize) * store.BlockSize / store.RegionSize * store.RegionSize
}

// Capacity implements engine.Control.
func (e *Engine) Capacity(_ context.Context, parameters map[string]string) (engine.Capacity, error) {
	l, err := parse(parameters, len(e.Stores))
	if err != nil {
		return engine.Capacity{}, err
	}
	room, err := e.room()
	if err != nil {
		return engine.Capacity{}, err
	}
	largest := largestVolume(room, l.replicas)
	return engine.Capacity{Available: largest, Largest: min(largest, sizeMax), Smallest: sizeMin}, nil
}

// Capabilities implements engine.Control.
func (e *Engine) Capabilities(_ context.Context, parameters map[string]string) (engine.Capabilities, error) {
	if _, err := parse(parameters, len(e.Stores)); err != nil {
		return engine.Capabilities{}, err
	}
	return engine.Capabilities{
		Position: engine.AttestReplica, Digest: engine.AttestReplica, Flush: engine.FlushInSync, Fence: engine.FenceSession,
		ReplicasMax: min(len(e.Stores), 5), BlockSizes: []int{4096, 512}, OnlineExpand: true, Thin: true, Repair: true, NodeLocal: true, LiveUpgrade: true, Salvage: true,
	}, nil
}
