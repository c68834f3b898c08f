package mount

import (
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// group is a peer group of mounts; 0 is none.
type group uint64

// copies returns, by mount ID, the mounts in all mount namespaces that the kernel takes away together with the topmost mount on path: those that it
// has made of it in the namespaces that share the directory, as a container does that the driver runs in. An unmount reaches every peer and slave
// of the mount that it happens on (mount_namespaces(7), "Shared subtrees").
func (m *Mounter) copies(path string) (map[uint64]bool, error) {
	path, err := realPath(path)
	if err != nil {
		return nil, err
	}
	own, err := mountTable("self")
	if err != nil {
		return nil, err
	}
	e, mounted := topmost(own, path)
	on := parentOf(own, e)
	if !mounted || on.peers == 0 {
		return nil, nil
	}
	tables, err := allTables()
	return copiesOf(e, on, tables), err
}

// allTables lists the mounts of every mount namespace.
func allTables() (tables [][]Entry, err error) {
	err = eachNamespace(func(pid int) error {
		table, err := mountTable(strconv.Itoa(pid))
		tables = append(tables, table)
		return err
	})
	return tables, err
}

// copiesOf finds the copies of a mount on another one among the tables.
func copiesOf(e, on Entry, tables [][]Entry) map[uint64]bool {
	reached, where, found := reachedFrom(on.peers, tables), spot(e, on), map[uint64]bool{}
	for _, table := range tables {
		for _, f := range table {
			if f.device != e.device {
				continue
			}
			under := parentOf(table, f)
			if (reached[under.peers] || reached[under.master]) && spot(f, under) == where {
				found[f.id] = true
			}
		}
	}
	return found
}

// reachedFrom are the peer groups to which what happens on a mount of the group is propagated: itself, those that have it as master, and so on.
func reachedFrom(g group, tables [][]Entry) map[group]bool {
	reached, all := map[group]bool{g: true}, slices.Concat(tables...)
	for more := true; more; {
		more = false
		for _, e := range all {
			if e.peers != 0 && reached[e.master] && !reached[e.peers] {
				reached[e.peers], more = true, true
			}
		}
	}
	return reached
}

// spot is where the mount sits in the filesystem of the one that it is on, which has other paths in other namespaces.
func spot(e, on Entry) string {
	rest, err := filepath.Rel(on.Path, e.Path)
	if err != nil {
		return ""
	}
	return path.Join(on.Root, rest)
}

// parentOf is the mount in the table on which e is mounted; the zero Entry where the table does not show it.
func parentOf(table []Entry, e Entry) Entry {
	i := slices.IndexFunc(table, func(p Entry) bool { return p.id == e.parent })
	if i < 0 {
		return Entry{}
	}
	return table[i]
}

// propagationOf reads the optional fields of a line of mountinfo.
func propagationOf(tags []string) (peers, master group) {
	for _, tag := range tags {
		if n, ok := strings.CutPrefix(tag, "shared:"); ok {
			peers = groupNumber(n)
		}
		if n, ok := strings.CutPrefix(tag, "master:"); ok {
			master = groupNumber(n)
		}
	}
	return peers, master
}
