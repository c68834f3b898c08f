package host

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// process is an engine process, of this host or of one before it.
type process struct {
	machine Machine
	volume  volume.ID
	child   Child
	pid     int
	start   string
	version string
	formats [2]int
	program Executable // what it runs
	socket  string
	words   string
	client  *wire.Client
	ended   chan struct{} // closed when it is dead

	mu    sync.Mutex
	cause string // of its end, for people
}

// launch is how an engine process is started.
type launch struct {
	volume  volume.ID
	program Executable
	device  Export
	socket  string
	words   string
	// named is called as soon as the process is there.
	named func(running) error
}

// errNoHello: the program does not start, hangs, or is no engine that this host can run.
var errNoHello = errors.New("is no engine that this host can run")

// helloWithin bounds how long a program may take to say hello. Nobody waits for it but whoever asked for an upgrade.
const helloWithin = 10 * time.Second

// spawn starts an engine process, which stands by until it is given the device. Where it does not say hello in time it is killed.
func spawn(ctx context.Context, m Machine, l launch) (*process, error) {
	p := newProcess(m, l.volume, l.socket, l.words, l.program)
	child, in, out, err := m.Start(Start{Program: l.program, Device: l.device, Args: []string{"belay", "engine", string(l.volume)}})
	if err != nil {
		return nil, fmt.Errorf("engine of volume %s: %w: %w", l.volume, errNoHello, err)
	}
	p.is(child)
	said := make(chan error, 1)
	go func() {
		said <- p.listen(out)
		io.Copy(io.Discard, out) //nolint:errcheck // nothing follows
		p.end(child.Wait())
		in.Close()
	}()
	if err := l.named(p.running()); err != nil {
		return nil, errors.Join(err, p.kill())
	}
	first := json.NewEncoder(in).Encode(opening{Protocol: Protocol, Volume: l.volume, Socket: l.socket, Words: l.words})
	if err := p.greeted(ctx, said); err != nil {
		return nil, errors.Join(fmt.Errorf("engine of volume %s: %w: %w", l.volume, errNoHello, cmp.Or(err, first)), p.kill())
	}
	return p, nil
}

func newProcess(m Machine, id volume.ID, socket, words string, program Executable) *process {
	return &process{
		machine: m, volume: id, socket: socket, words: words, program: program, ended: make(chan struct{}), client: clientOf(m.Network(), id, socket),
	}
}

// clientOf returns a client of an engine process.
func clientOf(n wire.Network, id volume.ID, socket string) *wire.Client {
	c := n.Client(socket, Codes)
	c.Peer = "the engine of volume " + string(id)
	return c
}

// is says which process it is.
func (p *process) is(c Child) {
	id := c.ID()
	p.child, p.pid, p.start = c, id.PID, id.Start
}

func (p *process) greeted(ctx context.Context, said <-chan error) error {
	select {
	case err := <-said:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(helloWithin):
		return fmt.Errorf("it has not said hello within %v", helloWithin)
	}
}

// listen reads the hello and checks that host and engine can work together.
func (p *process) listen(out io.Reader) error {
	const lineMax = 64 << 10
	lines := bufio.NewScanner(io.LimitReader(out, lineMax))
	if !lines.Scan() {
		return errors.New("it ended before it said hello; see the log")
	}
	var h hello
	if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
		return fmt.Errorf("it said %.80q, which is no hello", lines.Text())
	}
	p.version, p.formats = h.Version, [2]int{h.FormatMin, h.FormatMax}
	switch {
	case h.Error != "":
		return errors.New(h.Error)
	case h.Protocol < protocolOldest || h.Protocol > Protocol:
		return fmt.Errorf("version %s speaks protocol %d, this host %d to %d", h.Version, h.Protocol, protocolOldest, Protocol)
	}
	return nil
}

// find returns the process of an earlier host, ErrGone where it is dead.
func find(m Machine, id volume.ID, r running) (*process, error) {
	child, err := m.Find(Identity{r.PID, r.Start})
	if err != nil {
		return nil, err
	}
	program, err := child.Program()
	if err != nil {
		return nil, err
	}
	p := newProcess(m, id, r.Socket, r.Words, program)
	p.is(child)
	p.version, p.formats = r.Version, r.Formats
	go func() { p.end(child.Wait()) }()
	return p, nil
}

// end notes that the process is dead.
func (p *process) end(err error) {
	p.mu.Lock()
	p.cause = "ended"
	if err != nil {
		p.cause = err.Error()
	}
	p.mu.Unlock()
	p.machine.Network().Remove(p.socket) //nolint:errcheck // one that was killed could not; nobody else has this name
	close(p.ended)
}

// obituary says how the process ended.
func (p *process) obituary() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("engine process %d: %s", p.pid, strings.TrimSpace(p.cause))
}

func (p *process) gone() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// kill ends the process and returns when it is dead. A process that waits for a disk dies when that answers; ErrBusy where
// it does not within killWithin.
func (p *process) kill() error {
	p.child.Kill()
	select {
	case <-p.ended:
		return nil
	case <-time.After(killWithin):
		return fmt.Errorf("%w: engine process %d does not die", engine.ErrBusy, p.pid)
	}
}

// lastWords are what the process left to be known by the next one, nil where nothing.
func (p *process) lastWords() json.RawMessage {
	text, err := vfs.ReadFile(p.machine.Files(), p.words, stateMax)
	if err != nil || !json.Valid(text) {
		return nil
	}
	return text
}

// answerWithin bounds how long an engine process may take to answer what needs no work.
const answerWithin = 3 * time.Second

// ask calls a method of the engine process. within bounds it; 0 does not.
func ask[Resp any](ctx context.Context, p *process, within time.Duration, method string, req any, progress func(engine.Progress)) (Resp, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if within > 0 {
		late := time.AfterFunc(within, func() { cancel(fmt.Errorf("engine process %d has not answered within %v", p.pid, within)) })
		defer late.Stop()
	}
	go func() { // one that is dead does not answer, even where its socket is still there
		select {
		case <-p.ended:
			cancel(ErrGone)
		case <-ctx.Done():
		}
	}()
	return wire.Call[Resp](ctx, p.client, method, req, progress)
}

func (p *process) take(ctx context.Context, t Take, within time.Duration, progress func(engine.Progress)) (json.RawMessage, error) {
	got, err := ask[taken](ctx, p, within, methodTake, t, progress)
	if errors.Is(err, wire.ErrLost) || errors.Is(err, ErrGone) {
		err = p.explain(err)
	}
	return got.Info, err
}

// explain adds how the process ended to an answer that was lost with it.
func (p *process) explain(err error) error {
	const soon = time.Second // a process closes its sockets before it is dead
	select {
	case <-p.ended:
		return fmt.Errorf("%s: %w", p.obituary(), err)
	case <-time.After(soon):
		return err
	}
}

func (p *process) prepare(ctx context.Context) error {
	_, err := ask[nothing](ctx, p, drainWithin, methodPrepare, nothing{}, nil)
	return err
}

func (p *process) yield(ctx context.Context) error {
	_, err := ask[nothing](ctx, p, drainWithin+answerWithin, methodYield, yielding{drainWithin}, nil)
	return err
}

func (p *process) pulse(ctx context.Context) (pulse, error) {
	return ask[pulse](ctx, p, answerWithin, methodPulse, nothing{}, nil)
}

// leave has the process flush and end, and kills it where it does not.
func (p *process) leave(ctx context.Context) error {
	_, err := ask[nothing](ctx, p, leaveWithin, methodEnd, nothing{}, nil)
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return errors.Join(err, p.kill())
	case <-time.After(leaveWithin):
		return errors.Join(err, p.kill())
	}
}

// socketOf names the socket of the n-th engine process of a volume.
func socketOf(dir string, id volume.ID, n int) string {
	return filepath.Join(dir, fmt.Sprintf("%s.%d.sock", id, n))
}

// leaveWithin bounds how long an engine process may take to flush and end.
const leaveWithin = 30 * time.Second
