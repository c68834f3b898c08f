package enginetest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

type sum [sha256.Size]byte

// version orders the writes of a block.
type version struct {
	epoch volume.Epoch
	seq   uint64
}

func (v version) compare(o version) int {
	return cmp.Or(cmp.Compare(v.epoch, o.epoch), cmp.Compare(v.seq, o.seq))
}

// block is one block of one copy, with the checksum that was stored with it. The zero block was never written.
type block struct {
	data    []byte
	sum     sum
	version version
}

func blockSum(index int64, data []byte) sum {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, index)
	h.Write(data)
	return sum(h.Sum(nil))
}

// good says that the copy is what was written: never written counts.
func (b block) good(index int64) bool { return b.data == nil || blockSum(index, b.data) == b.sum }

func (b block) same(o block) bool {
	return b.sum == o.sum && b.version == o.version && bytes.Equal(b.data, o.data)
}

func (b block) clone() block {
	b.data = bytes.Clone(b.data)
	return b
}

// best decides which copy of a block wins among the members of r that answer: one that matches its own checksum,
// of those the highest version, of those the expected one, else the strict majority's.
func (m *Memory) best(v *memVolume, r record, index int64, expected map[int64]sum) (block, bool) {
	var good []block
	for _, i := range m.up(v) {
		if b := v.copies[i].blocks[index]; r.members[i] && b.good(index) {
			good = append(good, b)
		}
	}
	if len(good) == 0 {
		return block{}, false
	}
	newest := slices.MaxFunc(good, func(a, b block) int { return a.version.compare(b.version) })
	good = slices.DeleteFunc(good, func(b block) bool { return b.version != newest.version })
	for _, b := range good {
		if want, known := expected[index]; known && b.sum == want {
			return b, true
		}
		if same := count(good, b); same*2 > len(good) {
			return b, true
		}
	}
	return block{}, false
}

func count(blocks []block, b block) (n int) {
	for _, o := range blocks {
		if o.same(b) {
			n++
		}
	}
	return n
}

func digestOf(size volume.Bytes, sums map[int64]sum) engine.Digest {
	h := sha256.New()
	for _, i := range slices.Sorted(maps.Keys(sums)) {
		s := sums[i]
		h.Write(s[:])
	}
	return engine.Digest{Algorithm: "memory-sha256", Scope: "full", Bytes: size, Sum: h.Sum(nil)}
}

// digest is that of the first member that answers.
func (m *Memory) digest(v *memVolume, r record) engine.Digest {
	for _, i := range m.up(v) {
		if r.members[i] {
			return digestOf(r.size, v.copies[i].sums())
		}
	}
	return engine.Digest{}
}

// Write writes through the device of the given writer, whether that is alive, asleep since its fence, or long replaced:
// whoever may not write any more is refused with engine.ErrStaleEpoch, who died with engine.ErrDeviceLost.
// off and len(p) are multiples of 4096.
func (m *Memory) Write(id volume.ID, writer volume.Epoch, off int64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, s, err := m.through(id, writer, off, len(p))
	if err != nil {
		return err
	}
	for _, i := range m.up(v) {
		if v.copies[i].promised > s.epoch {
			return fmt.Errorf("write by epoch %d of volume %s: replica %s: %w", writer, id, m.places[i].id, engine.ErrStaleEpoch)
		}
	}
	if s.dead || s.stopped || r.sealed {
		return fmt.Errorf("write by epoch %d of volume %s: %w", writer, id, engine.ErrDeviceLost)
	}
	if r, err = m.exclude(v, r); err != nil {
		return err
	}
	for ; len(p) > 0; off, p = off+blockSize, p[blockSize:] {
		m.writeBlock(v, r, s, off/blockSize, p[:blockSize])
	}
	return nil
}

func (m *Memory) writeBlock(v *memVolume, r record, s *session, index int64, p []byte) {
	s.seq++
	b := block{data: p, sum: blockSum(index, p), version: version{s.epoch, s.seq}}
	s.sums[index], s.blank = b.sum, false
	for i, member := range r.members {
		if member {
			v.copies[i].put(index, b)
			v.copies[i].dirty[index] = true
		}
	}
}

// Read reads through the device of the given writer. A copy that does not match its checksum is not used.
func (m *Memory) Read(id volume.ID, writer volume.Epoch, off int64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, s, err := m.through(id, writer, off, len(p))
	if err != nil {
		return err
	}
	if s.dead {
		return fmt.Errorf("read by epoch %d of volume %s: %w", writer, id, engine.ErrDeviceLost)
	}
	for ; len(p) > 0; off, p = off+blockSize, p[blockSize:] {
		b, found := m.best(v, r, off/blockSize, s.sums)
		if !found {
			return fmt.Errorf("read of volume %s at %d: no good copy", id, off)
		}
		clear(p[:blockSize])
		copy(p[:blockSize], b.data)
	}
	return nil
}

func (m *Memory) through(id volume.ID, writer volume.Epoch, off int64, n int) (*memVolume, record, *session, error) {
	v, r, err := m.current(id)
	if err != nil {
		return nil, record{}, nil, err
	}
	s := v.zombies[writer]
	switch {
	case s == nil:
		return nil, record{}, nil, fmt.Errorf("volume %s: no writer had epoch %d: %w", id, writer, engine.ErrNotFound)
	case off < 0 || off%blockSize != 0 || n%blockSize != 0 || off+int64(n) > int64(s.size):
		return nil, record{}, nil, fmt.Errorf("volume %s: %d bytes at %d: %w", id, n, off, engine.ErrInvalid)
	}
	return v, r, s, nil
}
