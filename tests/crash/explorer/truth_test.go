package explorer

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const (
	sectorSize   = 512
	blockSectors = store.BlockSize / sectorSize
)

// sectors are the values that fill a block's sectors.
type sectors [blockSectors]uint64

func (v sectors) bytes() []byte {
	p := vfs.AlignedBuffer(store.BlockSize)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v[i/sectorSize])
	}
	return p
}

// sectorsOf reads a block. It is false where a sector is not filled with one value.
func sectorsOf(p []byte) (v sectors, ok bool) {
	for i := range v {
		v[i] = binary.LittleEndian.Uint64(p[i*sectorSize:])
	}
	for i := 0; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != v[i/sectorSize] {
			return v, false
		}
	}
	return v, true
}

// written is a write of one value to some sectors of a block.
type written struct {
	from, to int
	value    uint64
	answered bool
}

func (w written) covers(sector int) bool { return w.from <= sector && sector < w.to }

// content is what is promised of a block.
type content struct {
	stable sectors   // flushed
	acked  sectors   // acknowledged: what survives as long as a disk keeps its cache
	since  []written // since the last flush, in order
}

// truth is what a guest, and those who asked for more, were promised of a volume.
type truth struct {
	stores   int
	size     volume.Bytes
	growing  volume.Bytes // what is being asked for; 0: nothing
	blocks   map[int64]*content
	epoch    volume.Epoch // newest writer that was told it is one
	receipts []string     // whose seals are in force
	sealing  string       // whose seal is being asked for; "": none
	warm     bool         // a device of that writer is alive: an engine may follow it warm
	maimed   bool         // a disk was lost meanwhile: members may be few, and lossy
}

func (h *truth) block(i int64) *content {
	if h.blocks[i] == nil {
		h.blocks[i] = &content{}
	}
	return h.blocks[i]
}

// clone is the truth at this moment.
func (h *truth) clone() *truth {
	now := *h
	now.blocks = make(map[int64]*content, len(h.blocks))
	for i, c := range h.blocks {
		again := *c
		again.since = slices.Clone(c.since)
		now.blocks[i] = &again
	}
	now.receipts = slices.Clone(h.receipts)
	return &now
}

// begin says that sectors of a block, counted from that of the volume, are about to be written.
func (h *truth) begin(from, to int64, value uint64) {
	h.eachBlock(from, to, func(c *content, from, to int) { c.since = append(c.since, written{from, to, value, false}) })
}

// answer says that they were.
func (h *truth) answer(from, to int64, value uint64) {
	h.eachBlock(from, to, func(c *content, from, to int) {
		c.since[len(c.since)-1].answered = true
		for i := from; i < to; i++ {
			c.acked[i] = value
		}
	})
}

func (h *truth) eachBlock(from, to int64, do func(c *content, from, to int)) {
	for from < to {
		end := min(to, (from/blockSectors+1)*blockSectors)
		do(h.block(from/blockSectors), int(from%blockSectors), int(from%blockSectors+end-from))
		from = end
	}
}

// flushed says that everything acknowledged is on stable media.
func (h *truth) flushed() {
	for _, c := range h.blocks {
		c.stable = c.acked
		c.since = slices.DeleteFunc(c.since, func(w written) bool { return w.answered })
	}
}

// attached says that a writer came behind one that had not flushed: what is read now is what is promised.
func (h *truth) attached(now map[int64]sectors) {
	for i, v := range now {
		*h.block(i) = content{stable: v, acked: v}
	}
}

// takenOver says that another engine serves the device: what was not answered is what it shows now, or not there.
func (h *truth) takenOver(now map[int64]sectors) {
	for i, v := range now {
		c := h.block(i)
		c.acked = v
		for k := range c.since {
			c.since[k].answered = true
		}
	}
}

// reader reads blocks of a volume.
type reader interface {
	ReadAt(p []byte, off int64) error
}

// read returns all blocks that were ever written.
func (h *truth) read(r reader) (map[int64]sectors, error) {
	p := vfs.AlignedBuffer(store.BlockSize)
	out := make(map[int64]sectors, len(h.blocks))
	for _, i := range slices.Sorted(maps.Keys(h.blocks)) {
		if err := r.ReadAt(p, i*store.BlockSize); err != nil {
			return nil, fmt.Errorf("block %d cannot be read: %w", i, err)
		}
		v, ok := sectorsOf(p)
		if !ok {
			return nil, fmt.Errorf("block %d holds what was never written: %v", i, v)
		}
		out[i] = v
	}
	return out, nil
}

// allows says what is wrong with the content, nil where nothing is. Each sector holds what was flushed, or a write since; warm, what
// was acknowledged, or a write that was not answered.
func (h *truth) allows(got map[int64]sectors, warm bool) error {
	for i, v := range got {
		c := h.blocks[i]
		for k, value := range v {
			ok := value == c.stable[k]
			if warm {
				ok = value == c.acked[k]
			}
			for _, w := range c.since {
				ok = ok || w.covers(k) && w.value == value && !(warm && w.answered)
			}
			if !ok {
				return fmt.Errorf("block %d holds %v; flushed was %v, acknowledged %v, since the flush %+v (warm: %t)", i, v, c.stable, c.acked, c.since, warm)
			}
		}
	}
	return nil
}
