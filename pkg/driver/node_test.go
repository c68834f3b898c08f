package driver

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

var sizes = map[string]int64{"ext4": 64, "xfs": 320, "btrfs": 256}

func TestWayInAndOut(t *testing.T) {
	root(t)
	for _, fsType := range mount.Filesystems {
		t.Run(fsType, func(t *testing.T) {
			p := start(t)
			s := p.create("data", sizes[fsType], asMount(fsType, writer, "noatime")).publish()
			for range 2 { // every call again: the orchestrator repeats
				must(t, s.stage())
			}
			for range 2 {
				must(t, s.show())
			}
			file := filepath.Join(s.target, "f")
			must(t, os.WriteFile(file, []byte("kept"), 0o644))
			stats, err := p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: s.target})
			if err != nil || stats.GetUsage()[0].GetTotal() < sizes[fsType]<<20/2 || stats.GetUsage()[0].GetUsed() <= 0 {
				t.Errorf("stats: %v, %v", stats, err)
			}
			wants(t, s.unpublish(), codes.FailedPrecondition, s.id, s.target)
			wants(t, s.unstage(), codes.FailedPrecondition, s.id, s.target)
			for range 2 {
				must(t, s.hide())
			}
			if _, err := os.Lstat(s.target); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("target after unpublish: %v", err)
			}
			wants(t, s.unpublish(), codes.FailedPrecondition, s.id)
			for range 2 {
				must(t, s.unstage())
			}
			for range 2 {
				must(t, s.unpublish())
			}
			receipts, err := p.engine.Receipts(t.Context(), volume.ID(s.id))
			if err != nil || len(receipts) != 1 || !bytes.Contains(receipts[0], []byte("clean")) {
				t.Errorf("receipts: %s, %v", receipts, err)
			}
			s.publish()
			must(t, s.stage())
			must(t, s.show())
			if b, err := os.ReadFile(file); err != nil || string(b) != "kept" {
				t.Errorf("after another attach: %q, %v", b, err)
			}
			s.leave()
		})
	}
}

func TestRawBlock(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("raw", 16, asBlock(writer)).publish()
	must(t, s.stage())
	must(t, s.stage())
	must(t, s.show())
	must(t, s.show())
	f, err := os.OpenFile(s.target, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("kept"), 4096)
	must(t, errors.Join(err, f.Sync()))
	stats, err := p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: s.target})
	if err != nil || stats.GetUsage()[0].GetTotal() != 16<<20 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	s.statsElsewhere(t)
	must(t, f.Close())
	must(t, s.hide())
	end := holdOpen(t, p.loops.devices[volume.ID(s.id)])
	wants(t, s.unstage(), codes.FailedPrecondition, s.id, "sleep")
	end()
	must(t, s.unstage())
	must(t, s.unpublish())

	// What was written raw is never formatted over.
	s.want = asMount("ext4", writer)
	s.publish()
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "data", "never formatted")
	must(t, s.unstage())
	must(t, s.unpublish())
}

// holdOpen starts a process that has the file open, until the returned function is called.
func holdOpen(t *testing.T, path string) func() {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	c := exec.Command("sleep", "300")
	c.Stdin = f
	must(t, c.Start())
	end := func() { _ = c.Process.Kill(); _ = c.Wait() }
	t.Cleanup(end)
	return end
}

func TestNeverFormatsWhatIsThere(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	file := p.loops.file(volume.ID(s.id))
	must(t, grow(file, 64<<20))
	run(t, "mkfs.ext4", "-q", file)
	s.publish()
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "ext4", "never formatted")
	before, err := os.ReadFile(file)
	must(t, err)
	must(t, s.unstage())
	after, err := os.ReadFile(file)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the device was written to")
	}
}

// A format that was cut off by a crash is done again; one that was finished never is, whatever the device says.
func TestFormatIsFinishedOnce(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, p.engine.SetFormat(t.Context(), volume.ID(s.id), engine.Format{Stage: engine.Formatting, FSType: "ext4"}))
	must(t, grow(p.loops.file(volume.ID(s.id)), 64<<20))
	run(t, "mkfs.ext4", "-q", p.loops.file(volume.ID(s.id)))
	must(t, s.stage())
	v, err := p.engine.Get(t.Context(), volume.ID(s.id))
	if err != nil || v.Format != (engine.Format{Stage: engine.Formatted, FSType: "ext4"}) {
		t.Errorf("format: %+v, %v", v.Format, err)
	}
	must(t, s.unstage())
	must(t, s.unpublish())
	must(t, os.Truncate(p.loops.file(volume.ID(s.id)), 0))
	s.publish()
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "nothing", "never formatted again")
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
}

func TestReadOnlyTarget(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, s.stage())
	r := s.publication()
	r.Readonly = true
	_, err := p.NodePublishVolume(t.Context(), r)
	must(t, err)
	if err := os.WriteFile(filepath.Join(s.target, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only target: %v", err)
	}
	wants(t, s.show(), codes.AlreadyExists, s.id, s.target)
	s.leave()
}

func TestReadOnlyAttachment(t *testing.T) {
	root(t)
	reader := csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer))
	s.want = asMount("ext4", reader)
	s.publish()
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "read-only")
	must(t, s.unstage())
	must(t, s.unpublish())
	s.want = asMount("ext4", writer)
	s.publish()
	must(t, s.stage())
	must(t, s.unstage())
	must(t, s.unpublish())
	s.want = asMount("ext4", reader)
	s.publish()
	must(t, s.stage())
	must(t, s.show())
	if err := os.WriteFile(filepath.Join(s.target, "f"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a volume published read-only: %v", err)
	}
	s.leave()
}

// A read-only raw device refuses writes, and the mark does not stick to the loop device for the next volume.
func TestReadOnlyBlock(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("raw", 16, asBlock(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY)).publish()
	must(t, s.stage())
	must(t, s.show())
	writesNothing(t, s.target)
	s.leave()
	next := p.create("next", 16, asBlock(writer)).publish()
	must(t, next.stage())
	must(t, next.show())
	f, err := os.OpenFile(next.target, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt(make([]byte, 4096), 0)
	must(t, errors.Join(err, f.Close()))
	other := next.publication()
	other.TargetPath, other.Readonly = next.target+"2", true
	_, err = p.NodePublishVolume(t.Context(), other)
	wants(t, err, codes.FailedPrecondition, next.id, "read-only")
	must(t, next.hide())
	other.TargetPath = next.target
	_, err = p.NodePublishVolume(t.Context(), other)
	must(t, err)
	must(t, next.stage()) // kubelet has been restarted, and asks for everything again
	_, err = p.NodePublishVolume(t.Context(), other)
	must(t, err)
	writesNothing(t, next.target)
	next.leave()
}

// TestDamagedJournal: kubelet unstages only what it could unpublish, so that one must not wait for the other to mend the entry.
func TestDamagedJournal(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, s.stage())
	must(t, s.show())
	must(t, os.WriteFile(filepath.Join(p.stages, s.id+".json"), []byte("rot"), 0o600))
	must(t, s.hide())
	must(t, s.hide())
	s.leave()
}

func writesNothing(t *testing.T, device string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return
	}
	if _, err := f.WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("wrote to a read-only device")
	}
	must(t, f.Close())
}

func TestTargets(t *testing.T) {
	root(t)
	p := start(t)
	single := p.create("one", 64, asMount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER)).publish()
	must(t, single.stage())
	must(t, single.show())
	other := single.publication()
	other.TargetPath += "2"
	_, err := p.NodePublishVolume(t.Context(), other)
	wants(t, err, codes.FailedPrecondition, single.id, single.target, "SINGLE_NODE_SINGLE_WRITER")
	if _, err := os.Lstat(other.GetTargetPath()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused target was left behind: %v", err)
	}
	single.leave()

	many := p.create("many", 64, asMount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER)).publish()
	must(t, many.stage())
	must(t, many.show())
	other = many.publication()
	other.TargetPath += "2"
	_, err = p.NodePublishVolume(t.Context(), other)
	must(t, err)
	must(t, many.hide())
	wants(t, many.unstage(), codes.FailedPrecondition, many.id, other.GetTargetPath())
	_, err = p.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: many.id, TargetPath: other.GetTargetPath()})
	must(t, err)
	many.leave()
}

func TestStagingPathThatCannotBe(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	base := t.TempDir()
	full := filepath.Join(base, "full")
	must(t, os.MkdirAll(filepath.Join(full, "something"), 0o755))
	file := filepath.Join(base, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	link := filepath.Join(base, "link")
	must(t, os.Symlink(s.staging, link))
	busy := filepath.Join(base, "busy")
	must(t, os.Mkdir(busy, 0o755))
	must(t, unix.Mount("elsewhere", busy, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(busy, 0) })
	for path, word := range map[string]string{
		file: "not a directory", full: "not empty", link: "not a directory", busy: "elsewhere", filepath.Join(base, "none"): "does not exist",
	} {
		r := s.staging1()
		r.StagingTargetPath = path
		_, err := p.NodeStageVolume(t.Context(), r)
		wants(t, err, codes.FailedPrecondition, s.id, path, word)
	}
	if v, err := p.engine.Get(t.Context(), volume.ID(s.id)); err != nil || v.Staged {
		t.Errorf("a refused stage attached the volume: %v", err)
	}
	must(t, s.unpublish()) // nothing was staged: at once
}

func TestTargetPathThatCannotBe(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	wants(t, s.show(), codes.FailedPrecondition, s.id, "not staged")
	must(t, s.stage())
	base := t.TempDir()
	full := filepath.Join(base, "full")
	must(t, os.MkdirAll(filepath.Join(full, "something"), 0o755))
	file := filepath.Join(base, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	busy := filepath.Join(base, "busy")
	must(t, os.Mkdir(busy, 0o755))
	must(t, unix.Mount("elsewhere", busy, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(busy, 0) })
	for path, word := range map[string]string{
		file: "not a directory", full: "not empty", busy: "elsewhere", filepath.Join(base, "no", "parent"): "no such file",
	} {
		r := s.publication()
		r.TargetPath = path
		_, err := p.NodePublishVolume(t.Context(), r)
		wants(t, err, codes.FailedPrecondition, s.id, path, word)
	}
	_, err := p.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: s.id, TargetPath: busy})
	wants(t, err, codes.FailedPrecondition, s.id, "elsewhere")
	r := s.publication()
	r.StagingTargetPath = base
	_, err = p.NodePublishVolume(t.Context(), r)
	wants(t, err, codes.FailedPrecondition, s.id, s.staging)
	must(t, s.show())
	s.leave()
}

// statsElsewhere asks by a path to which the device was bound by the caller, as kubelet does for raw block volumes, and by a device that is another.
func (s *stay) statsElsewhere(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "map")
	must(t, os.WriteFile(path, nil, 0o600))
	ask := func(path string) (*csi.NodeGetVolumeStatsResponse, error) {
		return s.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: path})
	}
	_, err := ask(path)
	wants(t, err, codes.NotFound, s.id, path)
	_, err = ask("/dev/null")
	wants(t, err, codes.NotFound, s.id, "/dev/null")
	must(t, unix.Mount(s.target, path, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(path, 0)) }()
	if stats, err := ask(path); err != nil || stats.GetUsage()[0].GetTotal() != 16<<20 {
		t.Errorf("stats by the device: %v, %v", stats, err)
	}
}

// TestSELinuxFlag: with seLinuxMount in the CSIDriver, kubelet mounts a volume with the label of its pod.
func TestSELinuxFlag(t *testing.T) {
	for _, flags := range [][]string{
		{`context="system_u:object_r:container_file_t:s0:c15,c25"`},
		{"noatime", `context="system_u:object_r:container_file_t:s0:c0,c1"`, "commit=5"},
		{`context=""`, "discard"},
	} {
		c, err := parseCapability(asMount("xfs", writer, flags...))
		if err != nil || !slices.Equal(c.flags, flags) {
			t.Errorf("%q: %q, %v", flags, c.flags, err)
		}
	}
}

func TestStageInAnotherWay(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, s.stage())
	for name, c := range map[string]*csi.VolumeCapability{
		"mode":  asMount("ext4", csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER),
		"flags": asMount("ext4", writer, "noatime"),
		"block": asBlock(writer),
	} {
		r := s.staging1()
		r.VolumeCapability = c
		_, err := p.NodeStageVolume(t.Context(), r)
		t.Log(name)
		wants(t, err, codes.AlreadyExists, s.id)
	}
	r := s.staging1()
	r.VolumeCapability = asMount("xfs", writer)
	_, err := p.NodeStageVolume(t.Context(), r)
	wants(t, err, codes.InvalidArgument, s.id, "ext4", "xfs")
	r = s.staging1()
	r.StagingTargetPath = t.TempDir()
	_, err = p.NodeStageVolume(t.Context(), r)
	wants(t, err, codes.FailedPrecondition, s.id, s.staging)
	r = s.staging1()
	r.PublishContext[contextEpoch] = "99"
	_, err = p.NodeStageVolume(t.Context(), r)
	wants(t, err, codes.FailedPrecondition, s.id, "99")
	must(t, s.unstage())
	must(t, s.unpublish())
}

func TestLostDevice(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, s.stage())
	must(t, s.show())
	p.engine.Kill(volume.ID(s.id))
	p.loops.lose(volume.ID(s.id))
	wants(t, s.stage(), codes.FailedPrecondition, s.id, "device lost", s.target)
	other := s.publication()
	other.TargetPath += "2"
	_, err := p.NodePublishVolume(t.Context(), other)
	wants(t, err, codes.FailedPrecondition, s.id, "device lost")
	must(t, s.hide())
	wants(t, s.stage(), codes.Aborted, s.id, "stage it again")
	must(t, s.stage())
	must(t, s.show())
	s.leave()
}

func TestExpand(t *testing.T) {
	root(t)
	p := start(t)
	for _, c := range []*csi.VolumeCapability{asMount("xfs", writer), asBlock(writer)} {
		s := p.create(strings.ToLower(strings.ReplaceAll(c.String()[:5], " ", "x")), 320, c).publish()
		must(t, s.stage())
		must(t, s.show())
		r := &csi.NodeExpandVolumeRequest{VolumeId: s.id, VolumePath: s.target, CapacityRange: &csi.CapacityRange{RequiredBytes: 640 << 20}}
		_, err := p.NodeExpandVolume(t.Context(), r)
		wants(t, err, codes.OutOfRange, s.id, "ControllerExpandVolume")
		x, err := p.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: s.id, CapacityRange: r.GetCapacityRange()})
		if err != nil || x.GetCapacityBytes() != 640<<20 || !x.GetNodeExpansionRequired() {
			t.Errorf("controller expand: %v, %v", x, err)
		}
		for range 2 {
			n, err := p.NodeExpandVolume(t.Context(), r)
			if err != nil || n.GetCapacityBytes() != 640<<20 {
				t.Errorf("node expand: %v, %v", n, err)
			}
		}
		stats, err := p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: s.target})
		if err != nil || stats.GetUsage()[0].GetTotal() < 500<<20 {
			t.Errorf("stats after expand: %v, %v", stats, err)
		}
		s.leave()
	}
}

// Where somebody took the mount away, a workload must not get the machine's own disk in its place.
func TestMountTakenAway(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	must(t, s.stage())
	must(t, s.show())
	must(t, unix.Unmount(s.target, 0))
	_, err := p.NodeGetVolumeStats(t.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: s.id, VolumePath: s.target})
	wants(t, err, codes.NotFound, s.id, s.target)
	must(t, s.show()) // the same again mends it
	must(t, s.hide())
	must(t, unix.Unmount(s.staging, unix.MNT_DETACH)) // this process keeps a descriptor
	wants(t, s.show(), codes.FailedPrecondition, s.id, s.staging, "not mounted")
	if _, err := os.Lstat(s.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("target: %v", err)
	}
	must(t, s.stage())
	must(t, s.show())
	s.leave()
}

// failing puts a program of that name before all others that fails, until the returned function is called.
func failing(t *testing.T, name string) func() {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho broken tool >&2\nexit 1\n"), 0o755))
	before := os.Getenv("PATH")
	t.Setenv("PATH", dir+":"+before)
	return func() { t.Setenv("PATH", before) }
}

func TestToolsThatFail(t *testing.T) {
	root(t)
	p := start(t)
	s := p.create("data", 64, asMount("ext4", writer)).publish()
	mend := failing(t, "mkfs.ext4")
	wants(t, s.stage(), codes.Internal, s.id, "broken tool")
	if v, err := p.engine.Get(t.Context(), volume.ID(s.id)); err != nil || v.Format.Stage != engine.Formatting {
		t.Errorf("format: %+v, %v", v.Format, err)
	}
	mend()
	mend = failing(t, "mount")
	wants(t, s.stage(), codes.Internal, s.id, "broken tool")
	mend()
	must(t, s.stage())
	mend = failing(t, "mount")
	wants(t, s.show(), codes.Internal, s.id, s.target, "broken tool")
	mend()
	if _, err := os.Lstat(s.target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a bind that failed left its target: %v", err)
	}
	if e, _, err := p.agent.Entry(volume.ID(s.id)); err != nil || len(e.Targets) > 0 {
		t.Errorf("targets: %v, %v", e.Targets, err)
	}
	must(t, s.show())
	must(t, s.hide())
	must(t, s.unstage())
	s.doubt()
	mend = failing(t, "e2fsck") // no check, no mount: damage must not be passed over
	must(t, s.unpublish())
	s.publish()
	wants(t, s.stage(), codes.Internal, s.id, "broken tool")
	mend()
	must(t, s.stage())
	must(t, s.unstage())
}
