package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Config is what an Engine needs.
type Config struct {
	FS     vfs.FS
	Stores []string // directories, best on different disks; absolute
	State  string   // directory of this node's own state: identity of the installation, sockets of engine processes
	Node   volume.NodeID
	// Overcommit is how much is promised for each byte the stores have; 1 promises what is there.
	Overcommit float64
	// Machine is the one that this process runs on; nil: the real one, with FUSE devices.
	Machine host.Machine
	// Host keeps the devices and runs the engine processes.
	Host *host.Client
	// Executable is the program that RunEngine is the verb "engine" of; one process of it runs for each attached volume.
	Executable string
	Log        *slog.Logger
	Events     Events
}

// Engine implements engine.Control and engine.Node for the stores of one machine. One Engine has a store at a time:
// Start takes the stores' locks.
type Engine struct {
	Config
	stores  *stores
	boot    quorum.UUID
	stop    context.CancelFunc // of what follows the host
	follows sync.WaitGroup

	mu      sync.Mutex // guards the rest
	volumes map[volume.ID]*handle
	closed  bool
}

var (
	_ engine.Control = (*Engine)(nil)
	_ engine.Node    = (*Engine)(nil)
)

// handle is what the engine holds of one volume in this process. change serializes operations that change it.
type handle struct {
	id     volume.ID
	change chan struct{} // a lock that can be waited for with a context

	mu       sync.Mutex // guards the rest
	recovery *Session   // in the place of a lost writer
	verify   context.CancelFunc
	attach   job[engine.Device]
	fence    job[engine.FenceProof]
	evidence job[engine.Barrier]
	salvage  job[engine.Barrier]
}

// New checks the configuration. Nothing is opened before Start.
func New(c Config) (*Engine, error) {
	switch {
	case len(c.Stores) == 0:
		return nil, fmt.Errorf("%w: no store given; name at least one directory", engine.ErrInvalid)
	case c.Host == nil:
		return nil, errors.New("mirror: a host is required")
	case c.Overcommit < 1:
		return nil, fmt.Errorf("%w: overcommit %v: at least 1", engine.ErrInvalid, c.Overcommit)
	}
	for _, d := range append([]string{c.State}, c.Stores...) {
		if !filepath.IsAbs(d) {
			return nil, fmt.Errorf("%w: directory %q: want an absolute path", engine.ErrInvalid, d)
		}
	}
	if c.Machine == nil {
		c.Machine = host.ThisMachine(device.FUSE{})
	}
	boot, err := bootOf(c.Machine)
	if err != nil {
		return nil, err
	}
	return &Engine{Config: c, boot: boot, volumes: map[volume.ID]*handle{}, stores: &stores{fs: c.FS, state: c.State, paths: c.Stores, log: c.Log}}, nil
}

// Start opens and locks the stores and finishes what a killed predecessor left half done; volumes that are attached go on being so.
// A store that is away is reported and taken in when it is back; one that is somebody else's, or in use by another
// process, is an error.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.stores.open(e.holder("serve", "")); err != nil {
		e.stores.close()
		return err
	}
	e.finishRemovals()
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.follows.Go(func() { e.follow(ctx) })
	return nil
}

// Close gives the stores back. Attached volumes stay so: their devices are the host's.
func (e *Engine) Close(context.Context) error {
	if e.stop != nil {
		e.stop()
		e.follows.Wait()
	}
	e.mu.Lock()
	handles := e.volumes
	e.volumes, e.closed = map[volume.ID]*handle{}, true
	e.mu.Unlock()
	for _, h := range handles {
		if r := h.recovering(); r != nil {
			r.Close()
		}
	}
	e.stores.close()
	return nil
}

// handle returns the handle of a volume, made where there is none.
func (e *Engine) handle(id volume.ID) *handle {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.volumes[id]
	if h == nil {
		h = &handle{id: id, change: make(chan struct{}, 1)}
		e.volumes[id] = h
	}
	return h
}

// lock waits for the handle, and ends a verification that only reads. Whoever has given up before does not get it, free or not.
func (h *handle) lock(ctx context.Context) error {
	if ctx.Err() == nil {
		h.interruptVerify()
		select {
		case h.change <- struct{}{}:
			return nil
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%w on volume %s: %w", engine.ErrBusy, h.id, ctx.Err())
}

func (h *handle) unlock() { <-h.change }

func (h *handle) interruptVerify() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.verify != nil {
		h.verify()
	}
}

// recovering is the session in a lost writer's place, nil where there is none.
func (h *handle) recovering() *Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.recovery
}

// keep keeps the session in a lost writer's place, unless the engine was closed meanwhile.
func (e *Engine) keep(h *handle, s *Session) error {
	h.setRecovery(s)
	e.mu.Lock()
	closed := e.closed
	e.mu.Unlock()
	if !closed {
		return nil
	}
	s.Close()
	return fmt.Errorf("%w: volume %s: this process is ending", engine.ErrUnavailable, h.id)
}

func (h *handle) setRecovery(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recovery = s
}

// holder is what is written into locks: for people, and for the proof that a holder is dead.
func (e *Engine) holder(role string, id volume.ID) string {
	return holderText(role, string(e.Node), id, e.Machine.Self())
}

// dirs are the stores that are there now.
func (e *Engine) open(ctx context.Context, id volume.ID, p Purpose, attachment volume.Epoch) (*Session, error) {
	floor, err := e.floor(id)
	if err != nil {
		return nil, err
	}
	return Open(ctx, OpenConfig{
		ID: id, Floor: floor, Stores: e.stores.present(), Find: e.stores.find, Purpose: p, Attachment: attachment,
		Holder: e.holder("control", id), Boot: e.boot, Log: e.Log, Events: e.Events,
	})
}

// update changes the configuration of a volume that no engine process serves.
func (e *Engine) update(ctx context.Context, id volume.ID, change func(*quorum.Config) error) error {
	s, err := e.open(ctx, id, ForControl, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Update(change)
}
