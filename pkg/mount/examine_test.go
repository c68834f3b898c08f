package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// crashed returns a device as the machine's end left it: with fsynced files in it, and a journal that was not emptied.
func crashed(t *testing.T, m *Mounter, fsType string) (device string) {
	t.Helper()
	first := loop(t, size(fsType))
	must(t, m.Format(t.Context(), fsType, first, false))
	path := mounted(t, m, fsType, first)
	for i := range 50 {
		must(t, os.WriteFile(filepath.Join(path, fmt.Sprint("before", i)), []byte("x"), 0o644))
	}
	must(t, m.Sync(t.Context(), path))
	orphan, err := os.Create(filepath.Join(path, "orphan")) // removed and open: the replay has to free it
	must(t, err)
	defer orphan.Close()
	_, err = orphan.Write(make([]byte, 100<<10))
	must(t, err)
	must(t, os.Remove(orphan.Name()))
	for i := range 20 {
		writeSynced(t, filepath.Join(path, fmt.Sprint("synced", i)), strings.Repeat("y", 5000))
	}
	image := filepath.Join(t.TempDir(), "crashed")
	sh(t, "cp", "--sparse=always", backing(t, first), image)
	orphan.Close()
	must(t, m.Unmount(t.Context(), path))
	return attachLoop(t, image)
}

func backing(t *testing.T, device string) string {
	t.Helper()
	return sh(t, "losetup", "--noheadings", "--output", "BACK-FILE", device)
}

func writeSynced(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, errors.Join(err, f.Sync(), f.Close()))
}

func examine(t *testing.T, m *Mounter, fsType, device string) Report {
	t.Helper()
	path := t.TempDir()
	r, err := m.Examine(t.Context(), fsType, device, path, nil)
	must(t, err)
	if on, mounted, err := m.At(path); err != nil || mounted {
		t.Fatalf("mounted after it: %+v, %v", on, err)
	}
	if r.FSType != fsType || r.Took <= 0 {
		t.Errorf("report %+v", r)
	}
	return r
}

func TestExamineAfterACrash(t *testing.T) {
	root(t)
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) {
			m := newMounter(t)
			device := crashed(t, m, fsType)
			if r := examine(t, m, fsType, device); !r.Clean || !strings.Contains(r.Left, "not emptied") || r.Output != "" {
				t.Errorf("report %+v", r)
			}
			if r := examine(t, m, fsType, device); !r.Clean || r.Left != "" {
				t.Errorf("the second time: %+v", r)
			}
			path := mounted(t, m, fsType, device)
			for i := range 20 {
				if b, err := os.ReadFile(filepath.Join(path, fmt.Sprint("synced", i))); err != nil || len(b) != 5000 {
					t.Errorf("what was synced: %d bytes, %v", len(b), err)
				}
			}
		})
	}
}

// Damage that no replay mends is reported, and left as it is.
func TestExamineLeavesDamageAlone(t *testing.T) {
	root(t)
	damages := map[string]func(*testing.T, string){
		"ext4": func(t *testing.T, device string) { sh(t, "debugfs", "-w", "-R", "clri before7", device) },
		"xfs":  func(t *testing.T, device string) { overwrite(t, device, 24*512, 4096) }, // of the inode tree of the first group
		"btrfs": func(t *testing.T, device string) {
			tree := sh(t, "sh", "-c", "btrfs inspect-internal dump-tree -t 5 "+device+" | grep -m1 -oP '^leaf \\K[0-9]+'")
			at := sh(t, "sh", "-c", "btrfs-map-logical -l "+tree+" "+device+" | grep -oP 'physical \\K[0-9]+'")
			overwrite(t, device, number(t, at), 4096)
		},
	}
	for _, fsType := range Filesystems {
		t.Run(fsType, func(t *testing.T) {
			m := newMounter(t)
			device := crashed(t, m, fsType)
			examine(t, m, fsType, device) // replays: from here on nothing is to change
			damages[fsType](t, device)
			before := sh(t, "md5sum", device)
			for range 2 {
				if r := examine(t, m, fsType, device); r.Clean || r.Output == "" || len(r.Output) > 5000 {
					t.Errorf("report %+v", r)
				}
			}
			// XFS writes to its log at every mount.
			if after := sh(t, "md5sum", device); after != before && fsType != "xfs" {
				t.Error("it was changed")
			}
		})
	}
}

// A journal that cannot be read may hold what was synced last and is nowhere else. It is left for who can, and never passed over.
func TestExamineLeavesABrokenJournalAlone(t *testing.T) {
	root(t)
	for name, block := range map[string]int64{"its superblock": 0, "the first block behind its first descriptor": 2} {
		t.Run(name, func(t *testing.T) {
			m := newMounter(t)
			device := crashed(t, m, "ext4")
			journal := number(t, sh(t, "sh", "-c", "debugfs -R 'blocks <8>' "+device+" 2>/dev/null | cut -d' ' -f1"))
			overwrite(t, device, (journal+block)*4096, 4096)
			content := func() string {
				file := filepath.Join(t.TempDir(), "journal")
				sh(t, "debugfs", "-R", "dump <8> "+file, device)
				return sh(t, "sh", "-c", "md5sum < "+file)
			}
			before := content()
			for range 2 {
				if r := examine(t, m, "ext4", device); r.Clean || !strings.Contains(r.Output, "cannot be replayed") {
					t.Errorf("report %+v", r)
				}
			}
			if content() != before {
				t.Error("the journal was changed")
			}
			if err := m.Closed(t.Context(), "ext4", device); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "not emptied") {
				t.Errorf("closed: %v", err)
			}
		})
	}
}

func overwrite(t *testing.T, device string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_EXCL, 0)
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte("damage! "), n/8), at)
	must(t, errors.Join(err, f.Sync(), f.Close()))
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	must(t, err)
	return n
}

// ext4's mark of errors that it met is taken away only where a check finds none.
func TestExamineTakesTheMarkAway(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	writeSynced(t, filepath.Join(path, "f"), "x")
	must(t, os.WriteFile("/sys/fs/ext4/"+filepath.Base(device)+"/trigger_fs_error", []byte("a test"), 0o200))
	must(t, m.Unmount(t.Context(), path))
	if mark, err := m.Marked("ext4", device); err != nil || !strings.Contains(mark, "1 errors") {
		t.Fatalf("mark %q, %v", mark, err)
	}
	if r := examine(t, m, "ext4", device); !r.Clean || !strings.Contains(r.Left, "1 errors") {
		t.Errorf("report %+v", r)
	}
	if mark, err := m.Marked("ext4", device); err != nil || mark != "" {
		t.Errorf("mark %q, %v", mark, err)
	}
	must(t, m.Closed(t.Context(), "ext4", device))

	sh(t, "debugfs", "-w", "-R", "clri f", device)
	sh(t, "debugfs", "-w", "-R", "ssv state 3", device)
	if r := examine(t, m, "ext4", device); r.Clean {
		t.Errorf("report %+v", r)
	}
	if mark, err := m.Marked("ext4", device); err != nil || mark == "" {
		t.Errorf("of a damaged one the mark is gone: %v", err)
	}
}

func TestExamineRefusesWhatIsMounted(t *testing.T) {
	m, device := newMounter(t), loop(t, 64)
	must(t, m.Format(t.Context(), "ext4", device, false))
	path := mounted(t, m, "ext4", device)
	if _, err := m.Examine(t.Context(), "ext4", device, t.TempDir(), nil); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), path) {
		t.Errorf("examine: %v", err)
	}
}

// Somebody who repairs it by hand has it open exclusively: that is no damage.
func TestABusyDeviceIsNotDamaged(t *testing.T) {
	root(t)
	for _, fsType := range []string{"ext4", "xfs"} {
		m, device := newMounter(t), loop(t, size(fsType))
		must(t, m.Format(t.Context(), fsType, device, false))
		f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
		must(t, err)
		if r, err := m.Examine(t.Context(), fsType, device, t.TempDir(), nil); err == nil {
			t.Errorf("%s: examined while in use: %+v", fsType, r)
		}
		if r, err := m.Check(t.Context(), fsType, device, nil); err == nil && !r.Clean {
			t.Errorf("%s: in use counts as damage: %+v", fsType, r)
		}
		must(t, f.Close())
	}
}

// script puts a program of that name before all others.
func script(t *testing.T, name, text string) {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// steps collects what progress is told.
type steps struct {
	mu  sync.Mutex
	all []string
}

func (s *steps) add(one string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, one)
}

func TestProgressOfACheck(t *testing.T) {
	root(t)
	for _, fsType := range Filesystems {
		m, device := newMounter(t), loop(t, size(fsType))
		must(t, m.Format(t.Context(), fsType, device, false))
		var s steps
		if r, err := m.Check(t.Context(), fsType, device, s.add); err != nil || !r.Clean {
			t.Errorf("%s: %+v, %v", fsType, r, err)
		}
		want := map[string]string{"ext4": "pass 5 of 5, 100%", "xfs": "phase 3 - for each ag", "btrfs": "[2/7] checking extents"}[fsType]
		if !strings.Contains(strings.Join(s.all, "\n"), want) {
			t.Errorf("%s: told %q, want %q among them", fsType, s.all, want)
		}
	}
}

// A check ends with its context, however long it would take, and whatever its tool says meanwhile.
func TestACheckEndsWithItsContext(t *testing.T) {
	root(t)
	script(t, "e2fsck", "echo 2 50 100 /dev/x >&3; exec yes damaged\n")
	m, device := newMounter(t), loop(t, 64)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := m.Check(ctx, "ext4", device, func(how string) {
		if how == "pass 2 of 5, 50%" {
			cancel()
		}
	})
	if !errors.Is(ctx.Err(), context.Canceled) || err == nil || len(err.Error()) > 2000 {
		t.Errorf("check: %.300v", err)
	}
}

func TestTranscriptKeepsBothEnds(t *testing.T) {
	var s steps
	said := transcript{step: "Phase ", progress: s.add}
	for i := range 100000 {
		fmt.Fprintf(&said, "line %d\nPhase %d - x...\n", i, i)
	}
	text := said.String()
	if len(text) > 3*transcriptPart || !strings.HasPrefix(text, "line 0\n") || !strings.HasSuffix(text, "Phase 99999 - x...") || !strings.Contains(text, "bytes left out") {
		t.Errorf("%d bytes: %.50q", len(text), text)
	}
	if len(s.all) != 100000 || s.all[7] != "phase 7 - x" {
		t.Errorf("%d steps", len(s.all))
	}
	short := transcript{}
	fmt.Fprintf(&short, "%s", strings.Repeat("z", transcriptPart+10))
	if short.String() != strings.Repeat("z", transcriptPart+10) {
		t.Error("something is left out of what fits")
	}
}

func TestWhatCountsAsDamage(t *testing.T) {
	for _, tc := range []struct {
		fsType string
		code   int
		said   string
		damage bool
	}{
		{"ext4", 4, "Pass 1", true},
		{"ext4", 12, "journal superblock is corrupt", true},
		{"ext4", 8, "Bad magic number", false},
		{"ext4", 1, "broken tool", false},
		{"ext4", 12, "/dev/x is in use.", false},
		{"ext4", -1, "killed", false},
		{"ext4", 16, "usage", false},
		{"xfs", 1, "Phase 1 - find and verify superblock", true},
		{"xfs", 1, "xfs_repair: cannot open /dev/x: Device or resource busy", false},
		{"xfs", 1, "broken tool", false},
		{"btrfs", 1, "Opening filesystem to check...\nERROR: errors found in fs roots", true},
		{"btrfs", 1, "ERROR: /dev/x is currently mounted, use --force", false},
		{"btrfs", -1, "Opening filesystem to check", false},
	} {
		if got := foundDamage(tc.fsType, tc.code, tc.said); got != tc.damage {
			t.Errorf("%s, exit code %d, %q: damage %t", tc.fsType, tc.code, tc.said, got)
		}
	}
}
