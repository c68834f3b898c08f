package mount

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Report is what an examination of a filesystem found.
type Report struct {
	FSType string `json:"fsType"`
	Clean  bool   `json:"clean"` // consistent; it may be mounted
	// Left is how the last writer left it, where that was not in good order: "its journal was not emptied". Replaying mends that.
	Left   string        `json:"left,omitempty"`
	Output string        `json:"output,omitempty"` // what the tool said, shortened, where it is not clean
	Took   time.Duration `json:"took"`
}

// Check examines the filesystem of a device that is not mounted, and changes nothing. The journal must have been
// replayed (mounted and unmounted once): a check does not look into it. Takes time with the number of files; progress, which may be
// nil, is told how far it is. When ctx ends, or this process dies, the tool is killed.
func (m *Mounter) Check(ctx context.Context, fsType, device string, progress func(string)) (Report, error) {
	began := time.Now()
	t, err := fsck(fsType, device)
	if err != nil {
		return Report{}, err
	}
	said, err := t.run(ctx, progress)
	r := Report{FSType: fsType, Clean: err == nil, Took: time.Since(began)}
	if err == nil {
		return r, nil
	}
	if ctx.Err() != nil || !foundDamage(fsType, exitCode(err), said) {
		return Report{}, fmt.Errorf("check %s (%s): %w", device, fsType, err)
	}
	r.Output = said
	return r, nil
}

func fsck(fsType, device string) (tool, error) {
	switch fsType {
	case "ext4":
		return tool{command: []string{"e2fsck", "-f", "-n", "-C", "3", device}, counts: true}, nil
	case "xfs":
		return tool{command: []string{"xfs_repair", "-n", device}, step: "Phase "}, nil
	case "btrfs":
		return tool{command: []string{"btrfs", "check", "--readonly", device}, step: "["}, nil
	}
	return tool{}, fmt.Errorf("check %s: %q: %w", device, fsType, ErrUnsupported)
}

// foundDamage says that the tool looked, and that its exit code means a finding.
func foundDamage(fsType string, code int, said string) bool {
	for _, busy := range []string{"resource busy", "is mounted", "mounted filesystem", "currently mounted", "is in use"} {
		if strings.Contains(said, busy) {
			return false
		}
	}
	switch fsType {
	case "ext4":
		const uncorrected, usage = 4, 16 // between them 8: it could not go on, which damage brings about, too
		return code > 0 && code&uncorrected != 0 && code < usage
	case "xfs":
		return code == 1 && strings.Contains(said, "Phase 1") // 1 is also that it could not begin
	}
	return code == 1 && strings.Contains(said, "Opening filesystem")
}

// Closed returns nil where the filesystem on an unmounted device was closed cleanly: its journal is empty and it knows of
// no error. An unmount reports success though its last writes failed; this notices. ErrDamaged otherwise. It reads a few
// blocks from the device itself, past the page cache.
func (m *Mounter) Closed(ctx context.Context, fsType, device string) error {
	fault, err := fault(ctx, fsType, device)
	if err != nil {
		return fmt.Errorf("was the %s on %s closed cleanly: %w", fsType, device, err)
	}
	if fault != "" {
		return fmt.Errorf("%s on %s: %w: %s", fsType, device, ErrDamaged, fault)
	}
	return nil
}

// fault says why the filesystem does not count as closed cleanly, "" where it does.
func fault(ctx context.Context, fsType, device string) (string, error) {
	switch fsType {
	case "ext4":
		return superblockFault(device, ext4Super, ext4Fault)
	case "btrfs":
		return superblockFault(device, btrfsSuper, btrfsFault)
	case "xfs":
		return xfsFault(ctx, device)
	}
	return "", fmt.Errorf("%q: %w", fsType, ErrUnsupported)
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
	const magic, validState, needsRecovery = 0xEF53, 1, 4
	state := binary.LittleEndian.Uint16(sb[0x3A:])
	mark := ext4Mark(sb)
	switch {
	case binary.LittleEndian.Uint16(sb[0x38:]) != magic:
		return "no ext4 superblock"
	case mark != "":
		return mark
	case binary.LittleEndian.Uint32(sb[0x60:])&needsRecovery != 0:
		return "its journal was not emptied"
	case state&validState == 0:
		return "not marked clean"
	}
	return ""
}

// ext4Mark is what ext4 has noted of errors that it met, "" for none.
func ext4Mark(sb []byte) string {
	const errorState = 2
	state := binary.LittleEndian.Uint16(sb[0x3A:])
	errors := binary.LittleEndian.Uint32(sb[0x194:])
	if errors == 0 && state&errorState == 0 {
		return ""
	}
	return fmt.Sprintf("it has found %d errors since it was last checked", errors)
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
