package vfs

import (
	"cmp"
	"path"
	"slices"
)

// Image is what a Mem was at one moment: what everybody saw, what was on stable media, and each change in between. It never
// changes. From it disks are made as a power cut at that moment may leave them, one for each choice of what survives. All methods may
// be called concurrently.
type Image struct {
	disk    *memDisk // a copy that nobody alters
	pending []pending
}

// Change is a change that was not durable when the image was taken.
type Change struct {
	Kind   Kind   // OpWrite, OpPunch, OpTruncate, or OpRename for a change of names, be it a creation, a move or a removal
	Name   string // of the file; of a change of names the name that changes last
	Offset int64  // of a truncation: the new size
	Len    int64  // of a write or a punch
}

// Sectors is how many 512-byte sectors a write touches, each of which survives by itself; 1 of any other change.
func (c Change) Sectors() int {
	if c.Kind != OpWrite {
		return 1
	}
	return int((c.Offset+c.Len+sector-1)/sector - c.Offset/sector)
}

// Fate is what becomes of a change. A change of names survives only together with earlier ones of the same name, and a directory goes
// only after what was moved out of it, whatever their fates say.
type Fate struct {
	Survives bool
	// Torn says, of a write that survives, which of its sectors do, counted from 0; the size of the file is then that of the whole
	// write. nil: all of them.
	Torn func(sector int) bool
}

// pending is a Change with what it is about.
type pending struct {
	Change
	order uint64
	names *nameChange // of a change of names
	node  *memNode    // else
	data  dataChange
}

// Freeze takes an image of the disk. m goes on.
func (m *Mem) Freeze() *Image {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return newImage(m.disk.copy())
}

func newImage(d *memDisk) *Image {
	i := &Image{disk: d}
	t := &namer{paths: map[*memNode]string{d.root: "/"}}
	t.walk(d.root, func(n *memNode) map[string]*memNode { return n.names })
	t.walk(d.root, func(n *memNode) map[string]*memNode { return n.stable })
	for _, c := range d.renames {
		last := c.sets[len(c.sets)-1]
		at := t.name(last.node, last.dir, last.name)
		i.pending = append(i.pending, pending{Change: Change{Kind: OpRename, Name: at}, order: c.order, names: c})
	}
	for _, n := range t.files {
		for _, c := range n.unsynced {
			i.pending = append(i.pending, pending{Change: c.describe(t.paths[n]), order: c.order, node: n, data: c})
		}
	}
	slices.SortFunc(i.pending, func(a, b pending) int { return cmp.Compare(a.order, b.order) })
	return i
}

func (c dataChange) describe(name string) Change {
	switch {
	case c.trim:
		return Change{Kind: OpTruncate, Name: name, Offset: c.off}
	case c.data != nil:
		return Change{Kind: OpWrite, Name: name, Offset: c.off, Len: c.n}
	}
	return Change{Kind: OpPunch, Name: name, Offset: c.off, Len: c.n}
}

// namer finds a name for each file that a power cut may leave.
type namer struct {
	paths map[*memNode]string
	files []*memNode
}

func (t *namer) walk(dir *memNode, names func(*memNode) map[string]*memNode) {
	for _, base := range sortedNames(names(dir)) {
		n := names(dir)[base]
		t.name(n, dir, base)
		if n.dir {
			t.walk(n, names)
		}
	}
}

// name names a node, unless it has a name, and returns that. nil is nothing, where there was something.
func (t *namer) name(n, dir *memNode, base string) string {
	if n == nil {
		return path.Join(t.paths[dir], base)
	}
	if t.paths[n] == "" {
		t.paths[n] = path.Join(t.paths[dir], base)
		if !n.dir {
			t.files = append(t.files, n)
		}
	}
	return t.paths[n]
}

// Pending lists what was not durable, oldest first.
func (i *Image) Pending() []Change {
	out := make([]Change, len(i.pending))
	for k, p := range i.pending {
		out[k] = p.Change
	}
	return out
}

// Restart is Mem.Restart at the moment of the image: everything is there, and no more durable than it was.
func (i *Image) Restart() *Mem { return newProcess(i.disk.copy()) }

// Crash returns a disk as it may be if the power fails at the moment of the image: what was durable is there, and of the rest, by its place
// in Pending, what fate says. It has the inodes and the device of the Mem, another mount, no lock and no open file.
func (i *Image) Crash(fate func(change int) Fate) *Mem {
	c := &crash{data: map[*memNode]memData{}, names: map[*memNode]map[string]*memNode{}, nodes: map[*memNode]*memNode{}}
	lost := map[*nameChange]bool{}
	for k, p := range i.pending {
		f := fate(k)
		if p.node != nil {
			c.apply(p, f)
			continue
		}
		lost[p.names] = !f.Survives || slices.ContainsFunc(p.names.needs, func(need *nameChange) bool { return lost[need] })
		if !lost[p.names] {
			for _, s := range p.names.sets {
				c.set(s)
			}
		}
	}
	d := i.disk
	after := &memDisk{
		nextInode: d.nextInode,
		capacity:  d.capacity,
		readOnly:  d.readOnly,
		numbers:   d.numbers,
		device:    d.device,
		mount:     d.numbers.mount(),
		order:     d.order,
	}
	after.root = c.node(after, d.root)
	return newProcess(after)
}

// crash builds the tree that is left.
type crash struct {
	data  map[*memNode]memData             // files by what is left of them, where that differs from their media
	names map[*memNode]map[string]*memNode // directories by what is left of their names, where that differs from stable
	nodes map[*memNode]*memNode            // what was rebuilt already
}

func (c *crash) apply(p pending, f Fate) {
	if !f.Survives {
		return
	}
	left, begun := c.data[p.node]
	if !begun {
		left = p.node.media
		left.shared = true
	}
	if f.Torn != nil && p.data.data != nil {
		left.tear(p.data, f.Torn)
	} else {
		left.apply(p.data)
	}
	c.data[p.node] = left
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

// node rebuilds n and what is below it.
func (c *crash) node(d *memDisk, n *memNode) *memNode {
	if c.nodes[n] != nil {
		return c.nodes[n]
	}
	left := &memNode{inode: n.inode, dir: n.dir, named: true}
	c.nodes[n] = left
	if !n.dir {
		var changed bool
		if left.media, changed = c.data[n]; !changed {
			left.media = n.media
		}
		left.media.shared = true
		left.data = left.media
		d.used += left.data.allocated()
		return left
	}
	names := n.stable
	if c.names[n] != nil {
		names = c.names[n]
	}
	left.names, left.stable = make(map[string]*memNode, len(names)), make(map[string]*memNode, len(names))
	for name, child := range names {
		again := c.node(d, child)
		left.names[name], left.stable[name] = again, again
	}
	return left
}

// copy returns the disk with everything that a name leads to, now, on stable media, or after a change that may be undone. Nothing is
// open or locked on it. The caller holds d.mu, or nobody alters d.
func (d *memDisk) copy() *memDisk {
	after := &memDisk{
		nextInode: d.nextInode,
		capacity:  d.capacity,
		readOnly:  d.readOnly,
		numbers:   d.numbers,
		device:    d.device,
		mount:     d.mount,
		order:     d.order,
	}
	c := &copier{disk: after, nodes: map[*memNode]*memNode{}, changes: map[*nameChange]*nameChange{}}
	after.root = c.node(d.root)
	for _, change := range d.renames {
		after.renames = append(after.renames, c.change(change))
	}
	return after
}

type copier struct {
	disk    *memDisk
	nodes   map[*memNode]*memNode
	changes map[*nameChange]*nameChange
}

func (c *copier) node(n *memNode) *memNode {
	if n == nil || c.nodes[n] != nil {
		return c.nodes[n]
	}
	again := &memNode{inode: n.inode, dir: n.dir, named: n.named}
	c.nodes[n] = again
	if n.dir {
		again.names, again.stable = c.names(n.names), c.names(n.stable)
		return again
	}
	again.data, again.media = n.data.clone(), n.media.clone()
	again.unsynced = slices.Clip(n.unsynced) // what is appended to either is not seen by the other
	if n.named {
		c.disk.used += again.data.allocated()
	}
	return again
}

func (c *copier) names(names map[string]*memNode) map[string]*memNode {
	again := make(map[string]*memNode, len(names))
	for name, n := range names {
		again[name] = c.node(n)
	}
	return again
}

func (c *copier) change(n *nameChange) *nameChange {
	again := &nameChange{order: n.order}
	c.changes[n] = again
	for _, s := range n.sets {
		again.sets = append(again.sets, nameSet{c.node(s.dir), s.name, c.node(s.node)})
	}
	for _, need := range n.needs {
		again.needs = append(again.needs, c.changes[need])
	}
	for _, dir := range n.unsync {
		again.unsync = append(again.unsync, c.node(dir))
	}
	return again
}
