package crash

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// refused wants the code, and every one of the words in the message.
func (r *rig) refused(what string, err error, code codes.Code, words ...string) {
	r.Helper()
	if status.Code(err) != code {
		r.Errorf("%s: %v, want %s", what, err, code)
	}
	for _, w := range words {
		if !strings.Contains(status.Convert(err).Message(), w) {
			r.Errorf("%s: %v does not name %q", what, err, w)
		}
	}
}

// TestBadInput: what is wrong is refused by name, and leaves nothing in any store.
func TestBadInput(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	create := func(what string, s orchestrator.Spec, code codes.Code, words ...string) {
		t.Helper()
		_, err := r.Create(t.Context(), s)
		r.refused(what, err, code, words...)
	}
	good := orchestrator.Spec{Name: "good", Size: 64 * mib, FSType: "ext4"}
	with := func(change func(*orchestrator.Spec)) orchestrator.Spec { s := good; change(&s); return s }
	create("name of 129 bytes", with(func(s *orchestrator.Spec) { s.Name = strings.Repeat("n", 129) }), codes.InvalidArgument, "128")
	create("unknown parameter", with(func(s *orchestrator.Spec) { s.Parameters = map[string]string{"replica": "3"} }), codes.InvalidArgument, "good", "replica")
	create("more replicas than stores", with(func(s *orchestrator.Spec) { s.Parameters = map[string]string{"replicas": "5"} }), codes.InvalidArgument, "good", "replicas")
	create("unknown filesystem", with(func(s *orchestrator.Spec) { s.FSType = "ntfs" }), codes.InvalidArgument, "ntfs")
	create("more than the stores hold", with(func(s *orchestrator.Spec) { s.Size = 14 << 40 }), codes.ResourceExhausted, "good")
	create("more than any volume has", with(func(s *orchestrator.Spec) { s.Size = 1 << 59 }), codes.OutOfRange, "good")
	for _, id := range []string{"", "..", "../good", "a/b", "/etc/passwd", "a\x00b", strings.Repeat("i", 129)} {
		v := r.Volume(id, good)
		for name, call := range map[string]func(context.Context) error{
			"delete": v.Delete, "controller-publish": v.ControllerPublish, "stage": v.Stage, "publish": v.Publish, "unpublish": v.Unpublish,
			"unstage": v.Unstage, "controller-unpublish": v.ControllerUnpublish,
		} {
			r.refused(name+" "+id, call(t.Context()), codes.InvalidArgument)
		}
	}
	for _, s := range r.Stores {
		if left, err := filepath.Glob(filepath.Join(s, "*", "*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
	}
	// A name that is no path becomes an ID that is none either.
	v := r.create(with(func(s *orchestrator.Spec) { s.Name = "../../etc" }))
	if strings.ContainsAny(v.ID, "/.") {
		t.Errorf("ID %q", v.ID)
	}
	r.do("delete", v.Delete)
	r.settled()
}

// TestStagingPaths: a volume is staged only on an empty directory of its own, and what is in the way is left alone.
func TestStagingPaths(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	v := r.create(orchestrator.Spec{Name: "paths", Size: 64 * mib, FSType: "ext4"})
	r.do("controller-publish", v.ControllerPublish)
	good := v.Staging
	at := func(name string) string { return filepath.Join(r.Dir, "mounts", name) }
	r.must("mkdir", os.MkdirAll(at("full/kept"), 0o700))
	r.must("mkdir", os.Mkdir(at("taken"), 0o700))
	r.must("write", os.WriteFile(at("file"), []byte("kept"), 0o600))
	r.must("symlink", os.Symlink(at("full"), at("link")))
	r.must("mount", unix.Mount("tmpfs", at("taken"), "tmpfs", 0, ""))
	for name, words := range map[string][]string{
		"file": {"paths", at("file")}, "full": {"paths", at("full")}, "taken": {"paths", at("taken"), "tmpfs"}, "link": {"paths", at("link")},
	} {
		v.Staging = at(name)
		r.refused(name, v.Stage(t.Context()), codes.FailedPrecondition, words...)
	}
	v.Staging = "mounts/../relative"
	r.refused("relative", v.Stage(t.Context()), codes.InvalidArgument, "paths")
	if text, err := os.ReadFile(at("file")); err != nil || string(text) != "kept" {
		t.Errorf("the file in the way: %q %v", text, err)
	}
	if _, err := os.Stat(at("full/kept")); err != nil {
		t.Errorf("the directory in the way: %v", err)
	}
	r.must("unmount what was in the way", unix.Unmount(at("taken"), 0))
	if device, err := r.Device(v); device != "" || err != nil {
		t.Errorf("refused, and there is a device: %s %v", device, err)
	}
	v.Staging = good
	r.do("controller-unpublish", v.ControllerUnpublish)
	r.do("attach", v.Attach)
	r.do("detach", v.Detach)
	r.do("delete", v.Delete)
	r.settled()
}

// TestNeverFormatted: a volume that holds data, though no filesystem of ours, is not formatted, whatever it is staged as.
func TestNeverFormatted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	spec := orchestrator.Spec{Name: "precious", Size: 64 * mib, FSType: "ext4"}
	v := r.create(spec)
	raw := r.Volume(v.ID, orchestrator.Spec{Block: true})
	precious := bytes.Repeat([]byte("precious"), blockSize/8)
	r.do("attach as a block device", raw.Attach)
	r.must("write", writeDevice(raw.Target, precious, 1<<20))
	r.do("detach", raw.Detach)
	r.newest(v, receipt.Clean)

	r.do("controller-publish", v.ControllerPublish)
	r.refused("stage data as a filesystem", v.Stage(t.Context()), codes.FailedPrecondition, "precious", "never formatted")
	r.do("unstage", v.Unstage)
	r.do("controller-unpublish", v.ControllerUnpublish)

	r.do("attach as a block device", raw.Attach)
	have := make([]byte, blockSize)
	r.must("read", readDevice(raw.Target, have, 1<<20))
	if !bytes.Equal(have, precious) {
		t.Errorf("what was precious is %q", have[:16])
	}
	r.do("detach", raw.Detach)
	r.verify(v)
	r.do("delete", v.Delete)
	r.settled()
}

func writeDevice(path string, p []byte, off int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Sync()
}

func readDevice(path string, p []byte, off int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.ReadAt(p, off)
	return err
}
