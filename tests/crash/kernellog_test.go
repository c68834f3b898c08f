package crash

import (
	"bytes"
	"errors"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelLog reads what the kernel says from now on.
type kernelLog struct{ fd int }

func (r *rig) readKernelLog() *kernelLog {
	r.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	r.must("open the kernel's log", err)
	r.Cleanup(func() { _ = unix.Close(fd) })
	_, err = unix.Seek(fd, 0, unix.SEEK_END)
	r.must("seek in the kernel's log", err)
	return &kernelLog{fd}
}

// warning is the least level of the kernel that is no mere notice.
const warning = 4

// clean wants no warning and no error of the device, nor of a filesystem on it.
func (k *kernelLog) clean(r *rig, device string) {
	r.Helper()
	name := regexp.MustCompile(`\b` + regexp.QuoteMeta(filepath.Base(device)) + `\b`)
	for {
		line, err := k.next()
		if err != nil {
			r.must("the kernel's log", err)
		}
		if line == "" {
			return
		}
		// priority,sequence,time,flags;text
		head, text, _ := strings.Cut(line, ";")
		priority, _ := strconv.Atoi(strings.Split(head, ",")[0])
		if priority&7 <= warning && name.MatchString(text) {
			r.Errorf("the kernel says: %s", strings.TrimSpace(text))
		}
	}
}

// next is the next record, "" where there is none yet. Those that were overwritten are skipped.
func (k *kernelLog) next() (string, error) {
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(k.fd, record)
		switch {
		case err == nil:
			line, _, _ := bytes.Cut(record[:n], []byte("\n"))
			return string(line), nil
		case errors.Is(err, unix.EPIPE):
		case errors.Is(err, unix.EAGAIN):
			return "", nil
		default:
			return "", err
		}
	}
}
