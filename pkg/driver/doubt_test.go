package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// doubt has the engine say that the volume's last writer had not flushed.
func (s *stay) doubt() {
	s.t.Helper()
	id := volume.ID(s.id)
	v, err := s.engine.Get(s.t.Context(), id)
	must(s.t, err)
	must(s.t, s.engine.SetFormat(s.t.Context(), id, v.Format.AfterUnclean()))
	s.loops.mu.Lock()
	defer s.loops.mu.Unlock()
	s.loops.unclean[id] = true
}

func (s *stay) doubted() engine.Doubt {
	s.t.Helper()
	v, err := s.engine.Get(s.t.Context(), volume.ID(s.id))
	must(s.t, err)
	return v.Format.Doubt
}

// again takes the staged volume all the way off the node and publishes it anew.
func (s *stay) again() {
	s.t.Helper()
	must(s.t, s.unstage())
	must(s.t, s.unpublish())
	s.publish()
}

// wrote is a volume that was staged once, with a file in it.
func (p *plugin) wrote(fsType string) *stay {
	p.t.Helper()
	s := p.create("data", sizes[fsType], asMount(fsType, writer)).publish()
	must(p.t, s.stage())
	must(p.t, os.WriteFile(filepath.Join(s.staging, "file"), bytes.Repeat([]byte("x"), 1<<20), 0o644))
	return s
}

// shutDown stops the mounted filesystem as a fatal error would: its journal is not emptied.
func shutDown(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	must(t, unix.Syncfs(int(f.Fd())))
	must(t, os.WriteFile(filepath.Join(path, "late"), []byte("x"), 0o644))
	const goingDown, flushLog = 0x8004587D, 1 // XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), goingDown, flushLog))
}

// The writer dies under a filesystem whose journal is full. The next stage knows, replays, checks, and tells; the one after that does not.
func TestUncleanWriter(t *testing.T) {
	root(t)
	for _, fsType := range mount.Filesystems {
		t.Run(fsType, func(t *testing.T) {
			p := start(t)
			s := p.wrote(fsType)
			must(t, s.show())
			if fsType != "btrfs" { // which cannot be shut down
				shutDown(t, s.staging)
			}
			p.engine.Kill(volume.ID(s.id))
			p.loops.lose(volume.ID(s.id))
			must(t, s.hide())
			wants(t, s.stage(), codes.Aborted, s.id, "stage it again")
			p.told()
			must(t, s.stage())
			if got := p.told(); got != "unclean data mount; checked data clean; staged data mount" {
				t.Errorf("told: %s", got)
			}
			left := p.checked[0].Report.Left
			if len(p.checked) != 1 || fsType != "btrfs" && !strings.Contains(left, "not emptied") || s.doubted() != engine.NoDoubt {
				t.Errorf("checked: %+v, doubt %q", p.checked, s.doubted())
			}
			if log := p.log.String(); !strings.Contains(log, "filesystem in doubt is consistent") || !strings.Contains(log, "before it had flushed") {
				t.Error("the log does not tell")
			}
			if b, err := os.ReadFile(filepath.Join(s.staging, "file")); err != nil || len(b) != 1<<20 {
				t.Errorf("what was synced: %d bytes, %v", len(b), err)
			}
			must(t, s.stage()) // again: nothing happens twice
			s.again()
			must(t, s.stage())
			if got := p.told(); got != "published data; staged data mount" {
				t.Errorf("told later: %s", got)
			}
			must(t, s.unstage())
		})
	}
}

// What a raw device holds is its workload's to check; that the last writer died is told all the same, once.
func TestUncleanWriterOfABlockVolume(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("raw", 64, asBlock(writer)).publish()
	must(t, s.stage())
	must(t, s.unstage())
	must(t, s.unpublish())
	p.loops.unclean[volume.ID(s.id)] = true
	s.publish()
	p.told()
	must(t, s.stage())
	must(t, s.stage())
	if got := p.told(); got != "unclean raw block; staged raw block" {
		t.Errorf("told: %s", got)
	}
	must(t, s.unstage())
}

// damaged is a volume whose filesystem lost an inode, as nobody knows yet.
func (p *plugin) damaged() *stay {
	p.t.Helper()
	s := p.wrote("ext4")
	must(p.t, s.unstage())
	must(p.t, s.unpublish())
	run(p.t, "debugfs", "-w", "-R", "clri file", p.loops.file(volume.ID(s.id)))
	s.doubt()
	s.publish()
	p.told()
	return s
}

func (s *stay) mounted() bool {
	s.t.Helper()
	_, yes, err := s.driver.Mounter.At(s.staging)
	must(s.t, err)
	return yes
}

func (s *stay) device() string {
	s.loops.mu.Lock()
	defer s.loops.mu.Unlock()
	return s.loops.devices[volume.ID(s.id)]
}

// A damaged filesystem is mounted neither now nor after it was taken off the node in good order, until somebody has repaired it.
func TestDamageIsRefused(t *testing.T) {
	root(t)
	p := start(t)
	s := p.damaged()
	for range 2 {
		wants(t, s.stage(), codes.FailedPrecondition, s.id, "damaged", "ext4", s.device(), "deleted/unused inode", "e2fsck -f -n "+s.device(), "belay history "+s.id)
		if s.mounted() || s.doubted() != engine.Damaged {
			t.Errorf("mounted: %t, doubt %q", s.mounted(), s.doubted())
		}
	}
	if got := p.told(); got != "unclean data mount; checked data damaged; checked data damaged" {
		t.Errorf("told: %s", got)
	}
	if n := strings.Count(p.log.String(), "filesystem is damaged"); n != 1 {
		t.Errorf("the log tells %d times", n)
	}
	s.loops.unclean[volume.ID(s.id)] = false
	s.again()
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "damaged")
	if out, err := exec.Command("e2fsck", "-f", "-y", s.device()).CombinedOutput(); err == nil {
		t.Fatalf("there was nothing to repair: %s", out)
	}
	must(t, s.stage())
	if !s.mounted() || s.doubted() != engine.NoDoubt {
		t.Errorf("mounted: %t, doubt %q", s.mounted(), s.doubted())
	}
	must(t, s.unstage())
}

// Errors that ext4 has noted itself are looked into, though its writer ended well.
func TestNotedErrorsAreLookedInto(t *testing.T) {
	root(t)
	p := start(t)
	s := p.wrote("ext4")
	must(t, os.WriteFile("/sys/fs/ext4/"+filepath.Base(s.device())+"/trigger_fs_error", []byte("a test"), 0o200))
	s.again()
	p.told()
	must(t, s.stage())
	if got := p.told(); got != "checked data clean; staged data mount" || !strings.Contains(p.checked[0].Report.Left, "1 errors") {
		t.Errorf("told: %s; %+v", got, p.checked)
	}
	s.again()
	must(t, s.stage())
	if got := p.told(); got != "published data; staged data mount" {
		t.Errorf("told later: %s", got)
	}
	must(t, s.unstage())
}

// slow is an e2fsck that waits in the middle until it is let go on.
type slow struct{ begun, goOn string }

func slowly(t *testing.T) slow {
	t.Helper()
	real, err := exec.LookPath("e2fsck")
	must(t, err)
	dir := t.TempDir()
	s := slow{begun: filepath.Join(dir, "begun"), goOn: filepath.Join(dir, "go-on")}
	must(t, errors.Join(unix.Mkfifo(s.begun, 0o600), unix.Mkfifo(s.goOn, 0o600)))
	text := fmt.Sprintf("#!/bin/sh\necho 2 50 100 device >&3\necho > %s\nread line < %s\nexec %s \"$@\"\n", s.begun, s.goOn, real)
	must(t, os.WriteFile(filepath.Join(dir, "e2fsck"), []byte(text), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return s
}

func (s slow) await(t *testing.T) {
	t.Helper()
	_, err := os.ReadFile(s.begun)
	must(t, err)
}

func (s slow) release(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile(s.goOn, []byte("go on\n"), 0o600))
}

func (s *stay) stageWithin(d time.Duration) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), d)
	defer cancel()
	_, err := s.NodeStageVolume(ctx, s.staging1())
	return err
}

// A check outlives the call: who asks again is told how far it is, joins it, and does not begin another.
func TestCheckOutlivesTheCall(t *testing.T) {
	root(t)
	p := start(t)
	s := p.wrote("ext4")
	s.again()
	s.doubt()
	p.told()
	tool := slowly(t)
	go tool.await(t)
	for range 2 {
		wants(t, s.stageWithin(2*time.Second), codes.Aborted, s.id, "being checked", "pass 2 of 5, 50%", "ask again")
	}
	if how := p.driver.Checking(volume.ID(s.id)); !strings.Contains(how, "pass 2 of 5") || s.mounted() {
		t.Errorf("checking: %q, mounted: %t", how, s.mounted())
	}
	tool.release(t)
	must(t, s.stageWithin(time.Minute)) // another check would wait for ever
	if got := p.told(); got != "unclean data mount; checked data clean; staged data mount" {
		t.Errorf("told: %s", got)
	}
	must(t, s.unstage())
}

// Where the volume is to leave, or the process to end, the check is called off, and made anew the next time.
func TestCheckIsCalledOff(t *testing.T) {
	root(t)
	p := start(t)
	s := p.wrote("ext4")
	s.again()
	s.doubt()
	tool := slowly(t)
	begun := make(chan error, 1)
	go func() { begun <- s.stage() }()
	tool.await(t)
	wants(t, s.unstage(), codes.Aborted, s.id, "NodeStageVolume is running")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.NodeStageVolume(ctx, s.staging1()); err == nil {
		t.Error("staged without a check")
	}
	must(t, p.driver.Close(t.Context()))
	wants(t, <-begun, codes.Aborted, s.id, "called off")
	wants(t, s.stage(), codes.Aborted, s.id, "about to end")
	if s.doubted() != engine.Unchecked || s.mounted() {
		t.Errorf("doubt %q, mounted: %t", s.doubted(), s.mounted())
	}
	p.driver.checks = newChecks() // the next process
	go func() { begun <- s.stageWithin(2 * time.Second) }()
	tool.await(t)
	wants(t, <-begun, codes.Aborted, s.id, "being checked")
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := s.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: s.id, StagingTargetPath: s.staging})
	must(t, err)
	if how := p.driver.Checking(volume.ID(s.id)); how != "" {
		t.Errorf("unstaged, and the check runs still: %s", how)
	}
	must(t, s.unpublish())
	if s.doubted() != engine.Unchecked {
		t.Errorf("doubt %q", s.doubted())
	}
}

// A process that was killed while it had the journal replayed leaves a mount on the staging path. It is not taken for the volume being staged.
func TestMountLeftByACheck(t *testing.T) {
	root(t)
	p := start(t)
	s := p.wrote("ext4")
	s.again()
	s.doubt()
	mend := failing(t, "e2fsck")
	wants(t, s.stage(), codes.Internal, s.id, "could not be checked", "broken tool")
	mend()
	must(t, unix.Mount(s.device(), s.staging, "ext4", unix.MS_RDONLY, ""))
	p.told()
	must(t, s.stage())
	if got := p.told(); got != "unclean data mount; checked data clean; staged data mount" {
		t.Errorf("told: %s", got)
	}
	must(t, os.WriteFile(filepath.Join(s.staging, "new"), nil, 0o600)) // it is not the read-only one
	must(t, s.unstage())
}
