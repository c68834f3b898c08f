package device

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// apart runs f, which may wait in the kernel for a server, on a thread whose own table of descriptors has no channel. Where the process is
// killed meanwhile, and no server has a channel either, the channel is closed all the same, which ends the wait; a thread that
// shared the table would keep open what it waits for, for ever, and with it locks that every loop device of the machine needs.
//
// f must use none but raw descriptors: those that it opens are the thread's alone, and end with it.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			done <- apart(f) // the first thread's table is what others take for the process's: it waits here while another is used
			runtime.UnlockOSThread()
			return
		}
		err := leaveChannels()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// leaveChannels gives this thread a table of its own, without any channel.
func leaveChannels() error {
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("descriptors of a thread: %w", err)
	}
	links, err := filepath.Glob("/proc/thread-self/fd/*")
	if err != nil {
		return err
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != fuseDevice {
			continue // an error: of the directory that was read
		}
		if fd, err := strconv.Atoi(filepath.Base(link)); err == nil {
			_ = unix.Close(fd)
		}
	}
	return nil
}
