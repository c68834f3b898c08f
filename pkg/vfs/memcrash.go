package vfs

import (
	"math/rand/v2"
)

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
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	d := m.disk
	c := &crash{luck: newLuck(rng), nodes: map[*memNode]*memNode{}, names: map[*memNode]map[string]*memNode{}}
	c.survivors(d.renames)
	after := &memDisk{
		nextInode: d.nextInode,
		capacity:  d.capacity,
		readOnly:  d.readOnly,
		device:    d.device,
		mount:     mounts.Add(1),
	}
	after.root = c.node(after, d.root)
	return newProcess(after)
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
		n.media = newLuck(rng).media(n)
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

func (l *luck) survives() bool { return l.rng != nil && l.rng.Float64() < l.bias }

func (l *luck) torn() bool { return l.rng != nil && l.rng.IntN(3) == 0 }

func (l *luck) coin() bool { return l.rng.IntN(2) == 0 }

// media returns what is left of a file.
func (l *luck) media(n *memNode) memData {
	left := n.media.clone()
	for _, c := range n.unsynced {
		switch {
		case c.data != nil && l.torn():
			left.tear(c, l.coin)
		case l.survives():
			left.apply(c)
		}
	}
	return left
}

// crash builds the tree that is left.
type crash struct {
	luck  *luck
	names map[*memNode]map[string]*memNode // directories by what is left of their names, where that differs from stable
	nodes map[*memNode]*memNode            // what was rebuilt already
}

// survivors decides which changes of names are left.
func (c *crash) survivors(changes []*nameChange) {
	lost := map[*nameChange]bool{}
	for _, change := range changes {
		lost[change] = !c.luck.survives()
		for _, need := range change.needs {
			lost[change] = lost[change] || lost[need]
		}
		if lost[change] {
			continue
		}
		for _, s := range change.sets {
			c.set(s)
		}
	}
}

func (c *crash) set(s nameSet) {
	names := c.names[s.dir]
	if names == nil {
		names = map[string]*memNode{}
		for name, n := range s.dir.stable {
			names[name] = n
		}
		c.names[s.dir] = names
	}
	if s.node == nil {
		delete(names, s.name)
	} else {
		names[s.name] = s.node
	}
}

// node rebuilds n and what is below it, in the order of names, so that a seed decides alike each time.
func (c *crash) node(d *memDisk, n *memNode) *memNode {
	if c.nodes[n] != nil {
		return c.nodes[n]
	}
	left := &memNode{inode: n.inode, dir: n.dir, named: true}
	c.nodes[n] = left
	if !n.dir {
		left.media = c.luck.media(n)
		left.data = left.media.clone()
		d.used += left.data.allocated()
		return left
	}
	names := n.stable
	if c.names[n] != nil {
		names = c.names[n]
	}
	left.names, left.stable = map[string]*memNode{}, map[string]*memNode{}
	for _, name := range sortedNames(names) {
		child := c.node(d, names[name])
		left.names[name], left.stable[name] = child, child
	}
	return left
}
