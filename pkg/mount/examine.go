package mount

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Examine looks at the filesystem of a device whose last writer may not have finished, before anybody mounts it. It replays the journal,
// as every mount does, by a mount on path that is read-only and gone again when it returns; then it checks without changing anything. Of a
// filesystem that is found consistent the mark of earlier errors is taken away. Nothing is ever repaired: what is not clean is
// reported and left as it is.
//
// The replay is the kernel's own, which leaves a journal alone that it cannot read. e2fsck -p makes a new one: what was synced and is in the
// journal only is gone then, and the next check finds nothing.
//
// *BusyError where the device is mounted. An error says that it could not be examined. progress may be nil.
func (m *Mounter) Examine(ctx context.Context, fsType, device, path string, progress func(string)) (Report, error) {
	began := time.Now()
	r, err := m.examine(ctx, fsType, device, path, progress)
	r.FSType, r.Took = fsType, time.Since(began)
	return r, err
}

func (m *Mounter) examine(ctx context.Context, fsType, device, path string, progress func(string)) (Report, error) {
	if by, err := m.MountedAt(device); err != nil || len(by) > 0 {
		return Report{}, errors.Join(err, busy(device, by))
	}
	left, err := m.left(ctx, fsType, device)
	if err != nil {
		return Report{}, err
	}
	if err := m.replay(ctx, fsType, device, path); err != nil {
		if corrupt(err) {
			return Report{Left: left, Output: "its journal cannot be replayed: " + err.Error()}, nil
		}
		return Report{}, fmt.Errorf("replay the journal of %s (%s): %w", device, fsType, err)
	}
	r, err := m.Check(ctx, fsType, device, progress)
	if err == nil && r.Clean {
		err = m.unmark(ctx, fsType, device)
	}
	r.Left = left
	return r, err
}

func busy(device string, by []Holder) error {
	if len(by) == 0 {
		return nil
	}
	return &BusyError{Path: device, Holders: by}
}

// left says in what way the filesystem was not closed in good order, "" where it was.
func (m *Mounter) left(ctx context.Context, fsType, device string) (string, error) {
	fault, err := fault(ctx, fsType, device)
	if err != nil {
		return "", fmt.Errorf("how was %s (%s) left: %w", device, fsType, err)
	}
	return fault, nil
}

// replay mounts the filesystem read-only and unmounts it. It goes on when ctx ends, so that nothing stays mounted.
func (m *Mounter) replay(ctx context.Context, fsType, device, path string) error {
	return m.jobs.do(ctx, "replay "+device+" on", path, func() error {
		if err := m.unoccupied(path); err != nil {
			return err
		}
		// mount(8) itself, for its words: what is wrong is told apart by them.
		if _, err := execute(context.WithoutCancel(ctx), "mount", "-t", fsType, "-o", "ro,nosuid,nodev,noexec", device, path); err != nil {
			return err
		}
		return m.unmount(path)
	})
}

// corrupt says that a mount failed for what is on the device. The words are those of mount(8), whose versions differ, and of the kernel.
func corrupt(err error) bool {
	for _, words := range []string{"corrupt", "needs cleaning", "Bad message", "bad superblock", "can't read superblock"} {
		if strings.Contains(err.Error(), words) {
			return true
		}
	}
	return false
}

// Marked says what errors the filesystem on an unmounted device has noted itself, "" for none: only ext4 keeps such a mark. Reads one block.
func (m *Mounter) Marked(fsType, device string) (string, error) {
	if fsType != "ext4" {
		return "", nil
	}
	fault, err := superblockFault(device, ext4Super, ext4Mark)
	if err != nil {
		return "", fmt.Errorf("errors noted on %s (%s): %w", device, fsType, err)
	}
	return fault, nil
}

// unmark takes ext4's mark of errors away, where a check has just found none: with it, no unmount would ever count as clean again.
func (m *Mounter) unmark(ctx context.Context, fsType, device string) error {
	mark, err := m.Marked(fsType, device)
	if err != nil || mark == "" {
		return err
	}
	t := tool{command: []string{"e2fsck", "-p", device}}
	if _, err := t.run(ctx, nil); err != nil && exitCode(err) != 1 { // 1: it has written
		return fmt.Errorf("take the mark of errors from %s, in which none is found: %w", device, err)
	}
	m.log.Warn("filesystem had noted errors, of which none is found; the mark was taken away", "device", device, "mark", mark)
	return nil
}
