package device

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const patience = 30 * time.Second

// rig is one device with a server in this process.
type rig struct {
	t      testing.TB
	export Export
	path   string
	server *Server
	served chan error // what Serve returned
	guard  *time.Timer
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newRig attaches a device to b and takes it away after the test, whatever that left.
func newRig(t testing.TB, b Backend, blockSize int) *rig {
	t.Helper()
	needRoot(t)
	checkLeaks(t)
	r := &rig{t: t, export: create(t, blockSize)}
	r.serve(b, ServeOptions{BlockSize: blockSize})
	t.Cleanup(r.close)
	r.attach()
	return r
}

// create makes an export whose name is the test's.
func create(t testing.TB, blockSize int) Export {
	t.Helper()
	e, err := Create(Config{Name: t.Name(), BlockSize: blockSize, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (r *rig) attach() {
	r.t.Helper()
	path, err := r.export.Attach(soon(r.t))
	if err != nil {
		r.t.Fatal(err)
	}
	r.path = path
	// A test that hangs with a request in the kernel could not even be killed: this process is holder and guest in one.
	r.guard = time.AfterFunc(3*patience, func() { Leftover{Path: path, Volume: r.t.Name()}.Abort() })
}

func (r *rig) serve(b Backend, o ServeOptions) {
	r.t.Helper()
	o.Name = r.t.Name()
	s, err := NewServer(r.export.Channel(), b, o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.server, r.served = s, make(chan error, 1)
	go func(done chan error) { done <- s.Serve(context.Background()) }(r.served)
}

func (r *rig) close() {
	if r.guard != nil {
		r.guard.Stop()
	}
	if err := r.export.Close(soon(r.t)); err != nil {
		r.t.Errorf("close: %v", err)
		r.export.Abandon()
	}
	select {
	case err := <-r.served:
		if err != nil {
			r.t.Errorf("Serve ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Error("Serve did not end with the device")
	}
}

// checkLeaks compares open descriptors and loop devices before and after the test.
func checkLeaks(t testing.TB) {
	t.Helper()
	before := descriptors(t)
	t.Cleanup(func() {
		t.Helper()
		left, err := Leftovers()
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			if l.Of(t.Name()) {
				t.Errorf("%s is left", l.Path)
			}
		}
		if after := descriptors(t); after > before {
			t.Errorf("%d descriptors open, %d before", after, before)
		}
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range all {
		// The runtime's own: opened when first needed, never closed.
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); !strings.HasPrefix(to, "anon_inode:[event") {
			n++
		}
	}
	return n
}

// run executes a command and fails the test with its output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(soon(t), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestFilesystems(t *testing.T) {
	for _, fs := range []struct{ name, mkfs string }{
		{"ext4", "mkfs.ext4 -q -F"}, {"xfs", "mkfs.xfs -q -f"},
	} {
		for _, bs := range []int{512, 4096} {
			t.Run(fs.name, func(t *testing.T) {
				m := newMemory(t, 512<<20, 512<<20)
				r := newRig(t, m, bs)
				run(t, strings.Fields(fs.mkfs)[0], append(strings.Fields(fs.mkfs)[1:], r.path)...)
				writeAndReadBack(t, r, m)
				if n := m.misaligned.Load(); n != 0 {
					t.Errorf("%d buffers were not aligned", n)
				}
			})
		}
	}
}

func writeAndReadBack(t *testing.T, r *rig, m *memory) {
	t.Helper()
	dir := t.TempDir()
	want := bytes.Repeat([]byte("what is written is read back\n"), 1<<17)
	run(t, "mount", r.path, dir)
	t.Cleanup(func() { exec.Command("umount", dir).Run() })
	before := m.flushes.Load()
	writeSynced(t, dir+"/file", want)
	if m.flushes.Load() == before {
		t.Error("fsync did not reach the backend")
	}
	run(t, "umount", dir) // drops the page cache
	run(t, "mount", r.path, dir)
	got, err := os.ReadFile(dir + "/file")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back %d bytes of %d, err %v", len(got), len(want), err)
	}
	run(t, "umount", dir)
}

func writeSynced(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
