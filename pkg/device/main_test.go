package device

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the processes that tests kill: TestMain runs it as what this variable says.
const roleVariable = "BELAY_DEVICE_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "server":
		err = serverProcess(os.Getenv("IMAGE"), os.Getenv("RESEND") != "")
	case "holder":
		err = holderProcess(os.Getenv("NAME"))
	case "waiting holder":
		err = waitingHolderProcess(os.Getenv("NAME"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serverProcess serves an image on descriptor 3.
func serverProcess(image string, resend bool) error {
	b, err := openFile(image)
	if err != nil {
		return err
	}
	return Serve(context.Background(), os.NewFile(3, "channel"), b, ServeOptions{BlockSize: 4096, Resend: resend})
}

// holderProcess is holder and server in one. It prints the device's path and waits to be killed.
func holderProcess(name string) error {
	e, err := Create(Config{Name: name, BlockSize: 4096})
	if err != nil {
		return err
	}
	b := &memory{bytes: make([]byte, 64<<20)}
	b.size.Store(int64(len(b.bytes)))
	served := make(chan error, 1)
	go func() { served <- Serve(context.Background(), e.Channel(), b, ServeOptions{BlockSize: 4096}) }()
	path, err := e.Attach(context.Background())
	if err != nil {
		return err
	}
	fmt.Println(path)
	return <-served
}

// waitingHolderProcess makes a device and waits in the kernel, in the middle of it, for a server that has taken its request. It prints
// the number of the connection first.
func waitingHolderProcess(name string) error {
	e, err := createFUSE(Config{Name: name, BlockSize: 4096, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	b := &deaf{memory: memory{bytes: make([]byte, 64<<20)}}
	b.size.Store(int64(len(b.bytes)))
	go func() { _ = Serve(context.Background(), e.Channel(), b, ServeOptions{BlockSize: 4096}) }()
	var st unix.Stat_t
	if err := unix.Fstat(e.root, &st); err != nil {
		return err
	}
	fmt.Println(unix.Minor(st.Dev))
	_, err = e.Attach(context.Background())
	return err
}

// deaf never answers a flush, and says so.
type deaf struct{ memory }

func (d *deaf) Flush() error {
	fmt.Println("waiting")
	select {}
}

// startRole starts the test binary in a role. It is killed at the end of the test at the latest.
func startRole(t *testing.T, role string, channel *os.File, env ...string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	c.Stderr = os.Stderr
	if channel != nil {
		c.ExtraFiles = []*os.File{channel}
	}
	t.Cleanup(func() { kill(c) })
	return c
}

// kill ends the process for certain. Killing it again is harmless.
func kill(c *exec.Cmd) {
	if c.Process != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

// startHolder returns the process and its device.
func startHolder(t *testing.T, name string) (*exec.Cmd, string) {
	t.Helper()
	c := startRole(t, "holder", nil, "NAME="+name)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	path, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return c, path[:len(path)-1]
}

// eventually waits for something that another process or the kernel does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen in %v: %s", patience, what)
		}
	}
}
