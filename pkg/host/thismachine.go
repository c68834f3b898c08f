package host

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/wire"
)

// ThisMachine is the machine on which this process runs, with the frontend's devices.
func ThisMachine(f device.Frontend) Machine { return thisMachine{f} }

type thisMachine struct{ device.Frontend }

func (thisMachine) Boot() (string, error) { return BootID() }
func (thisMachine) Files() vfs.FS         { return vfs.OSBlocking() } // the state is a few small files: io_uring would only cost memory
func (thisMachine) Network() wire.Network { return wire.Unix{} }

func (thisMachine) Self() Identity {
	pid := os.Getpid()
	return Identity{pid, StartOf(pid)}
}

func (thisMachine) Open(path string) (Executable, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // and not an Executable that is a nil *os.File
	}
	return f, nil
}

func (thisMachine) Start(s Start) (Child, io.WriteCloser, io.Reader, error) {
	program := s.Program.(*os.File)
	cmd := exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd())) // of this process: the child's numbers differ
	cmd.Args = s.Args
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{s.Device.(device.Export).Channel()}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to the host's group is not for it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, nil, err
	}
	c := &child{id: Identity{cmd.Process.Pid, StartOf(cmd.Process.Pid)}, wait: cmd.Wait}
	if c.pidfd, err = openPid(c.id); err != nil {
		cmd.Process.Kill() //nolint:errcheck // it may be dead already
		go cmd.Wait()      //nolint:errcheck // nobody needs to know
		return nil, nil, nil, err
	}
	return c, in, out, nil
}

func (thisMachine) Find(id Identity) (Child, error) {
	pidfd, err := openPid(id)
	if err != nil {
		return nil, err
	}
	return &child{id: id, pidfd: pidfd, wait: func() error { return waitDead(context.Background(), int(pidfd.Fd())) }}, nil
}

func (thisMachine) End(ctx context.Context, id Identity) error { return End(ctx, id.PID, id.Start) }

// child is a process of this machine.
type child struct {
	id    Identity
	pidfd *os.File // closed by nobody: its number must not become another process's while it may be killed
	wait  func() error
}

func (c *child) ID() Identity { return c.id }
func (c *child) Wait() error  { return c.wait() }
func (c *child) Kill()        { unix.PidfdSendSignal(int(c.pidfd.Fd()), unix.SIGKILL, nil, 0) } //nolint:errcheck // it may be dead already

func (c *child) Program() (Executable, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", c.id.PID))
	if err != nil {
		return nil, ErrGone // a zombie has none
	}
	return f, nil
}

func (m thisMachine) CreateDevice(c device.Config) (Export, error) { return exported(m.Create(c)) }

func (m thisMachine) AdoptDevice(c device.Config, from Child, path string) (Export, error) {
	channel, err := takeDescriptor(from.(*child).pidfd, channelFD)
	if err != nil {
		return nil, err
	}
	return exported(m.Adopt(c, channel, path))
}

func exported(e device.Export, err error) (Export, error) {
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (thisMachine) Leftovers(volume string) (paths []string, err error) {
	all, err := device.LeftoversOf(volume)
	for _, l := range all {
		paths = append(paths, l.Path)
	}
	return paths, err
}

func (thisMachine) RemoveLeftovers(ctx context.Context, volume string) error {
	return device.RemoveLeftovers(ctx, volume)
}

// channelFD is the descriptor on which an engine process has its device.
const channelFD = 3

// takeDescriptor duplicates a descriptor of another process, whatever that does meanwhile: it may hang or be stopped.
func takeDescriptor(process *os.File, descriptor int) (*os.File, error) {
	fd, err := unix.PidfdGetfd(int(process.Fd()), descriptor, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of another process: %w", descriptor, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "device"), nil
}

// BootID identifies the running kernel.
func BootID() (string, error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text)), err
}
