package device

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// IOFlusher tells the kernel that this process serves a block device: from now on, when memory is short, its
// allocations never wait for pages to be written, which might be to that very device. Servers and holders call it once
// they start. It needs CAP_SYS_RESOURCE, Linux 5.6 and a program built without cgo (EOPNOTSUPP); without it the device
// works but can lock up when memory is short.
func IOFlusher() error {
	// The kernel keeps it for each thread, and new threads inherit it.
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("declare this process an I/O flusher (needs CAP_SYS_RESOURCE and a build without cgo): %w", e)
	}
	return nil
}
