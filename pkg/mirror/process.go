package mirror

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// process is the engine process of one attached volume, and the device that this process holds open for it.
type process struct {
	volume     volume.ID
	attachment volume.Attachment
	writer     volume.Epoch
	unclean    bool
	cmd        *exec.Cmd
	alive      io.WriteCloser // the process ends when this does
	socket     string         // where it answers
	client     *wire.Client
	export     device.Export
	ended      chan struct{} // closed when the process is dead

	mu   sync.Mutex
	path string
}

// order is what an engine process is told on its standard input. The input stays open for as long as its parent lives.
type order struct {
	Volume       volume.ID         `json:"volume"`
	Attachment   volume.Attachment `json:"attachment"`
	Stores       []home            `json:"stores"`
	Installation string            `json:"installation"`
	Node         volume.NodeID     `json:"node"`
	Boot         string            `json:"boot"`
	Socket       string            `json:"socket"`
}

// word is one line of an engine process's standard output, until it serves.
type word struct {
	Progress *engine.Progress `json:"progress,omitempty"`
	Ready    *ready           `json:"ready,omitempty"`
	Code     string           `json:"code,omitempty"` // of engine.Codes
	Error    string           `json:"error,omitempty"`
}

type ready struct {
	Writer    volume.Epoch `json:"writer"`
	Unclean   bool         `json:"unclean"`
	Blank     bool         `json:"blank"`
	BlockSize int          `json:"blockSize"`
}

// channelFD is the descriptor on which an engine process finds its device.
const channelFD = 3

// start makes a device and starts an engine process that serves it, and returns once the volume is recovered and the
// process is the writer.
func (e *Engine) start(ctx context.Context, a volume.Attachment, blockSize int, report func(engine.Progress)) (*process, error) {
	export, err := device.Create(device.Config{Name: e.deviceName(a.Volume), BlockSize: blockSize, Log: e.Log})
	if err != nil {
		return nil, err
	}
	p := &process{volume: a.Volume, attachment: a, export: export, ended: make(chan struct{})}
	if err := p.spawn(e, a, report); err != nil {
		p.kill()
		export.Abandon()
		return nil, err
	}
	path, err := export.Attach(ctx)
	if err != nil {
		p.kill()
		export.Abandon()
		return nil, fmt.Errorf("device of volume %s: %w", a.Volume, err)
	}
	p.setPath(path)
	e.Log.Info("volume attached", "volume", a.Volume, "epoch", p.writer, "device", path)
	return p, nil
}

func (p *process) spawn(e *Engine, a volume.Attachment, report func(engine.Progress)) error {
	socket := e.socket(a.Volume)
	o := order{Volume: a.Volume, Attachment: a, Installation: e.stores.installation.String(), Node: e.Node, Boot: e.boot.String(), Socket: socket}
	o.Stores = e.stores.homes()
	p.socket, p.client = socket, wire.NewClient(socket, engine.Codes)
	p.cmd = exec.Command(e.Executable)
	p.cmd.Args = []string{os.Args[0], "engine", string(a.Volume)} // the name for people who list processes
	p.cmd.Stderr = os.Stderr
	p.cmd.ExtraFiles = []*os.File{p.export.Channel()}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a signal to the parent's group is not for it
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("engine process of volume %s: %w", a.Volume, err)
	}
	p.alive = in
	spoken := make(chan error, 1)
	go func() {
		spoken <- p.listen(out, report)
		io.Copy(io.Discard, out) //nolint:errcheck // nothing follows
		p.reap(e)
	}()
	if err := json.NewEncoder(in).Encode(o); err != nil {
		return fmt.Errorf("engine process of volume %s: %w", a.Volume, err)
	}
	return <-spoken
}

// listen follows what the process says until it serves or fails.
func (p *process) listen(out io.Reader, report func(engine.Progress)) error {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var w word
		if err := json.Unmarshal(lines.Bytes(), &w); err != nil {
			return fmt.Errorf("engine process of volume %s said %q: %w", p.volume, lines.Text(), err)
		}
		switch {
		case w.Progress != nil:
			report(*w.Progress)
		case w.Ready != nil:
			p.writer, p.unclean = w.Ready.Writer, w.Ready.Unclean
			return nil
		case engine.Codes[w.Code] != nil:
			return &remoteError{text: w.Error, class: engine.Codes[w.Code]}
		default:
			return fmt.Errorf("engine process of volume %s: %s", p.volume, w.Error)
		}
	}
	return fmt.Errorf("engine process of volume %s ended before it served: see its log", p.volume)
}

// remoteError is an engine process's error with its class.
type remoteError struct {
	text  string
	class error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.class }

// reap waits for the end of the process. Its device answers nothing but errors from then on: a request that would wait
// for ever would hold its caller in the kernel.
func (p *process) reap(e *Engine) {
	err := p.cmd.Wait()
	p.export.Abandon()
	os.Remove(p.socket) //nolint:errcheck // one that was killed could not; the next start would replace it anyway
	close(p.ended)
	e.Events.engine(p.volume, false)
	e.Log.Info("engine process ended", "volume", p.volume, "epoch", p.writer, "cause", err)
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) gone() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// kill ends the process at once and returns when it is dead.
func (p *process) kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	p.cmd.Process.Kill() //nolint:errcheck // it may be dead already
	<-p.ended
}

// endWait bounds how long a process may take to flush and end.
const endWait = 30 * time.Second

// end lets the process flush and end, and kills it where it does not.
func (p *process) end(ctx context.Context) error {
	p.alive.Close() //nolint:errcheck // closing is the message
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
	case <-time.After(endWait):
	}
	p.kill()
	return fmt.Errorf("engine process of volume %s did not end in time and was killed", p.volume)
}

// leave ends the process of a volume that stays attached. Its device goes with it where nobody has it open; otherwise it
// stays behind, dead, until the next start finishes the detach.
func (p *process) leave(ctx context.Context) error {
	err := p.export.Close(ctx)
	if errors.Is(err, device.ErrInUse) {
		err = nil
	}
	return errors.Join(err, p.end(ctx))
}

func (p *process) setPath(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.path = path
}

func (p *process) devicePath() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.path
}

// call asks the engine process. Where it is dead the device is lost.
func call[Resp any](ctx context.Context, p *process, method string, req any, progress func(engine.Progress)) (Resp, error) {
	if progress == nil {
		progress = func(engine.Progress) {}
	}
	resp, err := wire.Call[Resp](ctx, p.client, method, req, progress)
	if err != nil && (p.gone() || errors.Is(err, wire.ErrLost) || errors.Is(err, wire.ErrNotRunning)) {
		err = fmt.Errorf("%w: volume %s: its engine died: %w", engine.ErrDeviceLost, p.volume, err)
	}
	return resp, err
}

type nothing struct{}

func (p *process) status(ctx context.Context) (status, error) {
	return call[status](ctx, p, "status", nothing{}, nil)
}

func (p *process) stop(ctx context.Context) error {
	_, err := call[nothing](ctx, p, "stop", nothing{}, nil)
	return err
}

func (p *process) evidence(ctx context.Context, report func(engine.Progress)) (engine.Barrier, error) {
	return call[engine.Barrier](ctx, p, "evidence", nothing{}, report)
}

func (p *process) seal(ctx context.Context, b engine.Barrier, receipt []byte) error {
	_, err := call[nothing](ctx, p, "seal", sealing{b, receipt}, nil)
	return err
}

func (p *process) expand(ctx context.Context, size volume.Bytes) error {
	_, err := call[nothing](ctx, p, "expand", size, nil)
	return err
}

func (p *process) setFormat(ctx context.Context, f engine.Format) error {
	_, err := call[nothing](ctx, p, "format", f, nil)
	return err
}

func (p *process) quarantine(ctx context.Context, findings []engine.Finding) error {
	_, err := call[nothing](ctx, p, "quarantine", findings, nil)
	return err
}

func (p *process) verify(ctx context.Context, report func(engine.Progress)) (engine.Verification, error) {
	return call[engine.Verification](ctx, p, "verify", nothing{}, report)
}

// sealing is the request of the method seal.
type sealing struct {
	Barrier engine.Barrier `json:"barrier"`
	Receipt []byte         `json:"receipt"`
}

// status is what an engine process says of itself.
type status struct {
	Writer   volume.Epoch     `json:"writer"`
	Size     volume.Bytes     `json:"size"`
	Blank    bool             `json:"blank"`
	Stopped  bool             `json:"stopped"`
	Sealed   bool             `json:"sealed"`
	Stalled  string           `json:"stalled,omitempty"`
	Replicas []engine.Replica `json:"replicas"`
}
