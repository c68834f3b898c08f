package mirror

import (
	"fmt"

	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Read-back works in chunks of this many blocks (1 MiB), and reads through gaps of at most gapBlocks rather than seeking.
const (
	chunkBlocks = 256
	gapBlocks   = 8
)

// image is what one replica holds of a region, read from its media: its entries, and the checksums of the blocks that
// were asked for, computed from what was read.
type image struct {
	replica *replica
	entries [store.RegionBlocks]digest.Entry
	sound   blockset // entries that check
	data    [store.RegionBlocks]digest.Hash
	read    blockset // blocks that could be read
	bytes   volume.Bytes
}

// copyOf is block i of the region as a candidate of a decision.
func (m *image) copyOf(i int64) quorum.Copy {
	e := m.entries[i]
	return quorum.Copy{
		Replica: m.replica.index, Read: m.read.has(i), Data: quorum.Hash(m.data[i]),
		Entry: m.sound.has(i), Stored: quorum.Hash(e.Hash), Version: quorum.Version(e.Version),
	}
}

// readImage reads the entries of a region and the wanted blocks from r. An error of the entries is an error; blocks that cannot be
// read are left out of image.read.
func readImage(h *digest.Hasher, r *replica, region int64, want *blockset) (*image, error) {
	m := &image{replica: r}
	if err := m.readEntries(region); err != nil {
		return nil, fmt.Errorf("entries of region %d: %w", region, err)
	}
	buf := vfs.GetBuffer(chunkBlocks * store.BlockSize)
	defer vfs.PutBuffer(buf)
	for first, n := nextRun(want, 0); n > 0; first, n = nextRun(want, first+n) {
		m.readRun(h, region*store.RegionBlocks, first, n, buf)
	}
	return m, nil
}

func (m *image) readEntries(region int64) error {
	raw := vfs.GetBuffer(store.PagesPerRegion * store.PageSize)
	defer vfs.PutBuffer(raw)
	if err := m.replica.ReadEntries(raw, region*store.PagesPerRegion); err != nil {
		return err
	}
	m.bytes += volume.Bytes(len(raw))
	for i := range int64(store.RegionBlocks) {
		e, ok := digest.Decode(raw[i*digest.EntrySize:(i+1)*digest.EntrySize], region*store.RegionBlocks+i)
		if m.entries[i] = e; ok {
			m.sound.add(i)
		}
	}
	return nil
}

func (m *image) readRun(h *digest.Hasher, base, first, n int64, buf []byte) {
	p := buf[:n*store.BlockSize]
	if err := m.replica.ReadBlocks(p, base+first); err != nil {
		m.readSingly(h, base, first, n, buf)
		return
	}
	m.bytes += volume.Bytes(len(p))
	for i := range n {
		m.data[first+i] = h.Block(base+first+i, p[i*store.BlockSize:(i+1)*store.BlockSize])
		m.read.add(first + i)
	}
}

// readSingly finds out which blocks of a run that failed can be read.
func (m *image) readSingly(h *digest.Hasher, base, first, n int64, buf []byte) {
	p := buf[:store.BlockSize]
	for i := first; i < first+n; i++ {
		if m.replica.ReadBlocks(p, base+i) == nil {
			m.data[i] = h.Block(base+i, p)
			m.read.add(i)
		}
	}
}

// nextRun returns the next row of wanted blocks at or after from, at most chunkBlocks long, short gaps included.
func nextRun(want *blockset, from int64) (first, n int64) {
	for first = from; first < store.RegionBlocks && !want.has(first); first++ {
	}
	if first == store.RegionBlocks {
		return first, 0
	}
	end := first + 1
	for i := end; i < store.RegionBlocks && i-end <= gapBlocks && i-first < chunkBlocks; i++ {
		if want.has(i) {
			end = i + 1
		}
	}
	return first, end - first
}

// readImages reads the region from all replicas at once. Those that could not be read are failures.
func readImages(h *digest.Hasher, replicas []*replica, region int64, want *blockset) ([]*image, failures) {
	all := make([]*image, len(replicas))
	at := map[*replica]int{}
	for i, r := range replicas {
		at[r] = i
	}
	failed := each(replicas, func(r *replica) error {
		m, err := readImage(h, r, region, want)
		all[at[r]] = m
		return err
	}, nil)
	out := all[:0]
	for _, m := range all {
		if m != nil {
			out = append(out, m)
		}
	}
	return out, failed
}

func newer(a, b digest.Version) bool { return quorum.Version(a).Newer(quorum.Version(b)) }
