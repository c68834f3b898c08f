package vfs

import (
	"math/rand/v2"
)

// Process returns another process on the disk of m. Each has its own files and locks.
func (m *Mem) Process() *Mem { return newProcess(m.disk) }

// Restart ends the process that m is, as SIGKILL does, and returns a new one on the same disk: every file of m is closed and
// every lock gone; each call on m and on its files fails with fs.ErrClosed. What was written is there but no more
// durable than before.
func (m *Mem) Restart() *Mem {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	for f := range m.files {
		f.close()
	}
	m.dead = true
	return newProcess(m.disk)
}

// CrashClone returns a disk as m's may be if the power fails now; m goes on. What was synced is there. Of what was not,
// rng decides: a write survives whole, not at all, or in some of its 512-byte sectors, independently of earlier
// and later ones; a punch, a truncation or a change of names survives or not, a change of names only together
// with earlier ones of the same name. With a nil rng nothing survives that was not synced. Equal histories and seeds give
// equal disks. The clone has the inodes and the device of m, another mount, no lock and no open file.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	i := m.Freeze()
	luck := newLuck(rng)
	return i.Crash(func(change int) Fate { return luck.fate(i.pending[change].Kind) })
}

// LoseUnsynced makes the content of a file what it may be after a power cut, for those who have it open as well: what Linux
// does to dirty pages when an fsync fails. rng decides as in CrashClone.
func (m *Mem) LoseUnsynced(name string, rng *rand.Rand) error {
	return m.look("lose", name, func() error {
		n, err := m.disk.find(name)
		if err != nil {
			return err
		}
		before := n.data.allocated()
		luck := newLuck(rng)
		left := &crash{data: map[*memNode]memData{n: n.media.clone()}}
		for _, c := range n.unsynced {
			left.apply(pending{node: n, data: c}, luck.fate(c.describe(name).Kind))
		}
		n.media = left.data[n]
		n.data, n.unsynced = n.media.clone(), nil
		m.disk.used += n.data.allocated() - before
		return nil
	})
}

// luck decides what survives. Its bias differs from crash to crash, so that the cases "nearly all" and "nearly nothing"
// come up however many writes there are.
type luck struct {
	rng  *rand.Rand
	bias float64
}

func newLuck(rng *rand.Rand) *luck {
	if rng == nil {
		return &luck{}
	}
	return &luck{rng: rng, bias: float64(rng.IntN(9)) / 8}
}

func (l *luck) fate(k Kind) Fate {
	switch {
	case l.rng == nil:
		return Fate{}
	case k == OpWrite && l.rng.IntN(3) == 0:
		return Fate{Survives: true, Torn: func(int) bool { return l.rng.IntN(2) == 0 }}
	}
	return Fate{Survives: l.rng.Float64() < l.bias}
}
