package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Signature is what a low-level probe finds on a device.
type Signature struct {
	FSType string // a filesystem that blkid knows
	Other  string // anything else that is not nothing: a partition table, LUKS, RAID, LVM, swap, bytes that are not zero
}

// Empty says that nothing was found.
func (s Signature) Empty() bool { return s == Signature{} }

func (s Signature) String() string {
	switch {
	case s.FSType != "":
		return "a filesystem (" + s.FSType + ")"
	case s.Other != "":
		return s.Other
	}
	return "nothing"
}

// Signature probes the device itself, past every cache of earlier probes. A device that cannot be read is an error,
// never empty.
func (m *Mounter) Signature(ctx context.Context, device string) (Signature, error) {
	blank, err := endsBlank(device)
	if err != nil {
		return Signature{}, fmt.Errorf("probe %s: %w", device, err)
	}
	out, err := execute(ctx, "blkid", "-p", "-o", "export", device)
	found := parseExport(out)
	switch code := exitCode(err); {
	case err == nil && found["USAGE"] == "filesystem":
		return Signature{FSType: found["TYPE"]}, nil
	case err == nil:
		return Signature{Other: describe(found)}, nil
	case code == blkidAmbivalent:
		return Signature{Other: "more than one signature"}, nil
	case code == blkidNothing && blank:
		return Signature{}, nil
	case code == blkidNothing:
		return Signature{Other: "data without a known signature"}, nil
	}
	return Signature{}, fmt.Errorf("probe %s: %w", device, err)
}

// Exit codes of blkid(8). It gives 2 for an unreadable device too, hence endsBlank first.
const (
	blkidNothing    = 2
	blkidAmbivalent = 8
)

func describe(found map[string]string) string {
	for _, k := range []string{"TYPE", "PTTYPE"} {
		if v := found[k]; v != "" {
			return "a signature (" + v + ")"
		}
	}
	return "a signature of unknown kind"
}

// probeBytes at either end of a device hold every signature that blkid knows (btrfs's is at 64 KiB, RAID's and GPT's
// copies at the end).
const probeBytes = 128 << 10

// endsBlank reads both ends of the device and says whether they are zeros.
func endsBlank(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	n := min(size, probeBytes)
	buf, zeros := make([]byte, n), make([]byte, n)
	for _, off := range []int64{0, size - n} {
		if _, err := f.ReadAt(buf, off); err != nil {
			return false, err
		}
		if !bytes.Equal(buf, zeros) {
			return false, nil
		}
	}
	return true, nil
}

// Format makes a filesystem on a device that reads as zeros, and flushes it. ErrNotEmpty where the probe finds anything;
// unless again is set: an earlier Format of it was cut off and nothing was ever mounted from it. Then the device is made
// to read as zeros first. Killed by ctx or a crash it leaves a part of a filesystem behind.
func (m *Mounter) Format(ctx context.Context, fsType, device string, again bool) error {
	command, err := mkfs(fsType, device)
	if err != nil {
		return err
	}
	if again {
		if err := zero(device); err != nil {
			return fmt.Errorf("format %s again: %w", device, err)
		}
	}
	switch found, err := m.Signature(ctx, device); {
	case err != nil:
		return err
	case !found.Empty():
		return fmt.Errorf("format %s with %s: %w: it carries %s", device, fsType, ErrNotEmpty, found)
	}
	if _, err := execute(ctx, command[0], command[1:]...); err != nil {
		return fmt.Errorf("format %s with %s: %w", device, fsType, err)
	}
	return m.SyncDevice(ctx, device)
}

// mkfs has the reasons for its flags. None may overwrite what is there: that is for Format to decide, hence no force.
//
//   - No discard: the device is blank already.
//   - ext4: assume_storage_prezeroed leaves inode tables and journal unwritten, as they are zeros already. Otherwise mkfs
//     would write 1/64 of the volume, or the kernel would do it after the mount, when it costs the first detach its
//     read-back. 4 KiB blocks even on small volumes: the engine's unit. No blocks for root: the volume is one
//     workload's. remount-ro: after an error nothing more is written.
//   - btrfs: single metadata: the copies are the engine's.
func mkfs(fsType, device string) ([]string, error) {
	switch fsType {
	case "ext4":
		return []string{"mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-e", "remount-ro", "-E", "nodiscard,assume_storage_prezeroed=1", device}, nil
	case "xfs":
		return []string{"mkfs.xfs", "-q", "-K", device}, nil
	case "btrfs":
		return []string{"mkfs.btrfs", "-q", "-K", "-d", "single", "-m", "single", device}, nil
	}
	return nil, fmt.Errorf("format %s: %q: %w; known are %s", device, fsType, ErrUnsupported, strings.Join(Filesystems, ", "))
}

// zero makes the whole device read as zeros; a thin engine only forgets what was written.
func zero(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for off := int64(0); off < size; off += zeroStep {
		if err := zeroRange(f, off, min(zeroStep, size-off)); err != nil {
			return fmt.Errorf("zero %s at %d: %w", device, off, err)
		}
	}
	return f.Sync()
}

// zeroRange gives the range back where the device can do that and reads zeros from it afterwards, and writes zeros where not.
func zeroRange(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	return err
}

// zeroStep bounds one request, so that a signal is heard in between.
const zeroStep = 1 << 30

// execute runs one command, with nothing to read and in the C locale, and returns what it printed. Its error holds the end of what it
// complained about.
func execute(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), err, complaint(stderr.String(), stdout.String()))
	}
	return stdout.Bytes(), nil
}

func complaint(texts ...string) string {
	const most = 600
	for _, t := range texts {
		if t = strings.Join(strings.Fields(t), " "); t != "" {
			return ": " + t[max(0, len(t)-most):]
		}
	}
	return ""
}

func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

func parseExport(out []byte) map[string]string {
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			found[k] = v
		}
	}
	return found
}
