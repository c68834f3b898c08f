package mount

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// tool is a program that may take long and say much.
type tool struct {
	command []string
	step    string // what a line begins with that says how far it is
	counts  bool   // it writes "PASS DONE OF DEVICE" to descriptor 3, as e2fsck -C 3 does
}

// run runs the tool to its end and returns what it said, shortened in the middle. When ctx ends, or this process dies, it is killed: an
// orphan would keep the device busy for whoever comes next. progress may be nil.
func (t tool) run(ctx context.Context, progress func(string)) (string, error) {
	if progress == nil {
		progress = func(string) {}
	}
	// The signal comes with the death of the thread that started it, so that one must live as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	said := &transcript{step: t.step, progress: progress}
	cmd := exec.CommandContext(ctx, t.command[0], t.command[1:]...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	err := t.counted(cmd, progress)
	if err != nil {
		err = fmt.Errorf("%s: %w%s", strings.Join(t.command, " "), err, complaint(said.String()))
	}
	return said.String(), err
}

// counted runs cmd and follows what it counts.
func (t tool) counted(cmd *exec.Cmd, progress func(string)) error {
	if !t.counts {
		return cmd.Run()
	}
	counts, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer counts.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close() // the child's own ends the reading
	if err != nil {
		return err
	}
	follow(counts, progress)
	return cmd.Wait()
}

func follow(counts io.Reader, progress func(string)) {
	lines := bufio.NewScanner(counts)
	for lines.Scan() {
		var pass, done, of int64
		if n, _ := fmt.Sscan(lines.Text(), &pass, &done, &of); n == 3 && of > 0 {
			const passes = 5
			progress(fmt.Sprintf("pass %d of %d, %d%%", pass, passes, 100*done/of))
		}
	}
}

// transcript keeps the beginning and the end of what a tool says: one that finds a filesystem in ruins can say it in gigabytes.
type transcript struct {
	step     string
	progress func(string)

	head, tail []byte
	left       int64 // bytes between them
	line       []byte
}

const transcriptPart = 2 << 10

func (t *transcript) Write(p []byte) (int, error) {
	t.watch(p)
	n := len(p)
	if room := transcriptPart - len(t.head); room > 0 {
		room = min(room, len(p))
		t.head, p = append(t.head, p[:room]...), p[room:]
	}
	if more := len(p) - transcriptPart; more > 0 {
		t.left += int64(more)
		p = p[more:]
	}
	t.tail = append(t.tail, p...)
	if more := len(t.tail) - transcriptPart; more > 0 {
		t.left += int64(more)
		t.tail = append(t.tail[:0], t.tail[more:]...)
	}
	return n, nil
}

// watch tells of the lines that say how far the tool is.
func (t *transcript) watch(p []byte) {
	if t.step == "" {
		return
	}
	for _, c := range p {
		if c != '\n' {
			if len(t.line) < 128 {
				t.line = append(t.line, c)
			}
			continue
		}
		if line := string(t.line); strings.HasPrefix(line, t.step) {
			t.progress(strings.ToLower(strings.TrimRight(line, ". ")))
		}
		t.line = t.line[:0]
	}
}

func (t *transcript) String() string {
	middle := ""
	if t.left > 0 {
		middle = fmt.Sprintf("\n… %d bytes left out …\n", t.left)
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(t.head)+middle+string(t.tail), "?"))
}
