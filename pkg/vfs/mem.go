package vfs

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// defaultCapacity of a Mem; SetCapacity changes it.
const defaultCapacity = 1 << 40

// Numbers give file systems in memory their devices and mounts, so that no two of them look like one. What is written of them is the same
// wherever as many were made in the same order. The zero value is ready.
type Numbers struct{ devices, mounts atomic.Uint64 }

// NewMem is the function of that name, with the next numbers of these.
func (n *Numbers) NewMem() *Mem {
	d := &memDisk{capacity: defaultCapacity, numbers: n, device: firstNumber + n.devices.Add(1), mount: n.mount()}
	d.root = d.newNode(true)
	return newProcess(d)
}

func (n *Numbers) mount() uint64 { return firstNumber + n.mounts.Add(1) }

// firstNumber has as many digits as those that follow: what is written of them is as long then, whatever was numbered before.
const firstNumber = 1e9

// everywhere are the numbers of NewMem.
var everywhere Numbers

// Mem is a file system in memory that can lose power. Beside what everybody sees it keeps what is on stable media:
// files change there at Datasync, names at SyncDir. CrashClone is the disk as it may be after a power cut, Restart is
// a new process on the same disk without one. All calls may run concurrently.
type Mem struct {
	disk  *memDisk
	files map[*memFile]struct{} // open in this process; guarded by disk.mu
	dead  bool                  // Restart has replaced this process; guarded by disk.mu
}

// memDisk is what processes share.
type memDisk struct {
	mu        sync.Mutex
	root      *memNode
	nextInode uint64
	renames   []*nameChange // not yet durable, oldest first
	order     uint64        // of the newest change
	capacity  int64
	used      int64 // bytes in pages of all files that have a name or are open
	readOnly  bool
	numbers   *Numbers
	device    uint64
	mount     uint64
}

// memNode is a file or a directory.
type memNode struct {
	inode uint64

	dir    bool
	names  map[string]*memNode // of a directory: now
	stable map[string]*memNode // and after a power cut that loses all it may lose

	data     memData // of a file: now
	media    memData // and on stable media
	unsynced []dataChange
	named    bool
	opens    int
	lock     *memLock
}

// NewMem returns an empty file system with only the directory "/" and a capacity of 1 TiB.
func NewMem() *Mem { return everywhere.NewMem() }

func newProcess(d *memDisk) *Mem { return &Mem{disk: d, files: map[*memFile]struct{}{}} }

// SetCapacity sets what the disk holds, in bytes. Writes that need more fail whole with ENOSPC.
func (m *Mem) SetCapacity(capacity int64) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.capacity = capacity
}

// SetReadOnly makes every change fail with EROFS, also through files that are open already.
func (m *Mem) SetReadOnly(readOnly bool) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.readOnly = readOnly
}

func (d *memDisk) newNode(dir bool) *memNode {
	d.nextInode++
	n := &memNode{inode: d.nextInode, dir: dir, named: true}
	if dir {
		n.names, n.stable = map[string]*memNode{}, map[string]*memNode{}
	}
	return n
}

// look runs call, which changes nothing.
func (m *Mem) look(op, name string, call func() error) error {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	if m.dead {
		return pathError(op, name, fs.ErrClosed)
	}
	return pathError(op, name, call())
}

// change runs call, which is refused on a read-only disk.
func (m *Mem) change(op, name string, call func() error) error {
	return m.look(op, name, func() error {
		if m.disk.readOnly {
			return syscall.EROFS
		}
		return call()
	})
}

// find returns the node at an absolute path.
func (d *memDisk) find(name string) (*memNode, error) {
	if !filepath.IsAbs(name) {
		return nil, syscall.EINVAL
	}
	n := d.root
	for part := range strings.SplitSeq(filepath.Clean(name)[1:], "/") {
		if part == "" {
			continue // the root itself
		}
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		next := n.names[part]
		if next == nil {
			return nil, syscall.ENOENT
		}
		n = next
	}
	return n, nil
}

// findSlot returns the directory that holds or could hold name, its last part, and what is there now.
func (d *memDisk) findSlot(name string) (dir *memNode, base string, n *memNode, err error) {
	name = filepath.Clean(name)
	if name == "/" {
		return nil, "", nil, syscall.EBUSY
	}
	dir, err = d.find(filepath.Dir(name))
	if err == nil && !dir.dir {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return nil, "", nil, err
	}
	base = filepath.Base(name)
	return dir, base, dir.names[base], nil
}

// Open implements FS.
func (m *Mem) Open(name string, mode Mode) (f File, err error) {
	err = m.look("open", name, func() error {
		n, err := m.disk.openNode(name, mode)
		if err != nil {
			return err
		}
		if mode&Locked != 0 {
			if err := n.take(name, &memLock{mem: m, node: n, holder: holderUnknown}); err != nil {
				return err
			}
		}
		f = m.newFile(n, name, mode)
		return nil
	})
	return f, plainLockError(err)
}

func (d *memDisk) openNode(name string, mode Mode) (*memNode, error) {
	n, err := d.find(name)
	switch {
	case err == nil && mode&(Create|Exclusive) == Create|Exclusive:
		return nil, syscall.EEXIST
	case err == nil && n.dir:
		return nil, syscall.EISDIR
	case err == nil && d.readOnly && mode&ReadOnly == 0:
		return nil, syscall.EROFS
	case !errors.Is(err, syscall.ENOENT) || mode&Create == 0:
		return n, err
	case d.readOnly:
		return nil, syscall.EROFS
	}
	return d.make(name, false)
}

// make creates a file or directory where there is none.
func (d *memDisk) make(name string, asDir bool) (*memNode, error) {
	dir, base, n, err := d.findSlot(name)
	if err != nil {
		return nil, err
	}
	if n != nil {
		return nil, syscall.EEXIST
	}
	n = d.newNode(asDir)
	d.rename(false, nameSet{dir, base, n})
	return n, nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(name string) error {
	return m.change("mkdir", name, func() error {
		_, err := m.disk.make(name, true)
		return err
	})
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(name string) error {
	return m.look("mkdir", name, func() error { return m.disk.makeAll(filepath.Clean(name)) })
}

func (d *memDisk) makeAll(name string) error {
	n, err := d.find(name)
	if err == nil && !n.dir {
		return syscall.ENOTDIR
	}
	if !errors.Is(err, syscall.ENOENT) {
		return err
	}
	if err := d.makeAll(filepath.Dir(name)); err != nil {
		return err
	}
	if d.readOnly {
		return syscall.EROFS
	}
	_, err = d.make(name, true)
	return err
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	return m.change("rename", from, func() error { return m.disk.move(from, to) })
}

func (d *memDisk) move(from, to string) error {
	fromDir, fromBase, n, err := d.findSlot(from)
	if err == nil && n == nil {
		err = syscall.ENOENT
	}
	if err != nil {
		return err
	}
	toDir, toBase, old, err := d.findSlot(to)
	switch {
	case err != nil:
		return err
	case old == n:
		return nil
	case old != nil && old.dir:
		return syscall.EEXIST
	case old != nil && n.dir:
		return syscall.ENOTDIR
	case n.dir && strings.HasPrefix(filepath.Clean(to)+"/", filepath.Clean(from)+"/"):
		return syscall.EINVAL
	}
	d.rename(n.dir, nameSet{fromDir, fromBase, nil}, nameSet{toDir, toBase, n})
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	return m.change("remove", name, func() error {
		dir, base, n, err := m.disk.findSlot(name)
		switch {
		case err != nil:
			return err
		case n == nil:
			return syscall.ENOENT
		case len(n.names) > 0:
			return syscall.ENOTEMPTY
		}
		m.disk.rename(n.dir, nameSet{dir, base, nil})
		return nil
	})
}

// RemoveAll implements FS. Each name goes by itself, as on a disk: a power cut may leave any part of the tree.
func (m *Mem) RemoveAll(name string) error {
	return m.change("remove", name, func() error {
		dir, base, n, err := m.disk.findSlot(name)
		if errors.Is(err, syscall.ENOENT) || err == nil && n == nil {
			return nil
		}
		if err == nil {
			m.disk.removeTree(dir, base, n)
		}
		return err
	})
}

func (d *memDisk) removeTree(dir *memNode, base string, n *memNode) {
	for _, name := range sortedNames(n.names) {
		d.removeTree(n, name, n.names[name])
	}
	d.rename(n.dir, nameSet{dir, base, nil})
}

// ReadDir implements FS. Entries are sorted by name.
func (m *Mem) ReadDir(name string) (entries []fs.DirEntry, err error) {
	err = m.look("readdir", name, func() error {
		n, err := m.disk.findDir(name)
		if err != nil {
			return err
		}
		for _, base := range sortedNames(n.names) {
			entries = append(entries, fs.FileInfoToDirEntry(newMemInfo(base, n.names[base])))
		}
		return nil
	})
	return entries, err
}

func (d *memDisk) findDir(name string) (*memNode, error) {
	n, err := d.find(name)
	if err == nil && !n.dir {
		err = syscall.ENOTDIR
	}
	return n, err
}

// Stat implements FS.
func (m *Mem) Stat(name string) (info Info, err error) {
	err = m.look("stat", name, func() error {
		n, err := m.disk.find(name)
		if err == nil {
			info = m.disk.info(n)
		}
		return err
	})
	return info, err
}

func (d *memDisk) info(n *memNode) Info {
	return Info{
		Size:      n.data.size,
		Allocated: n.data.allocated(),
		Dir:       n.dir,
		Device:    d.device,
		Inode:     n.inode,
		Mount:     d.mount,
	}
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	return m.look("syncdir", name, func() error {
		n, err := m.disk.findDir(name)
		if err == nil {
			m.disk.syncNames(n)
		}
		return err
	})
}

// Space implements FS.
func (m *Mem) Space(name string) (s Space, err error) {
	err = m.look("statfs", name, func() error {
		d := m.disk
		s = Space{Total: d.capacity, Available: max(0, d.capacity-d.used), Device: d.device, ReadOnly: d.readOnly}
		_, err := d.find(name)
		return err
	})
	return s, err
}

func sortedNames(names map[string]*memNode) []string {
	var sorted []string
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted
}
