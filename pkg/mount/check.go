package mount

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
)

// Report is the outcome of a check that changed nothing.
type Report struct {
	FSType string `json:"fsType"`
	Clean  bool   `json:"clean"`
	Output string `json:"output,omitempty"` // what the tool said, its end, where it is not clean
}

// Check examines the filesystem of a device that is not mounted, and changes nothing. The journal must have been
// replayed (mounted and unmounted once): a check does not look into it. Takes time with the number of files.
func (m *Mounter) Check(ctx context.Context, fsType, device string) (Report, error) {
	tool, err := fsck(fsType, device)
	if err != nil {
		return Report{}, err
	}
	out, err := execute(ctx, tool[0], tool[1:]...)
	if err == nil {
		return Report{FSType: fsType, Clean: true}, nil
	}
	if code := exitCode(err); ctx.Err() != nil || !foundDamage(fsType, code) {
		return Report{}, fmt.Errorf("check %s (%s): %w", device, fsType, err)
	}
	text := strings.TrimSpace(string(out))
	const most = 4 << 10
	return Report{FSType: fsType, Output: text[max(0, len(text)-most):]}, nil
}

func fsck(fsType, device string) ([]string, error) {
	switch fsType {
	case "ext4":
		return []string{"e2fsck", "-f", "-n", device}, nil
	case "xfs":
		return []string{"xfs_repair", "-n", device}, nil
	case "btrfs":
		return []string{"btrfs", "check", "--readonly", device}, nil
	}
	return nil, fmt.Errorf("check %s: %q: %w", device, fsType, ErrUnsupported)
}

// foundDamage says that the exit code means a finding and not that the tool could not work.
func foundDamage(fsType string, code int) bool {
	if fsType == "ext4" {
		const uncorrected, operational = 4, 8 // and above: usage, cancelled, library
		return code&uncorrected != 0 && code < operational
	}
	return code == 1
}

// Closed returns nil where the filesystem on an unmounted device was closed cleanly: its journal is empty and it knows of
// no error. An unmount reports success though its last writes failed; this notices. ErrDamaged otherwise. It reads a few
// blocks from the device itself, past the page cache.
func (m *Mounter) Closed(ctx context.Context, fsType, device string) error {
	var fault string
	var err error
	switch fsType {
	case "ext4":
		fault, err = superblockFault(device, ext4Super, ext4Fault)
	case "btrfs":
		fault, err = superblockFault(device, btrfsSuper, btrfsFault)
	case "xfs":
		fault, err = xfsFault(ctx, device)
	default:
		err = fmt.Errorf("%q: %w", fsType, ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("was the %s on %s closed cleanly: %w", fsType, device, err)
	}
	if fault != "" {
		return fmt.Errorf("%s on %s: %w: %s", fsType, device, ErrDamaged, fault)
	}
	return nil
}

// Where the superblocks are, in bytes.
const (
	ext4Super  = 1024
	btrfsSuper = 64 << 10
	superSize  = 1024 // enough of either
)

// superblockFault reads the superblock from the media and lets judge say what is wrong with it.
func superblockFault(device string, offset int64, judge func(sb []byte) string) (string, error) {
	sb, err := readDirect(device, offset, superSize)
	if err != nil {
		return "", err
	}
	return judge(sb), nil
}

// ext4Fault judges an ext4 superblock, "" for a clean one (kernel documentation, filesystems/ext4/super.rst).
func ext4Fault(sb []byte) string {
	if len(sb) < superSize {
		return "superblock cut short"
	}
	const magic, validState, errorState, needsRecovery = 0xEF53, 1, 2, 4
	state := binary.LittleEndian.Uint16(sb[0x3A:])
	errors := binary.LittleEndian.Uint32(sb[0x194:])
	switch {
	case binary.LittleEndian.Uint16(sb[0x38:]) != magic:
		return "no ext4 superblock"
	case errors != 0 || state&errorState != 0:
		return fmt.Sprintf("it has found %d errors since it was last checked", errors)
	case binary.LittleEndian.Uint32(sb[0x60:])&needsRecovery != 0:
		return "its journal was not emptied"
	case state&validState == 0:
		return "not marked clean"
	}
	return ""
}

// btrfsFault judges a btrfs superblock (kernel, include/uapi/linux/btrfs_tree.h, struct btrfs_super_block).
func btrfsFault(sb []byte) string {
	const magic, errorFlag = "_BHRfS_M", 1 << 2
	switch {
	case len(sb) < superSize:
		return "superblock cut short"
	case string(sb[0x40:0x48]) != magic:
		return "no btrfs superblock"
	case binary.LittleEndian.Uint64(sb[0x38:])&errorFlag != 0:
		return "it has found errors"
	case binary.LittleEndian.Uint64(sb[0x60:]) != 0:
		return "its log tree was not emptied"
	}
	return ""
}

// xfsFault asks xfs_logprint, since the state of an XFS log has to be searched for.
func xfsFault(ctx context.Context, device string) (string, error) {
	out, err := execute(ctx, "xfs_logprint", "-t", device)
	text := string(out)
	switch {
	case strings.Contains(text, "state: <CLEAN>"):
		return "", nil
	case strings.Contains(text, "state: <DIRTY>"):
		return "its log was not emptied", nil
	case err != nil:
		return "", err
	}
	return "", fmt.Errorf("xfs_logprint did not say: %s", complaint(text))
}

// readDirect reads n bytes at off past the page cache.
func readDirect(device string, off int64, n int) ([]byte, error) {
	const align = 4096
	f, err := openDirect(device)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	first := off / align * align
	buf := alignedBuffer(int((off-first+int64(n)+align-1)/align*align), align)
	if _, err := io.ReadFull(io.NewSectionReader(f, first, int64(len(buf))), buf); err != nil {
		return nil, &os.PathError{Op: "read", Path: device, Err: err}
	}
	return buf[off-first:][:n], nil
}
