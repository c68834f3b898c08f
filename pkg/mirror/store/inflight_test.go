package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/vfs"
)

// The test binary is also the process that dies while its writes are under way.
const inflightEnv = "BELAY_TEST_INFLIGHT"

func TestMain(m *testing.M) {
	if at := os.Getenv(inflightEnv); at != "" {
		writeForever(at)
	}
	os.Exit(m.Run())
}

const inflightBlocks = 4

func inflightContent() []byte {
	p := vfs.AlignedBuffer(inflightBlocks * BlockSize)
	for i := range p {
		p[i] = 0xd1
	}
	return p
}

// writeForever gives writes to the kernel, at once, and says so. Its disk is so slow that it is killed before any ends.
func writeForever(at string) {
	d, err := OpenDir(vfs.OS(), at, installation)
	if err != nil {
		panic(err)
	}
	r, err := d.Open(testID, "the process that dies")
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(os.Getenv("BELAY_TEST_CGROUP")+"/cgroup.procs", fmt.Append(nil, os.Getpid()), 0); err != nil {
		panic(err)
	}
	t := NewTransfers()
	p := inflightContent()
	for i := range int64(inflightBlocks) {
		t.WriteBlocks(r, p[i*BlockSize:(i+1)*BlockSize], i)
	}
	t.Do(func() { fmt.Println("under way") })
	panic("the writes ended")
}

// slowDisk mounts an ext4 on a loop device, and returns it with a cgroup whose processes write to it at 16 KiB a second.
func slowDisk(t *testing.T) (path, cgroup string) {
	t.Helper()
	const controller = "/sys/fs/cgroup/blkio"
	if _, err := os.Stat(controller + "/blkio.throttle.write_bps_device"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and the blkio controller, which can slow a disk down")
	}
	if err := vfs.Uring(); err != nil {
		t.Skip("blocking calls end before their process does: ", err)
	}
	dir := t.TempDir()
	image, path := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 64<<20))
	must(t, os.Mkdir(path, 0o700))
	run(t, "mkfs.ext4", "-q", "-F", image)
	loop := run(t, "losetup", "--find", "--show", "--direct-io=on", image)
	t.Cleanup(func() { run(t, "losetup", "--detach", loop) })
	run(t, "mount", "-t", "ext4", loop, path)
	t.Cleanup(func() {
		for unix.Unmount(path, 0) != nil { // what is under way keeps it busy
			time.Sleep(10 * time.Millisecond)
		}
	})
	var st unix.Stat_t
	must(t, unix.Stat(loop, &st))
	cgroup = fmt.Sprintf("%s/belay-test-%d", controller, os.Getpid())
	must(t, os.Mkdir(cgroup, 0o700))
	t.Cleanup(func() { must(t, os.Remove(cgroup)) })
	limit := fmt.Sprintf("%d:%d 16384", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	must(t, os.WriteFile(cgroup+"/blkio.throttle.write_bps_device", []byte(limit), 0))
	return path, cgroup
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestDeadProcessStillWrites: io_uring's requests outlive the process that made them, and its lock. Nobody opens the replica before
// they have ended.
func TestDeadProcessStillWrites(t *testing.T) {
	path, cgroup := slowDisk(t)
	d, err := OpenDir(vfs.OS(), path+"/store", installation)
	must(t, err)
	before := newReplica(t, d) // what is written there once needs no allocation later, for which a process would be waited for
	must(t, before.WriteBlocks(vfs.AlignedBuffer(inflightBlocks*BlockSize), 0))
	must(t, errors.Join(before.Sync(), before.Close()))
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), inflightEnv+"="+path+"/store", "BELAY_TEST_CGROUP="+cgroup)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	_, err = out.Read(make([]byte, 1))
	must(t, errors.Join(err, child.Process.Kill()))
	_ = child.Wait() // it says that it was killed
	waited := 0
	r, err := d.Open(testID, "successor")
	for ; errors.Is(err, ErrDraining); r, err = d.Open(testID, "successor") {
		waited++
		time.Sleep(time.Millisecond)
	}
	must(t, err)
	defer r.Close()
	got := vfs.AlignedBuffer(inflightBlocks * BlockSize)
	must(t, r.ReadBlocks(got, 0))
	if string(got) != string(inflightContent()) {
		t.Fatal("writes of the dead process are still to come")
	}
	if waited == 0 {
		t.Error("the writes had ended before: the test proves nothing")
	}
}
