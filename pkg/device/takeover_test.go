package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Requests that come while no server runs wait for the next one.
func TestQuiesceAndResume(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	f := openDevice(t, r.path)
	defer f.Close()
	if err := r.server.Quiesce(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := <-r.served; !errors.Is(err, ErrQuiesced) {
		t.Errorf("Serve: %v", err)
	}
	written := make(chan error, 1)
	block := pattern(4096, 4)
	go func() { _, err := f.WriteAt(block, 4096); written <- err }()
	if bytes.Equal(m.bytes[4096:8192], block) {
		t.Error("served while quiesced")
	}
	r.serve(m, ServeOptions{BlockSize: 4096})
	if err := <-written; err != nil || !bytes.Equal(m.bytes[4096:8192], block) {
		t.Errorf("write: %v", err)
	}
}

// A server that took requests and will never answer them is followed by one to which the kernel sends them again.
func TestResend(t *testing.T) {
	stuck := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, stuck, 4096)
	if !r.export.Resend() {
		t.Fatal("this kernel does not resend (Linux before 6.9)")
	}
	release := stuck.hold()
	f := openDevice(t, r.path)
	defer f.Close()
	const n = 20
	written := make(chan error, n)
	for i := range int64(n) {
		go func() { _, err := f.WriteAt(pattern(4096, byte(i)), i*4096); written <- err }()
	}
	eventually(t, "the first server has them all", func() bool { return r.server.Stats().Inflight == n })
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.server.Quiesce(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("Quiesce: %v", err)
	}
	old, ended := r.server, r.served
	m := newMemory(t, 8<<20, 8<<20)
	r.serve(m, ServeOptions{BlockSize: 4096, Resend: true})
	for range n {
		if err := <-written; err != nil {
			t.Error(err)
		}
	}
	for i := range n {
		if !bytes.Equal(m.bytes[i*4096:(i+1)*4096], pattern(4096, byte(i))) {
			t.Errorf("block %d did not reach the second server", i)
		}
	}
	if s := r.server.Stats(); s.Resent != n {
		t.Errorf("%d requests resent, want %d", s.Resent, n)
	}
	release()
	<-ended
	if s := old.Stats(); s.Orphaned != n {
		t.Errorf("%d replies of the first server ignored, want %d", s.Orphaned, n)
	}
}

// TestServerKilled kills the server's process in the middle of verified writes on a mounted file system and starts
// another. The guest must see a pause and nothing else.
func TestServerKilled(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	const kills = 6
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	e := create(t, 4096)
	server := startRole(t, "server", e.Channel(), "IMAGE="+image)
	start(t, server)
	t.Cleanup(func() {
		if err := e.Close(soon(t)); err != nil {
			t.Error(err)
			e.Abandon()
		}
	})
	path, err := e.Attach(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, "mkfs.ext4", "-q", "-F", path)
	run(t, "mount", path, dir)
	t.Cleanup(func() { exec.Command("umount", dir).Run() })

	load := startLoad(t, dir)
	for range kills {
		time.Sleep(time.Duration(200+rand.IntN(400)) * time.Millisecond) // at a random instant, by intent
		kill(server)
		server = startRole(t, "server", e.Channel(), "IMAGE="+image, "RESEND=1")
		start(t, server)
	}
	load.wait(t)
	run(t, "umount", dir)
	run(t, "e2fsck", "-fn", path)
	if err := e.Close(soon(t)); err != nil {
		t.Error(err)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("the server did not end well with its device: %v", err)
	}
}

func start(t *testing.T, c *exec.Cmd) {
	t.Helper()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
}

// load is fio writing and verifying, with and without the page cache.
type load struct {
	fio []*exec.Cmd
	out []*bytes.Buffer
}

func startLoad(t *testing.T, dir string) *load {
	t.Helper()
	common := []string{"--directory=" + dir, "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--randrepeat=0",
		"--time_based", "--runtime=5", "--size=48M"}
	l := &load{}
	for _, own := range []string{
		"--name=direct --rw=randwrite --bsrange=4k-256k --blockalign=4k --ioengine=libaio --iodepth=16 --direct=1",
		"--name=cached --rw=randrw --bs=4k --ioengine=psync --fsync=8",
		"--name=pause --rw=randwrite --bs=4k --ioengine=psync --direct=1 --sync=dsync --thinktime=1000",
	} {
		c, out := exec.Command("fio", append(strings.Fields(own), common...)...), new(bytes.Buffer)
		c.Dir = t.TempDir() // where it keeps its verify state
		c.Stdout, c.Stderr = out, out
		t.Cleanup(func() { kill(c) })
		start(t, c)
		l.fio, l.out = append(l.fio, c), append(l.out, out)
	}
	return l
}

func (l *load) wait(t *testing.T) {
	t.Helper()
	for i, c := range l.fio {
		if err := c.Wait(); err != nil {
			t.Errorf("fio: %v\n%s", err, l.out[i])
		}
	}
	t.Logf("times of single synchronous writes:\n%s", l.out[len(l.out)-1])
}

// A holder that starts anew gets the channel back from the server and goes on as if it had created the device.
func TestAdopt(t *testing.T) {
	m := newMemory(t, 8<<20, 16<<20)
	r := newRig(t, m, 4096)
	fd, err := dup(r.export.Channel())
	if err != nil {
		t.Fatal(err)
	}
	first := r.export
	adopted, err := Adopt(Config{Name: t.Name(), BlockSize: 4096}, os.NewFile(uintptr(fd), "channel"), r.path)
	if err != nil {
		t.Fatal(err)
	}
	first.Abandon()
	r.export = adopted // the rig closes this one
	if adopted.Path() != r.path || adopted.Resend() != first.Resend() {
		t.Errorf("adopted %q, resend %v", adopted.Path(), adopted.Resend())
	}
	m.size.Store(16 << 20)
	if n, err := adopted.Resize(soon(t)); err != nil || n != 16<<20 {
		t.Errorf("Resize: %d, %v", n, err)
	}
	fd, err = dup(adopted.Channel())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Adopt(Config{Name: "another", BlockSize: 4096}, os.NewFile(uintptr(fd), "channel"), r.path); !errors.Is(err, ErrForeign) {
		t.Errorf("adopted another volume's device: %v", err)
	}
}

func TestProbe(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	if h := Probe(soon(t), r.path); h != Answers {
		t.Errorf("served: %s", h)
	}
	if err := r.server.Quiesce(soon(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		if h := Probe(ctx, r.path); h != Waits {
			t.Errorf("without a server: %s", h)
		}
		if err := Remove(ctx, r.path); !errors.Is(err, ErrServed) {
			t.Errorf("removed under its holder: %v", err)
		}
		cancel()
	}
	left, err := Leftovers() // must not wait for a server
	if err != nil || !listed(left, r.path, t.Name()) {
		t.Errorf("leftovers %+v, %v", left, err)
	}
	r.serve(m, ServeOptions{BlockSize: 4096})
	if !Alive(soon(t), r.path) {
		t.Error("dead with a new server")
	}
}

func listed(all []Leftover, path, volume string) bool {
	for _, l := range all {
		if l.Path == path {
			return l.Of(volume) && !l.Of("another")
		}
	}
	return false
}

// When holder and server die together, what remains is found by its name, refuses to go while mounted, and goes.
func TestLeftover(t *testing.T) {
	needRoot(t)
	name := strings.Repeat("a-volume-with-a-long-name-", 3) + "x" // longer than the kernel keeps
	checkLeaks(t)
	holder, path := startHolder(t, name)
	run(t, "mkfs.ext4", "-q", "-F", path)
	dir := t.TempDir()
	run(t, "mount", path, dir)
	t.Cleanup(func() { exec.Command("umount", dir).Run(); Remove(soon(t), path) })
	if err := Remove(soon(t), path); !errors.Is(err, ErrServed) {
		t.Errorf("removed while it was served: %v", err)
	}
	kill(holder)
	left, err := Leftovers()
	if err != nil || !listed(left, path, name) {
		t.Errorf("leftovers %+v, %v", left, err)
	}
	if h := Probe(soon(t), path); h != Dead {
		t.Errorf("after the death of its holder: %s", h)
	}
	own := Leftover{Path: path, Volume: strings.TrimPrefix(backingName(name), backingPrefix)}
	another := Leftover{Path: path, Volume: "another"}
	if err := another.Remove(soon(t)); !errors.Is(err, ErrForeign) {
		t.Errorf("removed as another volume's: %v", err)
	}
	if err := another.Abort(); !errors.Is(err, ErrForeign) {
		t.Errorf("aborted as another volume's: %v", err)
	}
	if err := Remove(soon(t), path); !errors.Is(err, ErrInUse) {
		t.Errorf("removed while mounted: %v", err)
	}
	run(t, "umount", dir)
	for range 2 {
		if err := own.Remove(soon(t)); err != nil {
			t.Error(err)
		}
	}
	if left, err = Leftovers(); err != nil || listed(left, path, name) {
		t.Errorf("still there: %+v, %v", left, err)
	}
}

// Abort frees those that wait for a server nobody starts, though the channel is open.
func TestAbort(t *testing.T) {
	m := newMemory(t, 8<<20, 8<<20)
	r := newRig(t, m, 4096)
	if err := r.server.Quiesce(soon(t)); err != nil {
		t.Fatal(err)
	}
	f := openDevice(t, r.path)
	read := make(chan error, 1)
	go func() { _, err := f.ReadAt(aligned(4096), 0); read <- err }()
	if err := Abort(r.path); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, unix.EIO) {
		t.Errorf("the read that waited: %v", err)
	}
	f.Close()
	r.serve(m, ServeOptions{})
	r.served <- <-r.served // it ends at once, which the rig's close wants to hear of; that must not close the channel before it was opened
	if h := Probe(soon(t), r.path); h != Dead {
		t.Errorf("after the abort: %s", h)
	}
	for range 2 {
		if err := Abort(r.path); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}

func TestIOFlusher(t *testing.T) {
	err := IOFlusher()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return // without the capability, or with cgo, which the race detector brings
	}
	on, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0, 0)
	if err != nil || e != 0 || on != 1 {
		t.Errorf("%v; the kernel says %d, %v", err, on, e)
	}
}

// Loop devices of others are not ours to touch.
func TestForeign(t *testing.T) {
	needRoot(t)
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 1<<20)); err != nil {
		t.Fatal(err)
	}
	path := run(t, "losetup", "-f", "--show", image)
	t.Cleanup(func() { exec.Command("losetup", "-d", path).Run() })
	if err := Remove(soon(t), path); !errors.Is(err, ErrForeign) {
		t.Errorf("Remove: %v", err)
	}
	left, err := Leftovers()
	if err != nil || listed(left, path, "image") {
		t.Errorf("leftovers %+v, %v", left, err)
	}
	if _, err := os.Stat("/sys/block/" + strings.TrimPrefix(path, "/dev/") + "/loop/backing_file"); err != nil {
		t.Error(err)
	}
}

func TestResendSupported(t *testing.T) {
	needRoot(t)
	checkLeaks(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	ok, err := ResendSupported()
	t.Logf("kernel %s: resend %v", unix.ByteSliceToString(u.Release[:]), ok)
	if err != nil {
		t.Error(err)
	}
}

func TestBackingName(t *testing.T) {
	long := strings.Repeat("v", 63)
	for _, n := range []string{"v", "vol-0", long, long[:62] + "w", strings.Repeat("v", 57)} {
		if got := backingName(n); len(got) > backingMax || !strings.HasPrefix(got, backingPrefix) {
			t.Errorf("%q becomes %q of %d bytes", n, got, len(got))
		}
	}
	if backingName(long) == backingName(long[:62]+"w") {
		t.Error("two long names are the same")
	}
}

// A process that is killed while it waits in the kernel for a server that dies with it must die: what it waits for would keep locks of the
// kernel, and no loop device of the machine could be opened any more.
func TestHolderKilledWhileItAttaches(t *testing.T) {
	needRoot(t)
	for range 3 {
		name := fmt.Sprint("waiting-", rand.Uint64())
		c := startRole(t, "waiting holder", nil, "NAME="+name)
		out, err := c.StdoutPipe()
		if err == nil {
			err = c.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var connection uint32
		var word string
		if _, err := fmt.Fscan(out, &connection, &word); err != nil || word != "waiting" {
			t.Fatalf("%q: %v", word, err)
		}
		_ = c.Process.Kill()
		dead := make(chan error, 1)
		go func() { dead <- c.Wait() }()
		select {
		case <-dead:
		case <-time.After(patience):
			t.Error("a killed process waits for itself")
			if err := abortConnection(connection); err != nil {
				t.Error(err)
			}
		}
		if err := RemoveLeftovers(soon(t), name); err != nil {
			t.Error(err)
		}
	}
}
