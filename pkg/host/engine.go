package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/wire"
)

// Program is what an engine brings to be run by a host.
type Program struct {
	Version string
	// FormatMin and FormatMax are the formats on disk that it reads and writes.
	FormatMin, FormatMax int
	// Open makes this process the writer.
	Open func(ctx context.Context, t Take, progress func(engine.Progress)) (Session, error)
	// Methods adds the engine's own methods. session returns ErrNotServing while there is none.
	Methods func(s *wire.Server, session func() (Session, error))
}

// Session is a volume that this process is the writer of.
type Session interface {
	device.Backend
	// Name is the volume's, for logs.
	Name() string
	// BlockSize is the device's logical block size.
	BlockSize() int
	// Format is the format on disk that it writes.
	Format() int
	// Info is what the node half, and the engine after this one, need to know; encoded as JSON.
	Info() any
	// Prepare does ahead what Yield would have to do.
	Prepare() error
	// Yield ends the session so that another process can be the writer at once. No request is being served.
	Yield() error
	// Lost is closed when the session can serve no more, though an engine after it might. Requests are not answered then.
	Lost() <-chan struct{}
	// Words is what the engine after it must know where it is lost; encoded as JSON.
	Words() any
	// Close flushes, where the volume is not sealed, and ends the session.
	Close() error
}

// EngineProcess is what an engine process has of its machine. RunEngine makes the real one.
type EngineProcess struct {
	In      io.Reader // from its host
	Out     io.Writer // to its host
	Self    Identity
	Files   vfs.FS
	Network wire.Network
	// Server returns a server for the process's device: see device.NewServer.
	Server func(b device.Backend, o device.ServeOptions) (Server, error)
}

// Server answers a device's requests: a device.Server.
type Server interface {
	Serve(ctx context.Context) error
	Quiesce(ctx context.Context) error
	Stats() device.Stats
}

// runner is an engine process: standing by, serving, or between.
type runner struct {
	EngineProcess
	program Program
	log     *slog.Logger
	opening opening
	finish  chan error    // what ends the process: the first counts
	over    chan struct{} // closed when it ends

	change  locks.Mutex // held while the state changes
	earlier []Server    // guarded by change: those that take nothing any more, and had not answered all when that was given up

	mu      sync.Mutex
	taken   bool // once; from then on it outlives its host
	session Session
	server  Server
	beat    beat
}

// beat is what was seen when the pulse was last asked for.
type beat struct {
	served uint64
	at     time.Time
}

// RunEngine is an engine process, as a host starts it: it stands by until it is given the device on descriptor 3, serves it until it
// yields it or the device is gone, and outlives its host from the moment it has served. It returns when the device is gone,
// when the host says so, when the session is lost, or when its host died before it had served and no other came.
func RunEngine(ctx context.Context, in io.Reader, out io.Writer, p Program, log *slog.Logger) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGHUP) // it ends with its device, not with a terminal
	channel := os.NewFile(channelFD, "device")
	m := ThisMachine(nil)
	return EngineProcess{
		In: in, Out: out, Self: m.Self(), Files: m.Files(), Network: m.Network(),
		Server: func(b device.Backend, o device.ServeOptions) (Server, error) { return device.NewServer(channel, b, o) },
	}.Run(ctx, p, log)
}

// Run is RunEngine for a process that is started by other means.
func (e EngineProcess) Run(ctx context.Context, p Program, log *slog.Logger) error {
	r := &runner{EngineProcess: e, program: p, log: log, finish: make(chan error, 1), over: make(chan struct{})}
	defer close(r.over)
	orders := json.NewDecoder(r.In)
	if err := orders.Decode(&r.opening); err != nil {
		return fmt.Errorf("engine process: it is started by belay host: %w", err)
	}
	said := json.NewEncoder(r.Out)
	if o := r.opening.Protocol; o < protocolOldest || o > Protocol {
		err := fmt.Errorf("engine process: its host speaks protocol %d, version %s speaks %d to %d", o, p.Version, protocolOldest, Protocol)
		return errors.Join(err, said.Encode(hello{Protocol: Protocol, Version: p.Version, Error: err.Error()}))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := r.Network.Listen(r.opening.Socket)
	if err != nil {
		return err
	}
	defer l.Close()
	go func() { r.end(l.Serve(ctx, r.methods())) }()
	if err := said.Encode(hello{Protocol: Protocol, Version: p.Version, FormatMin: p.FormatMin, FormatMax: p.FormatMax}); err != nil {
		return err
	}
	go r.minded()
	return <-r.finish
}

// end ends the process.
func (r *runner) end(cause error) {
	select {
	case r.finish <- cause:
	default: // it ends already
	}
}

// orphanFor is how long a process stands by without a host before it was ever given the device. The next host may need it: where the
// engine before is dead and the host dies, this process is the last that has the device.
const orphanFor = 10 * time.Second

// minded ends a process whose host died before it was ever given the device, and that no other host has found.
func (r *runner) minded() {
	io.Copy(io.Discard, r.In) //nolint:errcheck // its end is what matters, not its cause
	select {
	case <-time.After(orphanFor):
	case <-r.over:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken {
		r.end(errors.New("engine process: its host died"))
	}
}

func (r *runner) methods() *wire.Server {
	s := wire.NewServer(Codes, r.log)
	wire.Handle(s, methodTake, func(ctx context.Context, t Take, report func(engine.Progress)) (taken, error) {
		// The host may die meanwhile: what was begun is finished, and the next host finds it.
		info, err := r.take(context.WithoutCancel(ctx), t, report)
		return taken{info}, err
	})
	wire.Handle(s, methodPrepare, func(context.Context, nothing, func(nothing)) (nothing, error) {
		session, err := r.serving()
		if err != nil {
			return nothing{}, err
		}
		return nothing{}, session.Prepare()
	})
	wire.Handle(s, methodYield, func(ctx context.Context, y yielding, _ func(nothing)) (nothing, error) {
		return nothing{}, r.yield(context.WithoutCancel(ctx), y.Within)
	})
	wire.Handle(s, methodPulse, func(context.Context, nothing, func(nothing)) (pulse, error) { return r.pulse(), nil })
	wire.Handle(s, methodEnd, func(context.Context, nothing, func(nothing)) (nothing, error) { return nothing{}, r.dismissed() })
	r.program.Methods(s, r.serving)
	return s
}

// serving returns the session.
func (r *runner) serving() (Session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return nil, fmt.Errorf("%w: engine process %d stands by", ErrNotServing, r.Self.PID)
	}
	return r.session, nil
}

// take opens the session and serves. Where it serves already that is all there is to do.
func (r *runner) take(ctx context.Context, t Take, report func(engine.Progress)) (json.RawMessage, error) {
	r.change.Lock()
	defer r.change.Unlock()
	if s, err := r.serving(); err == nil {
		return json.Marshal(s.Info())
	}
	r.mu.Lock()
	r.taken = true
	r.mu.Unlock()
	t.Self = r.Self
	s, err := r.program.Open(ctx, t, report)
	if err != nil {
		return nil, err
	}
	if err := r.serve(s, t.Resend && !mutant.NoResend); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	go r.mourn(s)
	return json.Marshal(s.Info())
}

// serve answers the device from s. resend has the kernel ask again what an engine that died did not answer.
func (r *runner) serve(s Session, resend bool) error {
	server, err := r.Server(s, device.ServeOptions{
		Name: s.Name(), BlockSize: s.BlockSize(), Resend: resend, Log: r.log,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.session, r.server, r.beat = s, server, beat{at: time.Now()}
	r.mu.Unlock()
	go func() {
		err := server.Serve(context.Background())
		if !errors.Is(err, device.ErrQuiesced) {
			r.end(r.leave(s, err))
		}
	}()
	return nil
}

// leave closes the session of a device that is gone, or whose server failed.
func (r *runner) leave(s Session, err error) error {
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case e := <-closed:
		return errors.Join(err, e)
	case <-time.After(leaveWithin / 3):
		return errors.Join(err, fmt.Errorf("volume %s: requests to its replicas still wait: the process ends without them", s.Name()))
	}
}

// mourn ends the process when the session is lost. Nobody is answered any more; the next engine is asked again.
func (r *runner) mourn(s Session) {
	select {
	case <-s.Lost():
	case <-r.over:
		return
	}
	r.mu.Lock()
	mine := r.session == s
	r.mu.Unlock()
	if !mine {
		return // it yielded
	}
	if text, err := json.Marshal(s.Words()); err == nil {
		r.leaveWords(text)
	}
	r.end(fmt.Errorf("volume %s: its engine can serve no more", s.Name()))
}

// wordsEvery is the pace at which the last words are tried again.
const wordsEvery = time.Second

// leaveWords writes the last words, and does not return before they are written: nobody else may know what they say, and where they cannot be written
// neither can the host name an engine after this one.
func (r *runner) leaveWords(text []byte) {
	for {
		err := write(r.Files, r.opening.Words, text)
		if err == nil {
			return
		}
		r.log.Error("last words cannot be written; requests wait until they are", "volume", r.opening.Volume, "error", err)
		select {
		case <-r.over:
			return
		case <-time.After(wordsEvery):
		}
	}
}

// yield stops serving. ErrBusy where requests in flight do not end within the bound: then it serves on.
func (r *runner) yield(ctx context.Context, within time.Duration) error {
	r.change.Lock()
	defer r.change.Unlock()
	s, err := r.serving()
	if err != nil {
		return nil //nolint:nilerr // it has yielded before
	}
	bounded, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not drained within %v", within))
	defer cancel()
	if err := r.drained(bounded); err != nil {
		r.earlier = append(r.earlier, r.server) // what it has taken it still answers
		if again := r.serve(s, false); again != nil {
			r.end(again)
		}
		return fmt.Errorf("%w: %w", engine.ErrBusy, err)
	}
	r.mu.Lock()
	r.session, r.server, r.earlier = nil, nil, nil
	r.mu.Unlock()
	return s.Yield()
}

// drained returns when no server takes any more requests, and each has answered those that it took.
func (r *runner) drained(ctx context.Context) error {
	if mutant.YieldWithoutDrain {
		return nil
	}
	for _, s := range append(slices.Clone(r.earlier), r.server) {
		if err := s.Quiesce(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) pulse() pulse {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := pulse{Serving: r.session != nil}
	if r.session == nil {
		return p
	}
	st := r.server.Stats()
	p.Resent = st.Resent
	p.Format, p.Served = r.session.Format(), st.Reads+st.Writes+st.Flushes+st.Discards+st.Zeroes-uint64(max(st.Inflight, 0))
	if p.Served != r.beat.served || st.Inflight == 0 {
		r.beat = beat{p.Served, time.Now()}
	}
	p.Waiting = time.Since(r.beat.at)
	return p
}

// dismissed has the process close the session and end; the host has taken the device away.
func (r *runner) dismissed() error {
	r.change.Lock()
	defer r.change.Unlock()
	s, err := r.serving()
	if err == nil {
		err = s.Close()
	} else {
		err = nil
	}
	r.end(nil)
	return err
}
