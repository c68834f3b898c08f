// Package orchestrator acts as kubelet and the CSI sidecars towards a real `belay serve` that it starts, kills and looks after, with the host
// and the engines that belong to it.
//
// It is what tests of the whole system stand on. A Machine is used by one goroutine, its volumes' calls by several.
package orchestrator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// NodeID is the node of every machine.
const NodeID = "node-1"

const (
	startWithin = 30 * time.Second
	stopWithin  = 60 * time.Second
)

// Machine is a machine with stores and a server, in a directory of its own.
type Machine struct {
	Dir    string
	Binary string   // a copy of the binary; processes of programs below Dir are this machine's
	Stores []string // directories below Dir unless given
	Args   []string // further arguments of `belay serve`

	server     *exec.Cmd
	log        *os.File
	conn       *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	volumes    []*Volume
}

// New makes a machine with n empty stores below a new directory in where, and starts nothing.
func New(binary, where string, n int) (*Machine, error) {
	dir, err := os.MkdirTemp(where, "belay-")
	if err != nil {
		return nil, err
	}
	m := &Machine{Dir: dir, Binary: filepath.Join(dir, "belay")}
	if err := CopyProgram(m.Binary, binary); err != nil {
		return nil, err
	}
	for i := range n {
		m.Stores = append(m.Stores, filepath.Join(dir, fmt.Sprintf("disk-%d", i)))
		if err := os.Mkdir(m.Stores[i], 0o700); err != nil {
			return nil, err
		}
	}
	m.log, err = os.Create(filepath.Join(dir, "serve.log"))
	return m, err
}

// CopyProgram copies a program. It leaves the copying to another process: a file that this one has open for writing is open in every child that is
// started at that moment, too, and cannot be run.
func CopyProgram(to, from string) error {
	if out, err := exec.Command("cp", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the program: %w: %s", err, out)
	}
	return nil
}

// State is the server's state directory.
func (m *Machine) State() string { return filepath.Join(m.Dir, "state") }

func (m *Machine) socket(name string) string { return filepath.Join(m.Dir, "run", name+".sock") }

// Arguments are those of `belay serve` on this machine.
func (m *Machine) Arguments() []string {
	args := []string{
		"serve", "--endpoint", "unix://" + m.socket("csi"), "--admin-socket", m.socket("admin"),
		"--nodeid", NodeID, "--state", m.State(), "-v", "1",
	}
	for _, s := range m.Stores {
		args = append(args, "--store", s)
	}
	return append(args, m.Args...)
}

// Start runs `belay serve` and returns when it answers.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.Launch(); err != nil {
		return err
	}
	if err := m.connect(); err != nil {
		return err
	}
	return m.awaitReady(ctx)
}

// Launch runs `belay serve` and does not wait until it answers.
func (m *Machine) Launch() error {
	server := exec.Command(m.Binary, m.Arguments()...)
	server.Stdout, server.Stderr = m.log, m.log
	server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := server.Start()
	if err == nil {
		m.server = server
	}
	return err
}

// connect begins anew: a connection that remembers the last server's death would wait before it tries again.
func (m *Machine) connect() (err error) {
	m.hangUp()
	m.conn, err = grpc.NewClient("unix://"+m.socket("csi"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	m.identity, m.controller, m.node = csi.NewIdentityClient(m.conn), csi.NewControllerClient(m.conn), csi.NewNodeClient(m.conn)
	return nil
}

func (m *Machine) hangUp() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// awaitReady waits for the socket first, since a connection that fails waits a second before it tries again.
func (m *Machine) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	err := Until(ctx, "the server's socket", m.answers)
	if err == nil {
		_, err = m.identity.Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
	}
	if err != nil {
		return fmt.Errorf("the server does not answer: %w; its log ends with:\n%s", err, m.LogEnd())
	}
	return nil
}

// answers says whether somebody accepts connections, and fails where the server has ended.
func (m *Machine) answers() (bool, error) {
	c, err := net.Dial("unix", m.socket("csi"))
	if err == nil {
		return true, c.Close()
	}
	if zombie(fmt.Sprintf("/proc/%d/exe", m.PID())) {
		return false, errors.New("it has ended")
	}
	return false, nil
}

// PID is the server's process, 0 where none was started.
func (m *Machine) PID() int {
	if m.server == nil {
		return 0
	}
	return m.server.Process.Pid
}

// Kill is SIGKILL to the server alone: no goodbye. It returns when it is dead. Its host and engines live on.
func (m *Machine) Kill() error {
	if m.server == nil {
		return nil
	}
	if err := m.server.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = m.server.Wait() // it was killed, as that says
	m.server = nil
	return nil
}

// Stop is SIGTERM: in order. It returns how the server ended.
func (m *Machine) Stop() error {
	if m.server == nil {
		return nil
	}
	server := m.server
	m.server = nil
	if err := server.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(stopWithin, func() { _ = server.Process.Kill() })
	defer late.Stop()
	return server.Wait()
}

// LogEnd is the end of the server's log.
func (m *Machine) LogEnd() string {
	text, err := os.ReadFile(m.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}

// Answer is how the program answered a command line.
type Answer struct {
	Stdout, Stderr string
	Code           int
}

// Run runs the program to its end.
func (m *Machine) Run(ctx context.Context, args ...string) (Answer, error) {
	cmd := exec.CommandContext(ctx, m.Binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		err = nil
	}
	a := Answer{Stdout: stdout.String(), Stderr: stderr.String(), Code: -1}
	if cmd.ProcessState != nil {
		a.Code = cmd.ProcessState.ExitCode()
	}
	return a, errors.Join(err, ctx.Err())
}

// Ask runs a verb against the server.
func (m *Machine) Ask(ctx context.Context, verb string, args ...string) (Answer, error) {
	return m.Run(ctx, append([]string{verb, "--socket", m.socket("admin")}, args...)...)
}

// AskJSON decodes what the verb prints with -o json, and wants the exit code 0.
func (m *Machine) AskJSON(ctx context.Context, into any, verb string, args ...string) error {
	a, err := m.Ask(ctx, verb, append([]string{"-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	if a.Code != 0 {
		return fmt.Errorf("belay %s %v: exit code %d: %s%s", verb, args, a.Code, a.Stderr, a.Stdout)
	}
	return json.Unmarshal([]byte(a.Stdout), into)
}

// Until asks again until done says so, or ctx ends.
func Until(ctx context.Context, what string, done func() (bool, error)) error {
	const pause = 10 * time.Millisecond
	for {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(pause):
		}
	}
}
