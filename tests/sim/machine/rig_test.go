package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

const (
	id        volume.ID = "v"
	state               = "/state"
	imageFile           = "/image"
	imageSize           = 1 << 20
)

// rig is a machine with a host, the programs of a few engines, and somebody who asks.
type rig struct {
	t      *testing.T
	m      *Machine
	host   *Process
	client *host.Client
	step   func(what string) // of the present host

	mu  sync.Mutex // guards the rest
	log []string
}

// bubble runs f on a machine of its own, and wants nothing left running and no violation.
func bubble(t *testing.T, c Config, f func(t *testing.T, r *rig)) *rig {
	t.Helper()
	r := &rig{t: t, step: func(string) {}}
	synctest.Test(t, func(t *testing.T) {
		r.t = t
		c.Trace = r.hear
		c.Violation = func(text string) { t.Error(text) }
		r.m = New(c)
		r.install()
		r.must(writeImage(r.m.disk))
		r.client = host.NewClientOn(r.m.Start("serve", idle).Network(), state)
		r.start()
		f(t, r)
		r.m.KillAll()
		r.m.Wait()
	})
	if t.Failed() {
		t.Log(strings.Join(r.log[max(0, len(r.log)-200):], "\n"))
	}
	return r
}

func (r *rig) hear(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, text)
}

func idle(ctx context.Context, _ *Process) error {
	<-ctx.Done()
	return nil
}

func writeImage(disk vfs.FS) error {
	f, err := disk.Open(imageFile, vfs.Create)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(imageSize), f.Datasync(), f.Close(), disk.SyncDir("/"))
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// start runs a host, and returns when it answers.
func (r *rig) start() {
	r.t.Helper()
	r.host = r.m.Start("host", func(ctx context.Context, p *Process) error {
		h, err := host.New(host.Config{
			State: state, Version: "test", Machine: p.Machine(), Log: slog.New(slog.DiscardHandler), Step: func(what string) { r.step(what) },
		})
		if err != nil {
			return err
		}
		return h.Serve(ctx)
	})
	for {
		if _, err := r.client.About(r.t.Context()); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// install makes programs of every kind. What one does is in its name.
func (r *rig) install() {
	for _, name := range []string{"old", "new", "exits", "hangs", "silent", "format", "protocol", "stuck", "refuses", "crashes", "mute"} {
		r.m.Install("/"+name, func(ctx context.Context, p *Process, e host.EngineProcess) error { return run(ctx, name, p, e) })
	}
	r.m.Install("/text", nil)
}

func run(ctx context.Context, name string, p *Process, e host.EngineProcess) error {
	program := host.Program{
		Version: name, FormatMin: 1, FormatMax: 1, Methods: func(*wire.Server, func() (host.Session, error)) {},
		Open: func(_ context.Context, t host.Take, _ func(engine.Progress)) (host.Session, error) {
			return open(p, t, name == "mute" && t.Warm)
		},
	}
	switch name {
	case "exits":
		return errors.New("no")
	case "hangs":
		<-ctx.Done()
		return nil
	case "silent": // reads what it is told, and says nothing
		_, err := new(bytes.Buffer).ReadFrom(e.In)
		return err
	case "format":
		program.FormatMin, program.FormatMax = 2, 3
	case "protocol":
		fmt.Fprintf(e.Out, `{"protocol":%d,"version":"future"}`+"\n", host.Protocol+1)
		<-ctx.Done()
		return nil
	case "stuck":
		program.Open = func(context.Context, host.Take, func(engine.Progress)) (host.Session, error) {
			<-p.Dead()
			return nil, ErrKilled
		}
	case "refuses":
		program.Open = func(context.Context, host.Take, func(engine.Progress)) (host.Session, error) {
			return nil, engine.ErrUnavailable
		}
	case "crashes":
		time.AfterFunc(time.Second, p.Kill)
	}
	return e.Run(ctx, program, slog.New(slog.DiscardHandler))
}

func open(p *Process, _ host.Take, mute bool) (host.Session, error) {
	if _, err := p.Files().Stat("/away"); err == nil {
		return nil, fmt.Errorf("%w: away", engine.ErrUnavailable)
	}
	lock, err := p.Files().Lock("/lock", p.String())
	if err != nil {
		p.machine.config.Violation(fmt.Sprintf("two writers at once: %v", err))
		return nil, err
	}
	f, err := p.Files().Open(imageFile, 0)
	if err != nil {
		return nil, err
	}
	return &session{p: p, file: f, lock: lock, mute: mute, lost: make(chan struct{})}, nil
}

// session is a volume in a file. Its lock tells where two sessions are open at once.
type session struct {
	p    *Process
	file vfs.File
	lock vfs.Unlocker
	mute bool
	lost chan struct{}
}

func (s *session) answer() {
	if s.mute {
		<-s.p.Dead()
	}
	time.Sleep(s.p.machine.takes("disk"))
}

func (s *session) ReadAt(p []byte, off int64) error  { s.answer(); return s.file.ReadAt(p, off) }
func (s *session) WriteAt(p []byte, off int64) error { s.answer(); return s.file.WriteAt(p, off) }
func (s *session) Flush() error                      { s.answer(); return s.file.Datasync() }
func (s *session) Discard(off, n int64) error        { return s.Zero(off, n) }
func (s *session) Zero(off, n int64) error           { return s.WriteAt(make([]byte, n), off) }
func (s *session) Size() int64                       { return imageSize }
func (s *session) Name() string                      { return "image" }
func (s *session) BlockSize() int                    { return 512 }
func (s *session) Format() int                       { return 1 }
func (s *session) Info() any                         { return s.p.String() }
func (s *session) Prepare() error                    { return nil }
func (s *session) Yield() error                      { return s.Close() }
func (s *session) Lost() <-chan struct{}             { return s.lost }
func (s *session) Words() any                        { return "last words" }
func (s *session) Close() error                      { return errors.Join(s.file.Close(), s.lock.Unlock()) }

func (r *rig) spec() host.Spec {
	order, _ := json.Marshal("order")
	return host.Spec{Volume: id, Name: "sim", BlockSize: 512, Executable: "/old", Order: order, Key: "1"}
}

// attach makes the device, with a guest that never stops.
func (r *rig) attach() *guest {
	r.t.Helper()
	d, err := r.client.Attach(r.t.Context(), r.spec(), nil)
	r.must(err)
	if d.State != host.Serving || d.Path == "" {
		r.t.Fatalf("attached: %+v", d)
	}
	return r.guest(d.Path)
}

func (r *rig) device() host.Device {
	r.t.Helper()
	d, err := r.client.Device(r.t.Context(), id)
	r.must(err)
	return d
}

// engine is the process that serves.
func (r *rig) engine() *Process {
	r.t.Helper()
	p := r.m.Find(r.device().Engine.PID)
	if p == nil {
		r.t.Fatal("the engine is dead")
	}
	return p
}

// served wants the device served by a program of that name, and the guest to go on without an error.
func (r *rig) served(g *guest, by string) {
	r.t.Helper()
	g.goesOn()
	d := r.device()
	for range 60 {
		if d.State == host.Serving && d.Engine.Version == by {
			return
		}
		time.Sleep(time.Second)
		d = r.device()
	}
	r.t.Fatalf("served by %s (%s, %s), want %s", d.Engine.Version, d.State, d.Cause, by)
}

// guest writes numbers that grow, each to a block of its own turn, and reads what it wrote there before.
type guest struct {
	r    *rig
	dev  *Guest
	stop atomic.Bool
	done chan struct{}

	mu      sync.Mutex // guards the rest
	rounds  int
	err     error
	longest time.Duration
}

const guestBlocks = 16

func (r *rig) guest(path string) *guest {
	r.t.Helper()
	dev, err := r.m.OpenDevice(path)
	r.must(err)
	g := &guest{r: r, dev: dev, done: make(chan struct{})}
	go g.run()
	return g
}

func (g *guest) run() {
	defer close(g.done)
	defer g.dev.Close()
	var last [guestBlocks]string
	for n := 1; !g.stop.Load(); n++ {
		began := time.Now()
		err := g.round(int64(n%guestBlocks), &last[n%guestBlocks], fmt.Sprintf("%0512d", n))
		g.mu.Lock()
		g.rounds, g.err, g.longest = g.rounds+1, err, max(g.longest, time.Since(began))
		g.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (g *guest) round(block int64, last *string, next string) error {
	p := make([]byte, 512)
	if err := g.dev.ReadAt(p, block*512); err != nil {
		return err
	}
	if want := *last; want != "" && string(p) != want {
		return fmt.Errorf("block %d holds %s, want %s", block, bytes.TrimLeft(p, "0"), strings.TrimLeft(want, "0"))
	}
	*last = next
	return g.dev.WriteAt([]byte(next), block*512)
}

// goesOn returns once the guest has done some more.
func (g *guest) goesOn() {
	g.r.t.Helper()
	from, err := g.count()
	for n, began := from, time.Now(); n < from+2*guestBlocks; n, err = g.count() {
		time.Sleep(time.Millisecond)
		if err != nil {
			g.r.t.Fatalf("the guest: %v", err)
		}
		if time.Since(began) > time.Minute {
			g.r.t.Fatal("the guest waits")
		}
	}
}

func (g *guest) count() (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rounds, g.err
}

// fails wants the guest to have had that error.
func (g *guest) fails(want error) {
	g.r.t.Helper()
	<-g.done
	if _, err := g.count(); !errors.Is(err, want) {
		g.r.t.Errorf("the guest: %v, want %v", err, want)
	}
}

func (g *guest) end() {
	g.stop.Store(true)
	<-g.done
}

// one has the Go scheduler run one goroutine at a time.
func one(t *testing.T) {
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// same wants two logs to be equal.
func same(t *testing.T, a, b []string) {
	t.Helper()
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Fatalf("line %d:\n%s\nwas before:\n%s\nafter\n%s", i, b[i], a[i], strings.Join(a[max(0, i-10):i], "\n"))
		}
	}
	if !slices.Equal(a, b) {
		t.Fatalf("%d lines, and %d", len(a), len(b))
	}
}
