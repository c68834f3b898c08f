package host

import (
	"context"
	"errors"
	"io"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/wire"
)

// Machine is what a host needs of the machine that it runs on. Whatever is decided is decided by the host, so that a simulated
// machine sees the same decisions as ThisMachine. Calls may run concurrently.
type Machine interface {
	// Boot identifies the running kernel.
	Boot() (string, error)
	// Self is the process that asks.
	Self() Identity
	// Files is where the state directory is.
	Files() vfs.FS
	// Network is where the sockets are.
	Network() wire.Network
	Processes
	Devices
}

// Identity names a process for ever.
type Identity struct {
	PID   int
	Start string // of the process, in ticks since boot
}

// ErrGone: no such process any more.
var ErrGone = errors.New("process is gone")

// Processes are those of a machine.
type Processes interface {
	// Open holds the program in the file, so that its replacement changes nothing.
	Open(path string) (Executable, error)
	// Start runs the program as an engine process. It has the device; in is its standard input and out its standard output.
	Start(s Start) (c Child, in io.WriteCloser, out io.Reader, err error)
	// Find returns a process that another host has started. ErrGone where it is dead, whoever has its number now.
	Find(id Identity) (Child, error)
	// End kills a process and returns when it is dead. One that is gone already is no error.
	End(ctx context.Context, id Identity) error
}

// Executable is a program that is held open. Only the Machine that has opened it can start it.
type Executable interface{ Close() error }

// Start is how an engine process is started.
type Start struct {
	Program Executable
	Device  Export
	Args    []string // its command line, for people who list processes
}

// Child is an engine process, of this host or of one before it.
type Child interface {
	ID() Identity
	// Program is what it runs. ErrGone where it is dead.
	Program() (Executable, error)
	// Kill ends it and does not wait.
	Kill()
	// Wait returns when it is dead, with how it ended where that is known: nothing of it runs any more. It is called once, and only
	// after all that it says has been read.
	Wait() error
}

// Devices are the block devices of a machine.
type Devices interface {
	// CreateDevice is device.Create.
	CreateDevice(c device.Config) (Export, error)
	// AdoptDevice makes this process a holder of the device that an engine process has, whatever that does now: it may hang or be stopped.
	AdoptDevice(c device.Config, from Child, path string) (Export, error)
	// Resend says whether the kernel can send the requests of a dead server again.
	Resend() (bool, error)
	// Leftovers returns the paths of the volume's block devices, those that serve well included.
	Leftovers(volume string) ([]string, error)
	// RemoveLeftovers takes away the volume's block devices, which nobody serves any more: see device.RemoveLeftovers.
	RemoveLeftovers(ctx context.Context, volume string) error
}

// Export is a device as its host has it: a device.Export but for its channel, which is the machine's own affair.
type Export interface {
	Attach(ctx context.Context) (path string, err error)
	Path() string
	Resize(ctx context.Context) (int64, error)
	Resend() bool
	Close(ctx context.Context) error
	Abandon()
}
