package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// above finds the loop devices that somebody has put on the device, as kubelet does for a raw block volume. The kernel
// lists them neither as holders nor as anybody's descriptor, and they do not claim the device.
func (p *probe) above() error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		if p.beneath(strings.TrimSpace(string(b))) {
			p.found = append(p.found, Holder{Kind: HeldByDevice, Name: "/dev/" + strings.Split(file, "/")[3]})
		}
	}
	return nil
}

// beneath says whether the path is the device's node. The loop device itself is not asked: it would ask the server of its
// file, which may not answer. So one over a path that leads nowhere any more is missed; it keeps that path's mount busy, which
// only a lazy unmount by somebody else could have taken away.
func (p *probe) beneath(path string) bool {
	st, err := statx(path)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && p.dev == blockDevice{st.Rdev_major, st.Rdev_minor}
}
