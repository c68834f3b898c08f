package detach

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// Releaser takes a volume's mounts away and proves that nothing holds its device.
type Releaser interface {
	// Release syncs the file system through the descriptor opened at staging, unmounts the staging path, and proves
	// that nothing holds the device: never lazily, never by force. Targets are not its to unmount: ErrHeld, before
	// anything is touched, where something is mounted on one of e.Targets still; ErrHeld, too, where somebody else uses the
	// mount or the device. Doing it again, or where nothing is mounted, is no error. Where d is DeviceLost or
	// DeviceNone it does not sync and unmounts all the same. engine.ErrDeviceLost where the device died meanwhile; ErrWriteback
	// where data could not be written back: it is called again after either, and need not report it again.
	Release(ctx context.Context, e Entry, d DeviceState) error
	// Holders lists, for people, the mounts and processes that use the volume now.
	Holders(ctx context.Context, e Entry) []string
}

// ForgottenAfter is how long after the last target went a staged volume counts as forgotten by the orchestrator:
// kubelet unstages within seconds, and tries again for ever where that fails.
const ForgottenAfter = time.Minute

// AgentConfig is what an Agent needs. Required unless said otherwise.
type AgentConfig struct {
	Node     volume.NodeID
	Engine   engine.Node
	Control  engine.Control
	Journal  *Journal
	Releaser Releaser
	Book     *receipt.Book

	Clock          func() time.Time // optional: time.Now
	Log            *slog.Logger     // optional: silent
	Events         Events           // optional
	ForgottenAfter time.Duration    // optional: ForgottenAfter
	Boot           string           // optional: the boot ID of the running kernel
}

func (c AgentConfig) validate() error {
	switch {
	case c.Node == "", c.Engine == nil, c.Control == nil:
		return errors.New("agent: node, engine and control are required")
	case c.Journal == nil, c.Releaser == nil, c.Book == nil:
		return errors.New("agent: journal, releaser and book are required")
	case c.ForgottenAfter < 0:
		return fmt.Errorf("agent: forgotten after %v", c.ForgottenAfter)
	}
	return nil
}

func (c AgentConfig) withDefaults() AgentConfig {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.ForgottenAfter = cmp.Or(c.ForgottenAfter, ForgottenAfter)
	c.Boot = cmp.Or(c.Boot, kernelBoot())
	return c
}

// kernelBoot is the boot ID of the running kernel, empty where it does not say.
func kernelBoot() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// Agent is the node's half: it keeps the stage journal and does the work that ends in a receipt, as one job a
// volume that outlives the call which began it. Safe for concurrent use.
type Agent struct {
	c      AgentConfig
	run    string // random, of this agent's life
	notary notary
	jobs   *jobs
	locks  perVolume // guard read-modify-write of an entry, and what decides about it
}

// NewAgent returns an agent. Call Resume before the first request, and Close at the end.
func NewAgent(c AgentConfig) (*Agent, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	return &Agent{
		c:      c,
		run:    rand.Text(),
		notary: notary{control: c.Control, book: c.Book, log: c.Log, events: c.Events},
		jobs:   newJobs(c.Clock),
		locks:  perVolume{used: map[volume.ID]*userLock{}},
	}, nil
}

// Close stops the jobs, which the next process resumes, and waits for them.
func (a *Agent) Close() { a.jobs.close() }

// Entry returns the journal's entry; false where there is none. ErrJournal where it is damaged.
func (a *Agent) Entry(id volume.ID) (Entry, bool, error) { return a.c.Journal.Get(id) }

// Status tells what this node knows of the volume. It never waits for a job. What could not be told is in its Error.
func (a *Agent) Status(ctx context.Context, id volume.ID) (NodeStatus, error) {
	s := NodeStatus{Node: a.c.Node, ForgottenAfter: a.c.ForgottenAfter, Job: a.jobs.status(id)}
	e, found, err := a.c.Journal.Get(id)
	if err != nil {
		s.Error = err.Error()
	}
	if found {
		a.describe(&s, e)
		s.Holders = a.c.Releaser.Holders(ctx, e)
	}
	d, state, err := a.device(ctx, id)
	s.Device, s.Path, s.Stalled, s.Process = state, cmp.Or(d.Path, s.Path), d.Stalled, d.Process
	if err != nil {
		s.Error = strings.TrimPrefix(s.Error+"; "+err.Error(), "; ")
	}
	return s, ctx.Err()
}

func (a *Agent) describe(s *NodeStatus, e Entry) {
	s.Entry, s.Path = &e, e.Device
	s.Rebooted = e.Boot != "" && a.c.Boot != "" && e.Boot != a.c.Boot
	if !e.Idle.IsZero() && len(e.Targets) == 0 {
		s.Idle = a.c.Clock().Sub(e.Idle)
	}
}

// device asks the engine. DeviceUnknown comes with the reason.
func (a *Agent) device(ctx context.Context, id volume.ID) (engine.Device, DeviceState, error) {
	d, err := a.c.Engine.Attached(ctx, id)
	switch {
	case err == nil:
		return d, DeviceAlive, nil
	case errors.Is(err, engine.ErrNotFound):
		return d, DeviceNone, nil
	case errors.Is(err, engine.ErrDeviceLost):
		return d, DeviceLost, nil
	}
	return d, DeviceUnknown, fmt.Errorf("device of volume %s: %w", id, err)
}

// perVolume are locks by volume. They are held over questions to the engine and the kernel, which may take long for one volume and must not
// hold up another.
type perVolume struct {
	mu   sync.Mutex // guards the rest
	used map[volume.ID]*userLock
}

type userLock struct {
	locks.Mutex
	users int // that have it or wait for it
}

// lock returns the way to unlock.
func (p *perVolume) lock(id volume.ID) func() {
	p.mu.Lock()
	l := p.used[id]
	if l == nil {
		l = &userLock{}
		p.used[id] = l
	}
	l.users++
	p.mu.Unlock()
	l.Lock()
	return func() { p.unlock(id, l) }
}

func (p *perVolume) unlock(id volume.ID, l *userLock) {
	l.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(p.used, id)
	}
}
