package vfs

import (
	"io/fs"
	"slices"
	"time"
)

// nameSet makes a name of a directory lead to node, or to nothing where it is nil.
type nameSet struct {
	dir  *memNode
	name string
	node *memNode
}

// nameChange is a change of names that survives a power cut whole or not at all. It is durable once every directory
// it touches was synced, or when a durable change needs it.
type nameChange struct {
	sets   []nameSet
	needs  []*nameChange // survives only with these
	unsync []*memNode    // directories not yet synced since
	order  uint64        // among all changes of the disk
}

// rename changes names for everybody, and remembers that a power cut may still undo it. movesDir says that a
// directory is moved or removed.
func (d *memDisk) rename(movesDir bool, sets ...nameSet) {
	d.order++
	c := &nameChange{sets: sets, order: d.order}
	for _, earlier := range d.renames {
		// A journal keeps the order of changes of one name, and does not drop a directory before what was moved out of it.
		if movesDir || earlier.touches(sets) {
			c.needs = append(c.needs, earlier)
		}
	}
	var old []*memNode
	for _, s := range sets {
		c.unsync = append(c.unsync, s.dir)
		old = append(old, s.apply())
	}
	d.renames = append(d.renames, c)
	for _, n := range old { // only now: a file that was renamed has its new name
		d.release(n)
	}
}

func (c *nameChange) touches(sets []nameSet) bool {
	return slices.ContainsFunc(sets, func(s nameSet) bool {
		return slices.ContainsFunc(c.sets, func(own nameSet) bool { return own.dir == s.dir && own.name == s.name })
	})
}

// apply returns the node that had the name.
func (s nameSet) apply() (old *memNode) {
	if old = s.dir.names[s.name]; old != nil {
		old.named = false
		delete(s.dir.names, s.name)
	}
	if s.node != nil {
		s.node.named = true
		s.dir.names[s.name] = s.node
	}
	return old
}

// release gives back the space of a file that has neither a name nor an open file.
func (d *memDisk) release(n *memNode) {
	if n != nil && !n.named && n.opens == 0 {
		d.used -= n.data.allocated()
	}
}

// syncNames makes the names of a directory durable.
func (d *memDisk) syncNames(dir *memNode) {
	durable := map[*nameChange]bool{}
	for _, c := range d.renames {
		c.unsync = slices.DeleteFunc(c.unsync, func(n *memNode) bool { return n == dir })
		if len(c.unsync) == 0 {
			c.markWithNeeds(durable)
		}
	}
	d.renames = slices.DeleteFunc(d.renames, func(c *nameChange) bool {
		if durable[c] {
			c.applyStable()
		}
		return durable[c]
	})
	for _, c := range d.renames {
		c.needs = slices.DeleteFunc(c.needs, func(need *nameChange) bool { return durable[need] })
	}
}

func (c *nameChange) markWithNeeds(marked map[*nameChange]bool) {
	if marked[c] {
		return
	}
	marked[c] = true
	for _, need := range c.needs {
		need.markWithNeeds(marked)
	}
}

func (c *nameChange) applyStable() {
	for _, s := range c.sets {
		if s.node == nil {
			delete(s.dir.stable, s.name)
		} else {
			s.dir.stable[s.name] = s.node
		}
	}
}

// memInfo is an fs.FileInfo.
type memInfo struct {
	name string
	size int64
	mode fs.FileMode
}

func newMemInfo(name string, n *memNode) memInfo {
	if n.dir {
		return memInfo{name: name, mode: fs.ModeDir | dirMode}
	}
	return memInfo{name: name, size: n.data.size, mode: fileMode}
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} } // nothing may ever be decided by it
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
