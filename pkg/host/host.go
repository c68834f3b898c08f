package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Config is what a Host needs.
type Config struct {
	// State is the machine's state directory. The host uses host/ and engines/ in it.
	State string
	// Version is the program's, for people.
	Version string
	// Machine is what the host runs on; nil: this machine, with FUSE devices.
	Machine Machine
	// WhileNeeded ends the host once it holds no device and nobody has watched it for a while: whoever started it has gone.
	WhileNeeded bool
	Log         *slog.Logger
	// Step is called between any two things that a killed host could leave done and not done; for tests. It may be nil.
	Step func(what string)
}

// SocketIn is where the host of a state directory answers.
func SocketIn(state string) string { return filepath.Join(state, "host", "host.sock") }

// ErrRunning: refused; the state directory has a host already.
var ErrRunning = errors.New("a host is running already")

// Host holds the devices of one machine. It has one goroutine a device and keeps in memory what Device says, and little else.
// Killed, it leaves its devices with their engines, and the next Host takes them back.
type Host struct {
	version     string
	machine     Machine
	whileNeeded bool
	log         *slog.Logger
	boot        string
	socket      string
	sockets     string // directory of the engines' sockets
	book        book
	lock        vfs.Unlocker
	events      *events
	started     time.Time
	step        func(what string)

	running sync.WaitGroup
	ctx     context.Context // ends with Serve

	mu   sync.Mutex
	held map[volume.ID]*held
}

// New makes the directories and takes their lock. ErrRunning where another has it.
func New(c Config) (*Host, error) {
	if c.Machine == nil {
		c.Machine = ThisMachine(device.FUSE{})
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
	boot, err := c.Machine.Boot()
	if err != nil {
		return nil, err
	}
	h := &Host{
		version: c.Version, machine: c.Machine, whileNeeded: c.WhileNeeded, log: c.Log, boot: boot, socket: SocketIn(c.State),
		sockets: filepath.Join(c.State, "engines"), book: book{c.Machine.Files(), filepath.Join(c.State, "host", "devices")},
		events: newEvents(), held: map[volume.ID]*held{}, started: time.Now().UTC(), step: c.Step,
	}
	for _, dir := range []string{h.book.dir, h.sockets} {
		if err := h.book.files.MkdirAll(dir); err != nil {
			return nil, fmt.Errorf("host: %w", err)
		}
	}
	if h.lock, err = lock(c.Machine, filepath.Join(c.State, "host", "lock")); err != nil {
		return nil, fmt.Errorf("host of %s: %w", c.State, err)
	}
	return h, nil
}

// lock makes this the only host of the state directory. It is given back by the death of the process.
func lock(m Machine, path string) (vfs.Unlocker, error) {
	self := m.Self()
	l, err := m.Files().Lock(path, fmt.Sprintf("belay host pid=%d start=%s", self.PID, self.Start))
	if _, held := errors.AsType[*vfs.LockedError](err); held {
		return nil, fmt.Errorf("%w: %w", ErrRunning, err)
	}
	return l, err
}

// Serve takes back what an earlier host left and answers until ctx ends or, with WhileNeeded, nobody needs it. Engines and devices
// are left as they are, for the next host.
func (h *Host) Serve(ctx context.Context) error {
	defer h.lock.Unlock() //nolint:errcheck // the process ends
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.ctx = ctx
	h.saySupport()
	if err := h.adopt(ctx); err != nil {
		h.log.Error("devices of an earlier host are left as they are", "error", err)
	}
	l, err := h.machine.Network().Listen(h.socket)
	if err != nil {
		return err
	}
	defer l.Close()
	if h.whileNeeded {
		go h.endWhenUnused(ctx, cancel)
	}
	err = l.Serve(ctx, h.methods())
	cancel()
	h.running.Wait()
	return err
}

// saySupport tells once what this kernel cannot do.
func (h *Host) saySupport() {
	switch can, err := h.machine.Resend(); {
	case err != nil:
		h.log.Error("no device can be made on this machine", "error", err)
	case !can:
		h.log.Warn("this kernel cannot send unanswered requests again (Linux 6.9 and later can): the death of an engine ends its device with I/O errors; a planned upgrade does not")
	}
}

// unusedFor is how long a host stays that nobody needs.
const unusedFor = 5 * time.Second

func (h *Host) endWhenUnused(ctx context.Context, end func()) {
	const every = time.Second
	for unused := time.Duration(0); unused < unusedFor; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		unused += every
		if h.events.watchers() > 0 || h.count() > 0 {
			unused = 0
		}
	}
	h.log.Info("nobody needs this host any more")
	end()
}

func (h *Host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

// add lets the device's goroutine run. The caller holds mu.
func (h *Host) add(d *held) {
	h.held[d.entry.Volume] = d
	h.running.Go(func() { d.run(h.ctx) })
}

func (h *Host) remove(d *held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[d.entry.Volume] == d {
		delete(h.held, d.entry.Volume)
	}
}

func (h *Host) find(id volume.ID) (*held, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.held[id]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("%w: volume %s has no device on this machine", engine.ErrNotFound, id)
}

// attach returns the device, made where there is none. It goes on when the caller hangs up, and the next call joins it.
func (h *Host) attach(ctx context.Context, s Spec, report func(engine.Progress)) (Device, error) {
	d, fresh := h.place(s)
	var err error
	if fresh {
		err = d.do(ctx, false, func(ctx context.Context) error { return d.first(ctx, s, report) })
	} else {
		err = d.do(ctx, false, func(context.Context) error { return nil })
	}
	if err != nil {
		return Device{}, err
	}
	return d.device(), nil
}

func (h *Host) place(s Spec) (d *held, fresh bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d = h.held[s.Volume]; d != nil {
		return d, false
	}
	d = newHeld(h, entry{Boot: h.boot, Volume: s.Volume, Name: s.Name, BlockSize: s.BlockSize, Key: s.Key, Order: s.Order, Since: time.Now().UTC()})
	h.add(d)
	return d, true
}

func (h *Host) list() []Device {
	h.mu.Lock()
	all := make([]*held, 0, len(h.held))
	for _, id := range slices.Sorted(maps.Keys(h.held)) {
		all = append(all, h.held[id])
	}
	h.mu.Unlock()
	out := make([]Device, 0, len(all))
	for _, d := range all {
		out = append(out, d.device())
	}
	return out
}
