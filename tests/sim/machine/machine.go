package machine

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
)

// Config is what a Machine needs. Every field may be left out.
type Config struct {
	Seed uint64
	// Files is what a process sees of the disks, asked once for each. nil: all see one disk in memory, which takes no time. What
	// dies with the process is ended by an OnKill of it.
	Files func(p *Process) vfs.FS
	// Takes is how long a call takes that is not the disk's. key names the call and is never the same again. nil: drawn from the seed.
	Takes func(key string) time.Duration
	// Trace hears what happens, one thing after the other. It must not call the Machine.
	Trace func(text string)
	// Violation hears of what no correct host does, such as two servers of one device. It must not call the Machine.
	Violation func(text string)
	// WithoutResend: a kernel that cannot send the requests of a dead server again.
	WithoutResend bool
	// Log may be nil.
	Log *slog.Logger
}

// Machine is one simulated machine.
type Machine struct {
	config  Config
	started time.Time
	running sync.WaitGroup // goroutines of processes

	mu        sync.Mutex // guards the rest, and all that processes, sockets and devices have; nobody waits while it is held
	boots     int
	disk      *vfs.Mem // where Config has no Files
	lastPID   int
	processes map[int]*Process // those that live
	images    map[string]*image
	sockets   map[string]*socket
	devices   map[string]*blockDevice // by path, those that the kernel shows
	channels  []*blockDevice          // those and what is not attached yet, in order
	calls     map[string]int          // how many there were of each kind
}

// New returns a machine that has just booted.
func New(c Config) *Machine {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	m := &Machine{
		config: c, started: time.Now(), disk: vfs.NewMem(), lastPID: firstPID - 1, processes: map[int]*Process{}, images: map[string]*image{},
		sockets: map[string]*socket{}, devices: map[string]*blockDevice{}, calls: map[string]int{},
	}
	if m.config.Files == nil {
		m.config.Files = m.ownDisk
	}
	return m
}

const firstPID = 100

// ownDisk is the disk in memory, as a new process sees it.
func (m *Machine) ownDisk(p *Process) vfs.FS {
	m.mu.Lock()
	defer m.mu.Unlock()
	mine := m.disk.Process()
	p.hooks = append(p.hooks, func() { mine.Restart() })
	return mine
}

// trace tells what happens. The caller holds mu, so that what is told is told in the order in which it happened.
func (m *Machine) trace(format string, args ...any) {
	if m.config.Trace != nil {
		m.config.Trace(fmt.Sprintf("%v ", time.Since(m.started)) + fmt.Sprintf(format, args...))
	}
}

func (m *Machine) violation(format string, args ...any) {
	m.trace("VIOLATION "+format, args...)
	if m.config.Violation != nil {
		m.config.Violation(fmt.Sprintf(format, args...))
	}
}

// takes is how long the next call of that kind takes.
func (m *Machine) takes(kind string) time.Duration {
	key := m.numbered(kind)
	if m.config.Takes != nil {
		return m.config.Takes(key)
	}
	h := fnv.New64a()
	h.Write([]byte(key))
	return callTakes + time.Duration(rand.New(rand.NewPCG(m.config.Seed, h.Sum64())).Int64N(int64(callVaries)))
}

// numbered is the name of the next call of that kind.
func (m *Machine) numbered(kind string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls[kind]++
	return fmt.Sprintf("%s #%d", kind, m.calls[kind])
}

// How long a call takes that is not the disk's, by default.
const (
	callTakes  = 5 * time.Microsecond
	callVaries = 200 * time.Microsecond
)

// boot identifies the running kernel.
func (m *Machine) boot() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := rand.New(rand.NewPCG(m.config.Seed, uint64(m.boots)))
	text := fmt.Sprintf("%016x%016x", r.Uint64(), r.Uint64())
	return strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-")
}

// all are the processes that live, the oldest first. The caller holds mu.
func (m *Machine) all() []*Process {
	out := make([]*Process, 0, len(m.processes))
	for _, pid := range slices.Sorted(maps.Keys(m.processes)) {
		out = append(out, m.processes[pid])
	}
	return out
}

// Processes are those that live, the oldest first.
func (m *Machine) Processes() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.all()
}

// Find returns the process that has the number, nil where it is dead.
func (m *Machine) Find(pid int) *Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[pid]
}

// KillAll kills every process.
func (m *Machine) KillAll() { m.end(m.Processes(), "killed") }

// PowerCut ends every process and every device at once. What is started next runs on another kernel. What the disks have kept is
// Config.Files's affair; a disk of the machine's own keeps what was synced, and of the rest what the seed says.
func (m *Machine) PowerCut() {
	m.mu.Lock()
	m.trace("power cut")
	m.boots++
	all := m.all()
	for _, d := range m.known() {
		d.end(ErrPowerCut)
	}
	clear(m.devices)
	m.channels = nil
	m.mu.Unlock()
	m.end(all, "power cut")
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.sockets)
	m.disk = m.disk.CrashClone(rand.New(rand.NewPCG(m.config.Seed, uint64(m.boots)<<32)))
}

// Wait returns when nothing of any process runs any more. All must have been killed, or have ended. Goroutines that a process has begun and not
// waited for are given the simulated time that the longest of their timers may take.
func (m *Machine) Wait() {
	m.running.Wait()
	time.Sleep(windDown)
}

// windDown is more than any bound in the code of a host, an engine process or those who ask them.
const windDown = 5 * time.Minute
