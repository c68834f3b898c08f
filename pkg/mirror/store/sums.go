package store

import (
	"maps"
	"slices"

	"github.com/belay-storage/belay/pkg/mirror/digest"
)

const (
	sumsPerPage = PageSize / digest.SumSize
	totalChunk  = 256 << 10 // read at once by Total: sums of 32 GiB
)

// ReadSums fills dst with the sums of the regions from first on. That of a region never written is zero; that of a
// dirty region means nothing.
func (r *Replica) ReadSums(dst []digest.Sum, first int64) error {
	if err := r.inRange(first, int64(len(dst)), 1); err != nil || len(dst) == 0 {
		return err
	}
	from := first / sumsPerPage * PageSize
	end := (first + int64(len(dst)) + sumsPerPage - 1) / sumsPerPage * PageSize
	p := aligned(int(end - from))
	if err := r.regions.ReadAt(p, from); err != nil {
		return r.read("sums", err)
	}
	p = p[first*digest.SumSize-from:]
	for i := range dst {
		dst[i] = digest.SumOf(p[i*digest.SumSize:])
	}
	return nil
}

// WriteSums records the sums of regions. When it returns nil that is durable; after a power cut meanwhile each is the old or the
// new one. On a full disk (ENOSPC) some may be written and the replica goes on.
func (r *Replica) WriteSums(sums map[int64]digest.Sum) error {
	regions := slices.Sorted(maps.Keys(sums))
	if err := r.checkRegions(regions); err != nil || len(sums) == 0 {
		return err
	}
	r.sumsMu.Lock()
	defer r.sumsMu.Unlock()
	p := aligned(PageSize)
	for len(regions) > 0 {
		page := regions[0] / sumsPerPage
		n := 0
		for n < len(regions) && regions[n]/sumsPerPage == page {
			n++
		}
		if err := r.patchSums(p, page, regions[:n], sums); err != nil {
			return err
		}
		regions = regions[n:]
	}
	return r.synced("syncing sums", r.regions.Datasync())
}

// patchSums reads a page of sums into p, sets those of the regions and writes it.
func (r *Replica) patchSums(p []byte, page int64, regions []int64, sums map[int64]digest.Sum) error {
	if err := r.Failed(); err != nil {
		return err
	}
	if err := r.regions.ReadAt(p, page*PageSize); err != nil {
		return r.read("sums", err)
	}
	for _, i := range regions {
		s := sums[i].Bytes()
		copy(p[i%sumsPerPage*digest.SumSize:], s[:])
	}
	return r.wroteSpace("writing sums", r.regions.WriteAt(p, page*PageSize))
}

// Total returns the sum over the sums of all regions. Holes are not read.
func (r *Replica) Total() (total digest.Sum, err error) {
	info, err := r.regions.Info()
	if err != nil {
		return total, r.read("sums", err)
	}
	p := aligned(totalChunk)
	for off := int64(0); off < info.Size; off += totalChunk {
		if off, err = r.regions.NextData(off); err != nil || off >= info.Size {
			return total, r.read("sums", err)
		}
		off -= off % PageSize
		if err := r.regions.ReadAt(p, off); err != nil {
			return total, r.read("sums", err)
		}
		for i := 0; i < len(p); i += digest.SumSize {
			total = total.Plus(digest.SumOf(p[i:]))
		}
	}
	return total, nil
}
