package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pathMax is the longest path that fits a socket address; longer ones go through the open directory.
const pathMax = 107

// answerWithin is how long a listener may take to accept before it counts as one that somebody holds but does not serve.
const answerWithin = 2 * time.Second

// Listener is a unix socket that accepts connections from root and from the own user only.
type Listener struct {
	*net.UnixListener
	path   string
	own    os.FileInfo
	closed sync.Once
}

// Listen makes the socket at path, mode 0600; a missing directory is made with mode 0700. A socket that a dead
// process left behind is replaced; ErrInUse where somebody answers there, and an error where the path is something
// else than a socket or where others can write to its directory. Close removes the socket.
func Listen(path string) (*Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (*Listener, error) {
	dir, err := openDirectory(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close() // ends the lock
	// Two that start at once must not each take the other's new socket for a stale one.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock its directory: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: through(dir, path)})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return finish(l, path)
}

func finish(l *net.UnixListener, path string) (*Listener, error) {
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	own, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &Listener{UnixListener: l, path: path, own: own}, nil
}

func openDirectory(name string) (*os.File, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	dir, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		return nil, err
	}
	if info.Mode().Perm()&0o022 != 0 {
		dir.Close()
		return nil, fmt.Errorf("directory %s can be written by others (mode %v): chmod go-w it or choose another", name, info.Mode().Perm())
	}
	return dir, nil
}

// removeStale removes the socket at path where nobody answers.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%w: it is not a socket; remove it or choose another path", ErrInUse)
	}
	conn, err := dialTimeout(path)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("%w: another process answers there", ErrInUse)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return fmt.Errorf("%w: it cannot be told whether somebody listens: %w", ErrInUse, err)
}

func dialTimeout(path string) (net.Conn, error) {
	done := time.Now().Add(answerWithin)
	return dial(path, func(name string) (net.Conn, error) {
		d := net.Dialer{Deadline: done}
		return d.Dial("unix", name)
	})
}

// dial connects to path, which may be longer than a socket address holds.
func dial(path string, connect func(name string) (net.Conn, error)) (net.Conn, error) {
	if len(path) <= pathMax {
		return connect(path)
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return connect(through(dir, path))
}

// through names path by way of the open directory, whatever the length of its name.
func through(dir *os.File, path string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
}

// Path is where the socket is.
func (l *Listener) Path() string { return l.path }

// Accept returns the next connection of a trusted peer. Others are closed without an answer.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(conn); err == nil {
			return conn, nil
		}
		conn.Close()
	}
}

// Close stops listening and removes the socket, unless another has taken its place. Calling it twice is harmless.
func (l *Listener) Close() error {
	err := net.ErrClosed
	l.closed.Do(func() {
		if now, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(now, l.own) {
			_ = os.Remove(l.path) // one that is left is replaced as stale
		}
		err = l.UnixListener.Close()
	})
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// checkPeer returns ErrPeer unless the process at the other end runs as root or as this user.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	return trust(cred.Uid, os.Geteuid())
}

func trust(peer uint32, own int) error {
	if peer == 0 || int(peer) == own {
		return nil
	}
	return fmt.Errorf("%w: it runs as user %d, and only root and user %d may talk here", ErrPeer, peer, own)
}
