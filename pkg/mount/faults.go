package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Faults says what the kernel knows to be wrong with the mounted filesystem at path; none is nil. wantWrite says that it
// was mounted read-write: a filesystem that turned read-only since has met an error. Asks no more of the device than
// opening the root directory.
func (m *Mounter) Faults(path string, wantWrite bool) ([]string, error) {
	e, mounted, err := m.At(path)
	if err != nil {
		return nil, err
	}
	if !mounted {
		return nil, fmt.Errorf("faults of %s: nothing is mounted there", path)
	}
	var faults []string
	if wantWrite && slices.Contains(e.SuperOptions, "ro") {
		faults = append(faults, "the filesystem turned read-only")
	}
	for _, o := range []string{"shutdown", "emergency_ro"} {
		if slices.Contains(e.SuperOptions, o) {
			faults = append(faults, "the filesystem reports "+o)
		}
	}
	if fault := openFault(path); fault != "" {
		faults = append(faults, fault)
	}
	counted, err := countedFaults(e)
	return append(faults, counted...), err
}

// openFault opens the root: XFS and ext4 refuse that with EIO once they have shut down.
func openFault(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "its root cannot be opened: " + err.Error()
	}
	_ = f.Close()
	return ""
}

// countedFaults reads the counters that the filesystem keeps in sysfs.
func countedFaults(e Entry) ([]string, error) {
	source, err := deviceOf(e.Source)
	if err != nil {
		return nil, nil // the device is gone; openFault says the rest
	}
	name := kernelName(source)
	switch e.FSType {
	case "ext4":
		return ext4Counted("/sys/fs/ext4/" + name)
	case "btrfs":
		return btrfsCounted(name)
	}
	return nil, nil
}

func ext4Counted(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "errors_count"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n == 0 {
		return nil, err
	}
	where, _ := os.ReadFile(filepath.Join(dir, "last_error_func"))
	return []string{fmt.Sprintf("ext4 has found %d errors, the last in %s", n, strings.TrimSpace(string(where)))}, nil
}

func btrfsCounted(device string) ([]string, error) {
	devices, err := filepath.Glob("/sys/fs/btrfs/*/devices/" + device)
	if err != nil {
		return nil, err
	}
	var faults []string
	for _, d := range devices {
		stats, _ := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(d)), "devinfo/*/error_stats"))
		for _, s := range stats {
			b, err := os.ReadFile(s)
			if err != nil {
				return faults, err
			}
			faults = append(faults, btrfsErrors(string(b))...)
		}
	}
	return faults, nil
}

func btrfsErrors(stats string) []string {
	var faults []string
	for line := range strings.Lines(stats) {
		if name, n, ok := strings.Cut(strings.TrimSpace(line), " "); ok && n != "0" {
			faults = append(faults, "btrfs counts "+n+" "+name)
		}
	}
	return faults
}

func openDirect(device string) (*os.File, error) {
	return os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
}

// alignedBuffer returns n bytes whose address is a multiple of align, as O_DIRECT wants it.
func alignedBuffer(n, align int) []byte {
	b := make([]byte, n+align)
	skip := (align - int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(align))) % align
	return b[skip:][:n:n]
}
