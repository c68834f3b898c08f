package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxBackground is how many requests the kernel lets be unanswered: four times the depth of a loop device's queue.
const maxBackground = 512

const fuseDevice = "/dev/fuse"

// initWithin bounds the wait for INIT, which the kernel sends while it makes the superblock.
const initWithin = 10 * time.Second

// fuseExport is a FUSE file system that consists of one regular file, its root, and a loop device on that file. It is
// mounted nowhere: the loop device alone keeps it, so no path leads to it and nobody can unmount it.
type fuseExport struct {
	c       Config
	channel *os.File
	resend  bool

	mu        sync.Mutex
	root      int // the detached mount until it is attached, then -1
	path      string
	attaching *job // nil while none runs
	closing   *job // the same
	closed    bool
}

// job is work that waits for a server and so cannot be interrupted. Callers wait for it as long as they like and join it
// when they call again. err is set when done is closed.
type job struct {
	what string
	done chan struct{}
	err  error
}

func (e *fuseExport) wait(ctx context.Context, j *job) error {
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return fmt.Errorf("device of volume %s: %s waits for a server: %w", e.c.Name, j.what, context.Cause(ctx))
	}
}

func createFUSE(c Config) (*fuseExport, error) {
	channel, root, err := mountDetached()
	if err != nil {
		return nil, err
	}
	k, err := answerInit(channel)
	if err != nil {
		channel.Close()
		unix.Close(root)
		return nil, err
	}
	warnOfTimeout(c)
	return &fuseExport{c: c, channel: channel, root: root, resend: k.flags2&init2HasResend != 0}, nil
}

func adoptFUSE(c Config, channel *os.File, path string) (*fuseExport, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if err := ownedBy(path, c.Name); err != nil {
		return nil, err
	}
	resend, err := ResendSupported()
	if err != nil {
		return nil, err
	}
	return &fuseExport{c: c, channel: channel, root: -1, resend: resend, path: path}, nil
}

// mountDetached returns the channel and the mount of a new superblock.
func mountDetached() (channel *os.File, root int, err error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("open /dev/fuse (is the module fuse loaded?): %w: %w", ErrUnsupported, err)
	}
	// Wrapped while it blocks, so that File.Fd never changes the mode, which all processes with the channel share.
	channel = os.NewFile(uintptr(fd), fuseDevice)
	if root, err = newMount(fd); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		channel.Close()
		return nil, -1, err
	}
	return channel, root, nil
}

func newMount(fd int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fuse (needs Linux 5.2): %w: %w", ErrUnsupported, err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{{"source", "belay"}, {"subtype", "belay"}, {"fd", strconv.Itoa(fd)},
		{"rootmode", "0100600"}, {"user_id", "0"}, {"group_id", "0"}, {"max_read", strconv.Itoa(maxWrite)}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, fmt.Errorf("fuse option %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make fuse superblock: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return root, nil
}

// answerInit negotiates in the servers' place, since a server comes and goes and INIT is sent once.
func answerInit(channel *os.File) (kernelInit, error) {
	fd := int(channel.Fd())
	b := make([]byte, maxWrite+headroom)
	n, err := readWithin(fd, b, initWithin)
	if err != nil {
		return kernelInit{}, fmt.Errorf("read INIT: %w", err)
	}
	k, err := decodeInit(b[:n])
	if err != nil {
		return kernelInit{}, err
	}
	if k.major != 7 || k.minor < 31 || k.flags&(initMaxPages|initAsyncDIO) != initMaxPages|initAsyncDIO {
		return kernelInit{}, fmt.Errorf("fuse %d.%d with flags %#x: %w", k.major, k.minor, k.flags, ErrUnsupported)
	}
	if _, err := unix.Write(fd, putInitReply(b, k)); err != nil {
		return kernelInit{}, fmt.Errorf("answer INIT: %w", err)
	}
	return k, nil
}

func readWithin(fd int, b []byte, d time.Duration) (int, error) {
	for end := time.Now().Add(d); ; {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return n, err
		}
		left := time.Until(end)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1) // read again in any case
	}
}

// warnOfTimeout tells of a setting under which the kernel aborts a device whose server is away for too long.
func warnOfTimeout(c Config) {
	const setting = "/proc/sys/fs/fuse/default_request_timeout"
	b, err := os.ReadFile(setting)
	if s := strings.TrimSpace(string(b)); err == nil && s != "0" {
		c.Log.Warn("the kernel fails the device when a request takes too long", "volume", c.Name, "setting", setting, "seconds", s)
	}
}

// ResendSupported asks the kernel whether it can send the requests of a dead server again (Linux 6.9 and later). Needs root.
func ResendSupported() (bool, error) {
	e, err := createFUSE(Config{Name: "probe", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return false, err
	}
	e.Abandon()
	return e.resend, nil
}

func (e *fuseExport) Channel() *os.File { return e.channel }

func (e *fuseExport) Resend() bool { return e.resend }

func (e *fuseExport) Path() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.path
}

func (e *fuseExport) Attach(ctx context.Context) (string, error) {
	j, err := e.startAttach()
	if err != nil {
		return "", err
	}
	if j != nil {
		err = e.wait(ctx, j)
	}
	return e.Path(), err
}

// startAttach returns the running job, or nil where the device is attached.
func (e *fuseExport) startAttach() (*job, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.closing != nil {
		return nil, fmt.Errorf("device of volume %s: %w", e.c.Name, ErrClosed)
	}
	if e.path != "" || e.attaching != nil {
		return e.attaching, nil
	}
	// A descriptor of its own: the job may outlast Abandon, and the number would then be another file's.
	root, err := unix.FcntlInt(uintptr(e.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("device of volume %s: attach: %w", e.c.Name, err)
	}
	e.attaching = &job{what: "attach", done: make(chan struct{})}
	go e.attach(e.attaching, root)
	return e.attaching, nil
}

func (e *fuseExport) attach(j *job, root int) {
	var path string
	err := apart(func() (err error) { path, err = attachLoop(root, e.c); return err })
	unix.Close(root)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.attaching = nil
	if err != nil {
		j.err = fmt.Errorf("device of volume %s: attach: %w", e.c.Name, err)
	} else {
		e.path = path
		e.closeRoot() // from here on the loop device keeps the superblock
	}
	close(j.done)
}

// attachLoop opens the file at root and puts a loop device on it.
func attachLoop(root int, c Config) (string, error) {
	fd, err := unix.Open("/proc/thread-self/fd/"+strconv.Itoa(root), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open file: %w", err)
	}
	defer unix.Close(fd)
	// Kernels before 6.16 take the size that they know, which is 0 until they have asked for it.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("ask for the size: %w", err)
	}
	if st.Size <= 0 || st.Size%int64(c.BlockSize) != 0 {
		return "", fmt.Errorf("size of %d bytes is not in blocks of %d: %w", st.Size, c.BlockSize, unix.EINVAL)
	}
	return bindLoop(fd, c)
}

func (e *fuseExport) Resize(ctx context.Context) (int64, error) {
	path := e.Path()
	if path == "" {
		return 0, fmt.Errorf("device of volume %s: resize: not attached", e.c.Name)
	}
	var size int64
	j := &job{what: "resize", done: make(chan struct{})}
	go func() {
		defer close(j.done)
		if size, j.err = e.resize(path); j.err != nil {
			j.err = fmt.Errorf("device of volume %s: resize: %w", e.c.Name, j.err)
		}
	}()
	if err := e.wait(ctx, j); err != nil {
		return 0, err
	}
	return size, nil
}

func (e *fuseExport) resize(path string) (int64, error) {
	if err := e.forgetAttributes(); err != nil {
		return 0, err
	}
	var size int64
	err := apart(func() (err error) { size, err = refreshCapacity(path, e.c.Name); return err })
	return size, err
}

// forgetAttributes has the kernel ask for the file's size when it next needs it.
func (e *fuseExport) forgetAttributes() error {
	var m [outHeaderSize + 24]byte
	msg := putHeader(m[:], 0, notifyInvalInode, 24)
	order.PutUint64(msg[outHeaderSize:], rootInode)
	order.PutUint64(msg[outHeaderSize+8:], ^uint64(0)) // offset -1: attributes only
	conn, err := e.channel.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) { _, failed = unix.Write(int(fd), msg) })
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("invalidate attributes: %w", err)
	}
	return nil
}

func (e *fuseExport) Close(ctx context.Context) error {
	j, err := e.startClose()
	if j == nil || err != nil {
		return err
	}
	return e.wait(ctx, j)
}

// startClose returns the running job, or nil where the export is closed.
func (e *fuseExport) startClose() (*job, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, nil
	}
	if e.attaching != nil {
		return nil, fmt.Errorf("device of volume %s: close: an attach still waits for a server: %w", e.c.Name, ErrInUse)
	}
	if e.closing == nil {
		e.closing = &job{what: "close", done: make(chan struct{})}
		go e.close(e.closing, e.path)
	}
	return e.closing, nil
}

func (e *fuseExport) close(j *job, path string) {
	var err error
	if path != "" {
		err = apart(func() error { return unbindLoop(context.Background(), path, e.c.Name) })
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closing = nil
	if err != nil {
		j.err = fmt.Errorf("device of volume %s: close: %w", e.c.Name, err)
	} else {
		e.release()
	}
	close(j.done)
}

func (e *fuseExport) Abandon() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.release()
}

// release closes what keeps the superblock: with the mount gone the kernel ends the connection, and servers with it.
func (e *fuseExport) release() {
	e.closed = true
	e.closeRoot()
	_ = e.channel.Close() // fails only where it was closed before
}

func (e *fuseExport) closeRoot() {
	if e.root >= 0 {
		unix.Close(e.root)
	}
	e.root = -1
}
