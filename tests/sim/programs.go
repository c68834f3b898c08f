package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/tests/sim/machine"
)

// programs are the processes of the machine: a host, the engines that it runs, and a server with gate and agent. Host and server are
// started again when they have died, as systemd and kubelet do.
type programs struct {
	w       *world
	machine *machine.Machine
	log     *slog.Logger
	keepers sync.WaitGroup
	end     chan struct{}

	mu      sync.Mutex // guards the rest
	views   map[int]*view
	host    *machine.Process
	process *machine.Process              // of the server
	now     *server                       // nil while there is none
	off     bool                          // the power is
	next    func(*machine.Process, *view) // what becomes of the next engine process
}

// server is what runs in one life of the server's process.
type server struct {
	w       *world
	process *machine.Process
	engine  *mirror.Engine
	book    *receipt.Book
	agent   *detach.Agent
	gate    *detach.Gate
}

const (
	program   = "/belay"
	stateHost = stateDir
)

func newPrograms(w *world) *programs {
	p := &programs{w: w, log: slog.New(slog.DiscardHandler), end: make(chan struct{}), views: map[int]*view{}}
	if w.trace.mode == traceAll {
		p.log = slog.New(slog.NewTextHandler(w.trace, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	p.machine = machine.New(machine.Config{
		Seed: w.seed, Files: p.files, Log: p.log,
		Trace:     func(text string) { w.trace.add(func() string { return "machine: " + text }) },
		Violation: func(text string) { w.fail("the host did wrong: %s", text) },
	})
	p.install()
	return p
}

// files is what a process sees of the disks.
func (p *programs) files(of *machine.Process) vfs.FS {
	v := p.w.newView(of.String())
	p.mu.Lock()
	p.views[of.ID().PID] = v
	p.arm(of, v)
	p.mu.Unlock()
	of.OnKill(v.kill)
	return v.fs()
}

// install puts the programs on the machine: the one that is run, the next version of it, and some that cannot serve.
func (p *programs) install() {
	for _, version := range []string{"1", "2"} {
		p.machine.Install(program+version, func(ctx context.Context, of *machine.Process, e host.EngineProcess) error {
			err := e.Run(ctx, p.engineProgram(of, version), p.log)
			p.w.engineEnds(of, err)
			return err
		})
	}
	p.machine.Install("/bad/exits", func(context.Context, *machine.Process, host.EngineProcess) error { return errors.New("exit status 2") })
	p.machine.Install("/bad/hangs", func(_ context.Context, _ *machine.Process, e host.EngineProcess) error {
		_, err := io.Copy(io.Discard, e.In) // until its host has gone
		return err
	})
	p.machine.Install("/bad/format", func(ctx context.Context, of *machine.Process, e host.EngineProcess) error {
		b := p.engineProgram(of, "3")
		b.FormatMin, b.FormatMax = 1000, 1001
		return e.Run(ctx, b, p.log)
	})
	p.machine.Install("/bad/refuses", func(ctx context.Context, of *machine.Process, e host.EngineProcess) error {
		b := p.engineProgram(of, "3")
		b.Open = func(context.Context, host.Take, func(engine.Progress)) (host.Session, error) {
			return nil, fmt.Errorf("%w: it finds nothing", engine.ErrUnavailable)
		}
		return e.Run(ctx, b, p.log)
	})
	p.machine.Install("/bad/young", func(ctx context.Context, of *machine.Process, e host.EngineProcess) error {
		b := p.engineProgram(of, "3")
		open := b.Open
		b.Open = func(ctx context.Context, t host.Take, say func(engine.Progress)) (host.Session, error) {
			of.Go(func() {
				time.Sleep(between(p.w.dice.stream("young"), time.Millisecond, 2*time.Second))
				for p.w.lossUntold() {
					time.Sleep(time.Second)
				}
				of.Kill()
			})
			return open(ctx, t, say)
		}
		return e.Run(ctx, b, p.log)
	})
}

var badPrograms = []string{"/bad/exits", "/bad/hangs", "/bad/format", "/bad/refuses", "/bad/young", "/bad/missing"}

// engineProgram is the product's, whose session ends with its process.
func (p *programs) engineProgram(of *machine.Process, version string) host.Program {
	own := mirror.Process{Files: of.Files(), Version: version, Log: p.log}
	if p.w.plan.pages {
		own.Pages = 4
	}
	b := mirror.Program(own)
	open := b.Open
	b.Open = func(ctx context.Context, t host.Take, say func(engine.Progress)) (host.Session, error) {
		s, err := open(ctx, t, say)
		if err == nil {
			of.OnKill(func() { of.Go(func() { _ = s.Close() }) })
		}
		return s, err
	}
	return b
}

// start starts host and server, and sees to it that they are there.
func (p *programs) start() {
	p.keepers.Go(func() { p.keep("host", p.startHost) })
	p.keepers.Go(func() {
		time.Sleep(time.Millisecond) // not at the same moment
		p.keep("server", p.startServer)
	})
}

// stop ends everything.
func (p *programs) stop() {
	close(p.end)
	p.machine.KillAll()
	p.keepers.Wait()
	p.machine.KillAll()
	p.machine.Wait()
}

// keep starts a process again whenever it has died.
func (p *programs) keep(name string, start func() *machine.Process) {
	r := p.w.dice.stream("keeper of " + name)
	for {
		select {
		case <-p.end:
			return
		case <-start().Dead():
		}
		time.Sleep(between(r, 5*time.Millisecond, 5*time.Second))
	}
}

func (p *programs) startHost() *machine.Process {
	h := p.machine.Start("host", func(ctx context.Context, of *machine.Process) error {
		h, err := host.New(host.Config{State: stateHost, Version: "1", Machine: of.Machine(), Log: p.log.With("role", "host")})
		if err != nil {
			return err
		}
		return h.Serve(ctx)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.host = h
	return h
}

func (p *programs) startServer() *machine.Process {
	s := p.machine.Start("serve", p.serve)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.process = s
	return s
}

// serve is one life of the server.
func (p *programs) serve(ctx context.Context, of *machine.Process) error {
	s := &server{w: p.w, process: of}
	err := s.open(ctx, p)
	if err == nil {
		p.have(s)
		<-ctx.Done()
		p.have(nil)
	}
	s.close()
	return err
}

func (p *programs) have(s *server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = s
}

func (s *server) open(ctx context.Context, p *programs) error {
	w, of := p.w, s.process
	paths := make([]string, len(w.disks))
	for i, d := range w.disks {
		paths[i] = d.name
	}
	keys, err := receipt.OpenKeyring(of.Files(), stateDir+"/keys")
	if err != nil {
		return err
	}
	s.book = receipt.NewBook(keys, time.Now)
	s.engine, err = mirror.New(mirror.Config{
		FS: of.Files(), Stores: paths, State: stateDir, Node: nodeID, Overcommit: 1, Machine: of.Machine(), Log: p.log.With("role", "server"),
		Host: host.NewClientOn(of.Network(), stateHost), Executable: program + "1",
	})
	if err != nil {
		return err
	}
	if err := s.engine.Start(ctx); err != nil {
		s.engine = nil
		return err
	}
	journal, err := detach.OpenJournal(of.Files(), stateDir+"/journal")
	if err != nil {
		return err
	}
	boot, err := of.Machine().Boot()
	if err != nil {
		return err
	}
	events := detach.Events{ReceiptWritten: func(_ volume.Attachment, r receipt.Receipt) { w.receipt(r) }, Fenced: w.fenced}
	s.agent, err = detach.NewAgent(detach.AgentConfig{
		Node: nodeID, Engine: s.engine, Control: s.engine, Journal: journal, Releaser: w.kernel, Book: s.book, Boot: boot, Events: events, Log: p.log,
	})
	if err != nil {
		return err
	}
	s.gate, err = detach.NewGate(detach.GateConfig{
		Control: s.engine, Book: s.book, Events: events, Log: p.log,
		Agents:    func(volume.NodeID) (detach.AgentClient, error) { return s.agent, w.isSilent() },
		Overrides: w.overrides,
		Lost:      func(context.Context, volume.NodeID) (string, bool) { return w.nodeLost() },
	})
	if err != nil {
		return err
	}
	return s.agent.Resume(ctx)
}

func (s *server) close() {
	if s.gate != nil {
		s.gate.Close()
	}
	if s.agent != nil {
		s.agent.Close()
	}
	if s.engine != nil {
		_ = s.engine.Close(context.Background())
	}
}

// server is the one that answers, nil while there is none.
func (w *world) server() *server {
	w.programs.mu.Lock()
	defer w.programs.mu.Unlock()
	return w.programs.now
}

// engineProcess is one of the engine processes, nil where there is none.
func (p *programs) engineProcess(r *rand.Rand) *machine.Process {
	var all []*machine.Process
	for _, x := range p.machine.Processes() {
		if strings.HasPrefix(x.String(), "engine") {
			all = append(all, x)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return pick(r, all)
}

func (p *programs) killEngine(r *rand.Rand) {
	if e := p.engineProcess(r); e != nil && !p.w.lossUntold() {
		e.Kill()
	}
}

// stopEngine stops an engine for a while.
func (p *programs) stopEngine(r *rand.Rand, while time.Duration) {
	e := p.engineProcess(r)
	if e == nil || p.w.lossUntold() {
		return
	}
	e.Stop()
	p.w.background.Go(func() {
		time.Sleep(while)
		e.Continue()
	})
}

func (p *programs) killHost()   { p.kill(func() *machine.Process { return p.host }) }
func (p *programs) killServer() { p.kill(func() *machine.Process { return p.process }) }

func (p *programs) kill(which func() *machine.Process) {
	p.mu.Lock()
	x := which()
	p.mu.Unlock()
	if x != nil {
		x.Kill()
	}
}

// fuse has a process die at its n-th call from now on that alters a disk.
func (p *programs) fuse(x *machine.Process, n int) {
	if x == nil {
		return
	}
	p.mu.Lock()
	v := p.views[x.ID().PID]
	p.mu.Unlock()
	if v != nil {
		v.light(n, x.Kill)
	}
}

func (p *programs) fuseEngine(r *rand.Rand, n int) { p.fuse(p.engineProcess(r), n) }

func (p *programs) fuseHost(n int) {
	p.mu.Lock()
	h := p.host
	p.mu.Unlock()
	p.fuse(h, n)
}

func (p *programs) fuseServer(n int) {
	p.mu.Lock()
	s := p.process
	p.mu.Unlock()
	p.fuse(s, n)
}

// upgrade has the volume served by another program.
func (w *world) upgrade(r *rand.Rand, f fault) {
	s := w.server()
	if s == nil {
		return
	}
	to := program + fmt.Sprint(1+r.IntN(2))
	if f == upgradeBad {
		to = pick(r, badPrograms)
	}
	w.count(f)
	w.background.Go(func() {
		ctx, cancel := context.WithTimeout(w.ctx(), time.Minute)
		defer cancel()
		_, err := s.engine.Upgrade(ctx, volumeID, to, nil)
		err = s.heard(err)
		w.trace.add(func() string { return fmt.Sprintf("upgrade to %s: %v", to, err) })
		if err == nil && f == upgradeBad && to != "/bad/young" { // who dies young serves until then, and its probation may be cut short
			w.fail("an upgrade to %s succeeded", to)
		}
	})
}

// relieve is what an operator does about a device that waits for an engine: its program is replaced by one that can serve. A host that died in
// the middle of an upgrade to a bad version, together with the old engine, leaves the next one no other program than the bad one.
func (w *world) relieve() {
	s := w.server()
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.ctx(), time.Minute)
	defer cancel()
	_, err := s.engine.Upgrade(ctx, volumeID, program+"1", nil)
	w.trace.add(func() string { return fmt.Sprintf("an operator upgrades to a good version: %v", err) })
}
