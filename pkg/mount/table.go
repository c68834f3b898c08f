package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one mount as the kernel lists it.
type Entry struct {
	Path         string   `json:"path"`
	FSType       string   `json:"fsType"`
	Source       string   `json:"source"`
	Root         string   `json:"root"`    // the directory or file of the filesystem that is shown
	Options      []string `json:"options"` // of this mount
	SuperOptions []string `json:"superOptions"`
	id, parent   uint64
	peers        group // the mounts that share what is mounted on it, 0: none
	master       group // those whose mounts it receives
	device       blockDevice
}

// ReadOnly says that nothing can be written through this mount.
func (e Entry) ReadOnly() bool {
	return slices.Contains(e.Options, "ro") || slices.Contains(e.SuperOptions, "ro")
}

// blockDevice is a device number.
type blockDevice struct{ major, minor uint32 }

func (d blockDevice) String() string { return fmt.Sprintf("%d:%d", d.major, d.minor) }

// At returns the topmost mount whose mount point is exactly path, in this process's mount namespace.
func (m *Mounter) At(path string) (Entry, bool, error) {
	real, err := realPath(path)
	if err != nil {
		return Entry{}, false, fmt.Errorf("look up mount on %s: %w", path, err)
	}
	all, err := mountTable("self")
	if err != nil {
		return Entry{}, false, err
	}
	e, mounted := topmost(all, real)
	return e, mounted, nil
}

// topmost is the mount in the table that covers all others on the very same path.
func topmost(table []Entry, path string) (Entry, bool) {
	for _, e := range slices.Backward(table) {
		if e.Path == path {
			return e, true
		}
	}
	return Entry{}, false
}

// Of returns the mounts of the device's filesystem and the bind mounts of its node, in this process's mount namespace.
func (m *Mounter) Of(device string) ([]Entry, error) {
	dev, err := deviceOf(device)
	if err != nil {
		return nil, err
	}
	all, err := mountTable("self")
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e Entry) bool { return !e.shows(dev, "/") }), nil
}

// Shows says that the mount is of the device's filesystem or a bind mount of its node.
func (e Entry) Shows(device string) bool {
	dev, err := deviceOf(device)
	return err == nil && e.shows(dev, "/")
}

// shows has the root of the mount namespace in which e was read.
func (e Entry) shows(dev blockDevice, root string) bool {
	switch {
	case e.device == dev:
		return true
	case e.FSType == "btrfs": // its device number is its own
		source, err := deviceOf(e.Source)
		return err == nil && source == dev
	case e.FSType == "devtmpfs" && e.Root == "/"+kernelName(dev):
		return true
	case (e.FSType == "devtmpfs" || e.FSType == "tmpfs") && e.Root != "/": // a node under another name
		node, err := deviceOf(filepath.Join(root, e.Path))
		return err == nil && node == dev
	}
	return false
}

// kernelName is what the kernel calls the device, as "loop0"; "" where there is none.
func kernelName(dev blockDevice) string {
	link, err := os.Readlink("/sys/dev/block/" + dev.String())
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}

// mountTable lists the mounts in the namespace of the process, in the order in which they cover each other.
func mountTable(pid string) ([]Entry, error) {
	text, err := os.ReadFile(filepath.Join("/proc", pid, "mountinfo"))
	if errors.Is(err, unix.EINVAL) { // it has ended, and nobody has asked yet how
		err = unix.ESRCH
	}
	if err != nil {
		return nil, fmt.Errorf("list the mounts of process %s: %w", pid, err)
	}
	entries, err := parseTable(string(text))
	if err != nil {
		return nil, fmt.Errorf("list the mounts of process %s: %w", pid, err)
	}
	return entries, nil
}

// unescape undoes the kernel's \ooo for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// realPath resolves the directories above path, and not path itself: asking a dead filesystem for its root would fail.
func realPath(path string) (string, error) {
	path = filepath.Clean(path)
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	if os.IsNotExist(err) {
		return path, nil // nothing can be mounted on it
	}
	if err != nil {
		return "", err
	}
	if path == "/" {
		return path, nil
	}
	return filepath.Join(parent, filepath.Base(path)), nil
}

// deviceOf returns the number of the block device at path, without asking a server behind it.
func deviceOf(path string) (blockDevice, error) {
	st, err := statx(path)
	if err != nil {
		return blockDevice{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return blockDevice{}, fmt.Errorf("%s is not a block device", path)
	}
	return blockDevice{st.Rdev_major, st.Rdev_minor}, nil
}

// statx describes the file without a round trip to a server that may be dead, as that of a FUSE or network filesystem.
func statx(path string) (unix.Statx_t, error) { return statxAt(unix.AT_FDCWD, path) }

// statxAt is statx for a name beneath an open directory.
func statxAt(dir int, name string) (unix.Statx_t, error) {
	var st unix.Statx_t
	const quick = unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(dir, name, quick, unix.STATX_TYPE|unix.STATX_MNT_ID, &st); err != nil {
		return st, &os.PathError{Op: "statx", Path: name, Err: err}
	}
	return st, nil
}
