package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

const (
	blockSizeMin = 512
	blockSizeMax = 4096
)

// Errors of this package. Those that the kernel gave are wrapped too.
var (
	// ErrInUse: refused; a mount, another device or an open file still has the device. Nothing was changed.
	ErrInUse = fmt.Errorf("device in use: %w", unix.EBUSY)
	// ErrServed: refused; the device still answers, or waits for a server that its holder may start.
	ErrServed = errors.New("device is not dead")
	// ErrForeign: refused; the device is bound to something that is not ours, or not to this volume.
	ErrForeign = errors.New("device belongs to somebody else")
	// ErrUnsupported: the kernel lacks what the device needs.
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrClosed: the export was closed or abandoned.
	ErrClosed = errors.New("device export closed")
)

// Export is a block device as its holder sees it: the process that keeps it alive while servers come and go. FUSE with
// loop is the only frontend so far; others can stand behind the same interface. Calls may run concurrently.
//
// The device lives while any process has the channel open. Give the channel to the server process as well, then the
// death of either is survived: requests wait in the kernel until a server takes them. When the last process with the
// channel is gone every request fails, for ever; what remains of the device then is found by [Leftovers].
//
// A process that has the channel must not mount the device, read or write it, by itself: where it is killed in the middle,
// that thread waits in the kernel for a server, the channel stays open for as long as the thread lives, and neither
// ends. Its children may, since they do not inherit the channel. [Abort] gets out of it.
type Export interface {
	// Channel is the descriptor that a server serves on, to be passed by exec.Cmd.ExtraFiles or SCM_RIGHTS. It stays the
	// export's and is closed with it.
	Channel() *os.File
	// Attach makes the block device appear and returns its path. A server must be running, or come: the kernel asks for
	// the size. Attaching again returns the same path. Where ctx ends first the work goes on, and the next call joins it.
	Attach(ctx context.Context) (path string, err error)
	// Path is the block device's path, empty while not attached.
	Path() string
	// Resize lets the kernel see the present Backend.Size and returns what it has taken. It needs a running server.
	Resize(ctx context.Context) (int64, error)
	// Resend says whether the kernel can send a dead server's requests again. Where it cannot, they wait for ever and
	// the device must be abandoned.
	Resend() bool
	// Close takes the block device away and then the channel; the server's Serve returns nil. ErrInUse where somebody has
	// the device open: then everything stays as it is. What was written through the device's page cache is written back
	// first, so a server must be running. Closing again is no error.
	Close(ctx context.Context) error
	// Abandon gives up the holder's descriptors and nothing else. Where no server has the channel either, every request
	// fails from now on, those that wait included; the block device stays, dead, until [Remove].
	Abandon()
}

// Config is what a device shall be.
type Config struct {
	// Name is the volume's. Leftovers are recognised by it.
	Name string
	// BlockSize is the logical block size in bytes, 512 or 4096.
	BlockSize int
	// Log may be nil.
	Log *slog.Logger
}

func (c *Config) complete() error {
	c.Log = orDefault(c.Log, slog.New(slog.DiscardHandler))
	if c.Name == "" {
		return errors.New("device: want a name")
	}
	return validBlockSize(c.BlockSize)
}

func validBlockSize(n int) error {
	if n != blockSizeMin && n != blockSizeMax {
		return fmt.Errorf("device: block size %d: want %d or %d", n, blockSizeMin, blockSizeMax)
	}
	return nil
}

// Create makes a device without a server and without a path yet: see [Export.Attach]. Where the process dies nothing
// remains of it but, once attached, a dead block device.
func Create(c Config) (Export, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	e, err := createFUSE(c)
	if err != nil {
		return nil, fmt.Errorf("device of volume %s: %w", c.Name, err)
	}
	return e, nil
}

// Adopt makes this process a holder of a device that another one created and attached at path: a restarted holder gets
// the channel back from the server. The channel is the export's from now on, and closed where Adopt fails.
func Adopt(c Config, channel *os.File, path string) (Export, error) {
	e, err := adoptFUSE(c, channel, path)
	if err != nil {
		channel.Close()
		return nil, fmt.Errorf("adopt device of volume %s: %w", c.Name, err)
	}
	return e, nil
}

// Frontend is a way to show a backend to the kernel as a block device that outlives its servers. A Server speaks FUSE's; another
// frontend, such as NBD or ublk, comes with a server of its own.
type Frontend interface {
	// Create makes a device without a server and without a path yet: see [Export.Attach].
	Create(c Config) (Export, error)
	// Adopt makes this process a holder of a device that another one created and attached at path. The channel is
	// the export's from now on, and closed where Adopt fails.
	Adopt(c Config, channel *os.File, path string) (Export, error)
	// Resend says whether this kernel can send the requests of a dead server again.
	Resend() (bool, error)
}

// FUSE is the frontend of FUSE and loop, which needs no module beyond what every kernel has. WithoutResend has it behave as
// on a kernel that cannot resend (Linux before 6.9), for tests.
type FUSE struct{ WithoutResend bool }

// Create implements Frontend.
func (f FUSE) Create(c Config) (Export, error) { return f.limited(Create(c)) }

// Adopt implements Frontend.
func (f FUSE) Adopt(c Config, channel *os.File, path string) (Export, error) {
	return f.limited(Adopt(c, channel, path))
}

// Resend implements Frontend.
func (f FUSE) Resend() (bool, error) {
	can, err := ResendSupported()
	return can && !f.WithoutResend, err
}

func (f FUSE) limited(e Export, err error) (Export, error) {
	if err != nil || !f.WithoutResend {
		return e, err
	}
	return withoutResend{e}, nil
}

type withoutResend struct{ Export }

func (withoutResend) Resend() bool { return false }
