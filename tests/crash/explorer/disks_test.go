// Package explorer cuts the power at every call that alters a disk, in every way in which that can end, and lets what is left come up.
//
// The product's own code runs on disks in memory. Before each call that alters one an image of all of them is taken, with what had been
// promised by then. From each image disks are made as a kill, a disk that loses its cache, or a power cut of everything may leave
// them: with all of what was not synced, with none of it, with each subset where there are few changes, with single ones, and torn at sectors.
// Each must come up, or say that it cannot tell; and hold all that was promised and nothing that never was.
//
// The other half fails every single call of the file system in turn.
package explorer

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/belay-storage/belay/pkg/vfs"
)

// disks are file systems in memory, each mounted at a directory of its own below the root. A process's view of them is a vfs.FS.
type disks struct {
	names []string
	mems  []*vfs.Mem
	root  *vfs.Mem // that they are mounted on; holds nothing
}

// newDisks returns empty disks, mounted at "/name".
func newDisks(names ...string) *disks {
	d := &disks{names: names, root: vfs.NewMem()}
	for _, name := range names {
		m := vfs.NewMem()
		if err := errors.Join(m.Mkdir("/"+name), m.SyncDir("/")); err != nil {
			panic(err)
		}
		d.mems = append(d.mems, m)
	}
	return d
}

// restart is a new process on the same disks; the old one's calls fail from now on.
func (d *disks) restart() *disks {
	next := &disks{names: d.names, root: d.root}
	for _, m := range d.mems {
		next.mems = append(next.mems, m.Restart())
	}
	return next
}

// cut is a new process after a power cut that nothing survives which was not synced.
func (d *disks) cut() *disks {
	next := &disks{names: d.names, root: d.root}
	for _, m := range d.mems {
		next.mems = append(next.mems, m.CrashClone(nil))
	}
	return next
}

// index is the disk that a path is on; -1 where it is on none.
func (d *disks) index(name string) int {
	first, _, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/")
	return slices.Index(d.names, first)
}

func (d *disks) at(name string) *vfs.Mem {
	if i := d.index(name); i >= 0 {
		return d.mems[i]
	}
	return d.root
}

func (d *disks) Open(name string, mode vfs.Mode) (vfs.File, error) {
	return d.at(name).Open(name, mode)
}
func (d *disks) Mkdir(name string) error                    { return d.at(name).Mkdir(name) }
func (d *disks) MkdirAll(name string) error                 { return d.at(name).MkdirAll(name) }
func (d *disks) Remove(name string) error                   { return d.at(name).Remove(name) }
func (d *disks) RemoveAll(name string) error                { return d.at(name).RemoveAll(name) }
func (d *disks) ReadDir(name string) ([]fs.DirEntry, error) { return d.at(name).ReadDir(name) }
func (d *disks) Stat(name string) (vfs.Info, error)         { return d.at(name).Stat(name) }
func (d *disks) SyncDir(name string) error                  { return d.at(name).SyncDir(name) }
func (d *disks) Space(name string) (vfs.Space, error)       { return d.at(name).Space(name) }

func (d *disks) Lock(name, holder string) (vfs.Unlocker, error) { return d.at(name).Lock(name, holder) }

func (d *disks) Rename(from, to string) error {
	if d.at(from) != d.at(to) {
		return syscall.EXDEV
	}
	return d.at(from).Rename(from, to)
}
