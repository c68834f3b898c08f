package enginetest

import (
	"fmt"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Kill ends the volume's writer as SIGKILL does: its device is lost until it is detached.
func (m *Memory) Kill(id volume.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil && v.writer != nil {
		v.writer.dead = true
	}
}

// Succeed ends the volume's writer and has the next one take its device over, as where an engine process dies beneath a device that
// outlives it: the guest goes on under a newer epoch, and nobody has stopped the writer of that.
func (m *Memory) Succeed(id volume.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, r, err := m.current(id)
	if err != nil || v.writer == nil || v.writer.dead {
		panic(fmt.Sprintf("enginetest: volume %s has no writer to succeed: %v", id, err))
	}
	before := v.writer
	s, r, err := m.take(v, r, before.at)
	if err != nil {
		panic(fmt.Sprintf("enginetest: volume %s: %v", id, err))
	}
	s.unclean = before.unclean
	r.staged, r.sealed, r.clean, r.writer = true, false, false, r.epoch
	if _, err := m.commit(v, r); err != nil {
		panic(fmt.Sprintf("enginetest: volume %s: %v", id, err))
	}
	v.writer = s
}

// Forget is the machine's restart: no device of the volume is left.
func (m *Memory) Forget(id volume.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil && v.writer != nil {
		v.writer.dead = true
		v.writer = nil
	}
}

// Down takes a replica's place away; Up brings it back as it was.
func (m *Memory) Down(r engine.ReplicaID) { m.reach(r, true) }

// Up undoes Down.
func (m *Memory) Up(r engine.ReplicaID) { m.reach(r, false) }

func (m *Memory) reach(r engine.ReplicaID, down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.places {
		if p.id == r {
			p.down = down
			return
		}
	}
	panic(fmt.Sprintf("enginetest: no replica %s", r))
}

// Flip changes the byte at off in one replica by the bits of mask, and leaves its checksum as it was.
func (m *Memory) Flip(id volume.ID, r engine.ReplicaID, off volume.Bytes, mask byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, p := range m.places {
		if p.id == r {
			m.volumes[id].copies[i].blocks[int64(off/blockSize)].data[off%blockSize] ^= mask
			return
		}
	}
	panic(fmt.Sprintf("enginetest: no replica %s", r))
}

// Replicas are the names of all places.
func (m *Memory) Replicas() (out []engine.ReplicaID) {
	for _, p := range m.places {
		out = append(out, p.id)
	}
	return out
}

// MemoryHarness is the harness of a fresh Memory.
func MemoryHarness(t *testing.T) *Harness {
	const node = "memory-node"
	m := NewMemory(MemoryOptions{})
	return &Harness{
		Control: m, Node: m.On(node), NodeID: node, Elsewhere: "memory-elsewhere",
		Replicas: len(m.places), Size: 16 * volume.MiB,
		Open: func(t *testing.T, d engine.Device) Handle {
			return openMemory(t, m, d)
		},
		Restart: func(*testing.T) (engine.Control, engine.Node) { return m, m.On(node) },
		Kill:    func(_ *testing.T, id volume.ID) { m.Kill(id) },
		Damage: func(_ *testing.T, id volume.ID, r engine.ReplicaID, off volume.Bytes, mask byte) {
			m.Flip(id, r, off, mask)
		},
		Down: func(_ *testing.T, r engine.ReplicaID) { m.Down(r) },
		Up:   func(_ *testing.T, r engine.ReplicaID) { m.Up(r) },
	}
}

type memHandle struct {
	m      *Memory
	id     volume.ID
	writer volume.Epoch
}

func openMemory(t *testing.T, m *Memory, d engine.Device) Handle {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, v := range m.volumes {
		if s := v.zombies[d.Writer]; s != nil && s.device().Path == d.Path {
			return memHandle{m, id, d.Writer}
		}
	}
	t.Fatalf("no device %s", d.Path)
	return nil
}

func (h memHandle) WriteAt(p []byte, off int64) error { return h.m.Write(h.id, h.writer, off, p) }
func (h memHandle) ReadAt(p []byte, off int64) error  { return h.m.Read(h.id, h.writer, off, p) }
func (h memHandle) Flush() error                      { return nil }
func (h memHandle) Close() error                      { return nil }
