package vfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestWithoutUring runs itself in a process that may not use io_uring, as in many containers.
func TestWithoutUring(t *testing.T) {
	const child = "BELAY_VFS_TEST_FILE"
	if name := os.Getenv(child); name != "" {
		forbid(t, unix.SYS_IO_URING_SETUP)
		transferBlocking(t, name)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestWithoutUring$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+filepath.Join(t.TempDir(), "f"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func transferBlocking(t *testing.T, name string) {
	if err := Uring(); !errors.Is(err, syscall.EPERM) {
		t.Fatalf("Uring returns %v", err)
	}
	f, err := OS().Open(name, Create|Direct)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, f.(*osFile), 1<<20, 65536)
	ts := []Transfer{{File: f, Write: true, P: AlignedBuffer(4096)}, {File: f, P: AlignedBuffer(4096)}}
	Do(ts, nil)
	if err := errors.Join(ts[0].Err, ts[1].Err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// forbid makes a system call fail with EPERM in all threads of this process from now on.
func forbid(t *testing.T, call uint32) {
	const setModeFilter, allThreads = 1, 1 // of seccomp(2)
	const returnAllow, returnErrno = 0x7fff0000, 0x00050000
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: returnErrno | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: returnAllow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	// Without root a filter is allowed only to those who give up gaining privileges; the filter spreads that to the other threads.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, allThreads, uintptr(unsafe.Pointer(&program))); errno != 0 {
		t.Fatal(errno)
	}
}
