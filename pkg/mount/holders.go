package mount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind says in what way something holds a device.
type Kind string

// Kinds of holders.
const (
	HeldByMount      Kind = "mount"      // its filesystem or its node is mounted, in some mount namespace
	HeldByFilesystem Kind = "filesystem" // the kernel keeps a superblock or a journal of it
	HeldByDevice     Kind = "device"     // another block device is built on it
	HeldByProcess    Kind = "process"    // a process has it, or a file on it, open
	HeldByClaim      Kind = "claim"      // the kernel refuses to open it exclusively, and nothing else says why
)

// Holder is one thing that holds a device.
type Holder struct {
	Kind    Kind   `json:"kind"`
	Name    string `json:"name"`          // mount point, file, device, or what the kernel calls it
	PID     int    `json:"pid,omitempty"` // of the process, or of one that sees the mount
	Command string `json:"command,omitempty"`
	mount   uint64 // its ID, where it is one
}

func (h Holder) String() string {
	s := string(h.Kind) + " " + h.Name
	if h.PID != 0 {
		s = fmt.Sprintf("%s (process %d, %s)", s, h.PID, h.Command)
	}
	return s
}

// Held returns all that holds the device. An empty list is a proof that nothing does: no mount in any namespace of any
// process, no superblock or journal in the kernel, no device above it (loop devices included), no foreign process with it open, and an exclusive
// open succeeded. Where one of these could not be asked it is an error, with one exception: a process that this one may
// not look into (it has more capabilities) is passed over. Its mounts and files are still found by the kernel's lists;
// a bare descriptor of the device is not, and it is the engine's barrier that stops its writes.
func (m *Mounter) Held(ctx context.Context, device string) ([]Holder, error) {
	dev, err := deviceOf(device)
	if err != nil {
		return nil, fmt.Errorf("who holds %s: %w", device, err)
	}
	p := m.probe(dev)
	for _, ask := range []func() error{p.mounts, p.kernel, p.above, p.processes, func() error { return p.claim(device) }} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("who holds %s: %w", device, err)
		}
		if err := ask(); err != nil {
			return nil, fmt.Errorf("who holds %s: %w", device, err)
		}
	}
	return p.found, nil
}

// MountedAt returns the mounts of the device's filesystem and the bind mounts of its node, in the mount namespaces of all
// processes. Those of this process's own come without a process.
func (m *Mounter) MountedAt(device string) ([]Holder, error) {
	dev, err := deviceOf(device)
	if err != nil {
		return nil, fmt.Errorf("where is %s mounted: %w", device, err)
	}
	p := m.probe(dev)
	if err := p.mounts(); err != nil {
		return nil, fmt.Errorf("where is %s mounted: %w", device, err)
	}
	return p.found, nil
}

// probe looks for the holders of a device, this process and the storage's own not counted.
func (m *Mounter) probe(dev blockDevice) probe {
	return probe{dev: dev, files: dev, mountIDs: map[uint64]bool{}, owned: func(pid int) bool { return pid == os.Getpid() || m.owned(pid) }}
}

// usersOf returns what uses the mount: mounts below it and processes with files of its filesystem open.
func (m *Mounter) usersOf(e Entry) []Holder {
	p := probe{dev: none, files: e.device, mountIDs: map[uint64]bool{e.id: true}, owned: func(int) bool { return false }, filesystem: true}
	if same, err := m.copies(e.Path); err == nil { // an unmount is refused for their users too
		maps.Copy(p.mountIDs, same)
	}
	if all, err := mountTable("self"); err == nil {
		for _, other := range all {
			if strings.HasPrefix(other.Path, e.Path+"/") {
				p.found = append(p.found, Holder{Kind: HeldByMount, Name: other.Path})
			}
		}
	}
	if err := p.processes(); err != nil {
		m.log.Warn("could not look for the users of a mount", "path", e.Path, "error", err)
	}
	return p.found
}

// none is the number of no device.
var none = blockDevice{^uint32(0), ^uint32(0)}

// probe collects the holders of one device.
type probe struct {
	dev      blockDevice
	files    blockDevice        // what its files show as their device in memory maps
	mountIDs map[uint64]bool    // of its mounts
	owned    func(pid int) bool // passed over
	// filesystem says that the kernel has one of the device, so that files, directories and memory maps of it can be in use.
	filesystem bool
	found      []Holder
}

// mounts looks into the mount namespace of every process, its own first.
func (p *probe) mounts() error {
	if err := p.mountsOf(os.Getpid(), false); err != nil {
		return err
	}
	return eachNamespace(func(pid int) error { return p.mountsOf(pid, true) })
}

// eachNamespace calls f with one process of every mount namespace, and with each whose namespace cannot be told.
func eachNamespace(f func(pid int) error) error {
	seen := map[string]bool{}
	return eachProcess(func(pid int) error {
		namespace, err := os.Readlink(filepath.Join(procPath(pid), "ns/mnt"))
		if err != nil && !unseen(err) || namespace != "" && seen[namespace] {
			return err
		}
		seen[namespace] = true
		return f(pid)
	})
}

// mountsOf adds the mounts that the process sees; it is named where foreign is set.
func (p *probe) mountsOf(pid int, foreign bool) error {
	table, err := mountTable(strconv.Itoa(pid))
	if err != nil {
		return err
	}
	for _, e := range table {
		if p.mountIDs[e.id] || !e.shows(p.dev, filepath.Join(procPath(pid), "root")) {
			continue
		}
		p.mountIDs[e.id], p.filesystem = true, true
		if e.FSType == "btrfs" {
			p.files = e.device
		}
		h := Holder{Kind: HeldByMount, Name: e.Path, mount: e.id}
		if foreign {
			h.PID, h.Command = pid, command(pid)
		}
		p.found = append(p.found, h)
	}
	return nil
}

// kernel asks the kernel's own lists: they know of superblocks that no mount table shows any more.
func (p *probe) kernel() error {
	name := kernelName(p.dev)
	if name == "" {
		return nil // no such device any more
	}
	for pattern, kind := range map[string]Kind{
		"/sys/dev/block/" + p.dev.String() + "/holders/*": HeldByDevice,
		"/proc/fs/ext4/" + name:                           HeldByFilesystem,
		"/proc/fs/jbd2/" + name + "-*":                    HeldByFilesystem,
		"/sys/fs/ext4/" + name:                            HeldByFilesystem,
		"/sys/fs/xfs/" + name:                             HeldByFilesystem,
		"/sys/fs/btrfs/*/devices/" + name:                 HeldByFilesystem,
	} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, match := range matches {
			p.found = append(p.found, Holder{Kind: kind, Name: match})
			p.filesystem = p.filesystem || kind == HeldByFilesystem
		}
	}
	return nil
}

// processes looks at what every process has open.
func (p *probe) processes() error {
	return eachProcess(func(pid int) error {
		if kernelThread(pid) || p.owned(pid) {
			return nil
		}
		name, err := p.opened(pid)
		if unseen(err) {
			return nil
		}
		if name != "" {
			p.found = append(p.found, Holder{Kind: HeldByProcess, Name: name, PID: pid, Command: command(pid)})
		}
		return err
	})
}

// opened returns the first thing of the device that the process has open, or "".
func (p *probe) opened(pid int) (string, error) {
	dir, err := os.Open(filepath.Join(procPath(pid), "fd"))
	if err != nil {
		return "", err
	}
	defer dir.Close()
	fds, err := dir.Readdirnames(-1)
	if err != nil {
		return "", err
	}
	for _, fd := range fds {
		if st, err := statxAt(int(dir.Fd()), fd); err == nil && p.belongs(st) {
			return link(pid, "fd/"+fd), nil
		}
	}
	// Without a filesystem nothing can lie on it.
	if p.filesystem {
		return p.lives(pid)
	}
	return "", nil
}

// lives returns where on the device's filesystem the process works, is rooted, or was started from, what it maps though
// it has closed it, or "".
func (p *probe) lives(pid int) (string, error) {
	for _, l := range []string{"cwd", "root", "exe"} {
		if st, err := statx(filepath.Join(procPath(pid), l)); err == nil && p.belongs(st) {
			return link(pid, l), nil
		}
	}
	return p.mapped(procPath(pid))
}

func link(pid int, name string) string {
	target, _ := os.Readlink(filepath.Join(procPath(pid), name))
	return name + " → " + target
}

// belongs says that the open file is the device's node, or lies on one of its mounts or on its filesystem.
func (p *probe) belongs(st unix.Statx_t) bool {
	if p.mountIDs[st.Mnt_id] {
		return true
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return p.dev == blockDevice{st.Rdev_major, st.Rdev_minor}
	}
	return p.dev == blockDevice{st.Dev_major, st.Dev_minor}
}

// mapped returns a file of the device that the process maps though it has closed it, or "".
func (p *probe) mapped(proc string) (string, error) {
	f, err := os.Open(filepath.Join(proc, "maps"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		field := strings.Fields(s.Text())
		if len(field) < 6 {
			continue
		}
		var d blockDevice
		if _, err := fmt.Sscanf(field[3], "%x:%x", &d.major, &d.minor); err == nil && p.files == d {
			return "mapped " + field[5], nil
		}
	}
	return "", s.Err()
}

// claim opens the device exclusively, which the kernel refuses while a filesystem, swap or another device claims it.
func (p *probe) claim(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENXIO): // nothing behind the device: it cannot be held any more
		return nil
	case !errors.Is(err, unix.EBUSY):
		return &os.PathError{Op: "open exclusively", Path: device, Err: err}
	}
	if !slices.ContainsFunc(p.found, func(h Holder) bool { return h.Kind != HeldByProcess }) {
		p.found = append(p.found, Holder{Kind: HeldByClaim, Name: device})
	}
	return nil
}

// eachProcess calls do for every process. One that ends meanwhile holds nothing any more.
func eachProcess(do func(pid int) error) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := do(pid); err != nil && !gone(err) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

func unseen(err error) bool { return errors.Is(err, fs.ErrPermission) }

// kernelThread says that the process has no program, and so no descriptors: a thread of the kernel, or one that has ended.
func kernelThread(pid int) bool {
	_, err := os.Readlink(filepath.Join(procPath(pid), "exe"))
	return errors.Is(err, fs.ErrNotExist)
}

func procPath(pid int) string { return filepath.Join("/proc", strconv.Itoa(pid)) }

func command(pid int) string {
	b, err := os.ReadFile(filepath.Join(procPath(pid), "comm"))
	if err != nil {
		return "ended"
	}
	return strings.TrimSpace(string(b))
}
