package mirror

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/locks"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/volume"
)

// Session is one epoch of one volume: the only writer between its Attach and its Seal, or until a newer epoch fences it.
// It is a device.Backend. All methods may be called concurrently. When its process dies, what Flush reported is on
// every member, and the next Attach recovers the rest.
//
// Locking order: ranges, gate, regions.marking, pages. A request holds gate for reading from its first write to its
// acknowledgement; a change of configuration holds it for writing, so that nothing is acknowledged meanwhile
// (DESIGN.md §3.4).
type Session struct {
	id     volume.ID
	epoch  volume.Epoch
	super  store.Superblock
	mark   store.Session // what the members' records name as the open session
	hash   *digest.Hasher
	dirs   []*store.Dir // of the stores that are there; changed while gate is held for writing
	find   func(quorum.UUID) (*store.Dir, error)
	log    *slog.Logger
	events Events
	holder string

	gate    locks.RWMutex
	view    atomic.Pointer[view]
	stopped atomic.Bool // writes are refused; set while gate is held for writing, and read by anybody
	sealed  atomic.Bool // the same
	opening atomic.Bool // its first configuration is not in force yet

	restoring bool // guarded by gate: a stopped session rebuilds, since too few replicas are in sync to prove anything

	stalled atomic.Pointer[string] // why requests wait
	broken  atomic.Pointer[error]  // fenced, lost or handed over: every request fails with it
	suspend bool                   // where it is broken nobody is answered
	lost    chan struct{}          // closed when it was ended by force
	closed  chan struct{}          // by Close
	close   sync.Once
	yield   locks.Mutex
	handed  bool  // guarded by yield, as yielded: Yield was called
	yielded error // what Yield returns

	ranges   ranges
	pages    *pages
	regions  *regions
	flushes  group
	sequence atomic.Uint64
	turn     atomic.Uint64 // which member serves the next read
	ledger   ledger
	unclean  bool // the previous writer was shut out before it had flushed
	// unflushed: blocks may hold what the previous writer had not flushed and no checksum knows of. After a shut-out the guest
	// was promised nothing of it; after a warm take-over it was.
	unflushed bool
	salvaging bool // it makes one replica what the volume is, by a person's decision
	touched   atomic.Int64
	idle      func() // called when nobody has asked anything for a while; nil: nothing is done

	evidence   locks.RWMutex // held for reading by a scrub of a region, for writing by whatever else verifies, rebuilds or seals
	background background
}

// replica is one voter's copy, open in this session.
type replica struct {
	*store.Replica
	dir   *store.Dir
	index int
	lossy bool // lost its cache since it joined, and was made identical since
}

func (r *replica) id() engine.ReplicaID { return engine.ReplicaID(r.dir.ID().String()) }

// view is the configuration in force and who takes part in it. It is never changed, only replaced.
type view struct {
	config   quorum.Config
	replicas []*replica // by voter; nil where it is not open
	targets  quorum.Set // being rebuilt: they get every write and serve no read
}

func (v *view) pick(s quorum.Set) []*replica {
	out := make([]*replica, 0, len(v.replicas))
	for i, r := range v.replicas {
		if r != nil && s.Has(i) {
			out = append(out, r)
		}
	}
	return out
}

func (v *view) members() []*replica { return v.pick(v.config.Members) }
func (v *view) writers() []*replica { return v.pick(v.config.Members | v.targets) }
func (v *view) voters() []*replica  { return v.pick(quorum.All(len(v.config.Voters))) }

// Errors of a session beyond those of package engine.
var (
	// errFenced: a newer epoch has taken the volume; nothing of this session reaches it any more.
	errFenced = fmt.Errorf("%w: a newer writer has the volume", engine.ErrStaleEpoch)
	// errLost: the last member failed.
	errLost = fmt.Errorf("%w: every replica failed", engine.ErrDeviceLost)
	// errStopped: a barrier has stopped this writer.
	errStopped = fmt.Errorf("volume is being detached: %w", syscall.EROFS)
)

// Size implements device.Backend.
func (s *Session) Size() int64 { return int64(s.view.Load().config.Size) }

// Config is the configuration in force.
func (s *Session) Config() quorum.Config { return s.view.Load().config }

// Epoch is the session's epoch.
func (s *Session) Epoch() volume.Epoch { return s.epoch }

// Stalled says why requests wait now; empty where they do not.
func (s *Session) Stalled() string {
	if p := s.stalled.Load(); p != nil {
		return *p
	}
	return ""
}

// Blank says that no block holds anything but zeros. It is false where that is not known yet.
func (s *Session) Blank() bool {
	return s.regions.next() == allCounted && s.regions.settled() && s.regions.total() == digest.Sum{}
}

// refusal is why a request cannot be served. The caller holds gate.
func (s *Session) refusal(write bool) error {
	if err := s.broken.Load(); err != nil {
		return *err
	}
	if write && s.stopped.Load() && !mutant.DetachWithoutFence {
		return errStopped
	}
	return nil
}

// failure is one replica's.
type failure struct {
	replica *replica
	err     error
}

type failures []failure

func (f failures) set() (s quorum.Set) {
	for _, x := range f {
		s = s.With(x.replica.index)
	}
	return s
}

// spared are those of the replicas that did not fail.
func (f failures) spared(replicas []*replica) []*replica {
	if len(f) == 0 {
		return replicas
	}
	gone := f.set()
	return slices.DeleteFunc(slices.Clone(replicas), func(r *replica) bool { return gone.Has(r.index) })
}

// harmless says that every failure left its replica as it was: its disk is full, and it goes on.
func (f failures) harmless() bool {
	return !slices.ContainsFunc(f, func(x failure) bool { return !errors.Is(x.err, syscall.ENOSPC) || x.replica.Failed() != nil })
}

func (f failures) err() error {
	errs := make([]error, len(f))
	for i, x := range f {
		errs[i] = fmt.Errorf("store %s: %w", x.replica.dir.Path(), x.err)
	}
	return errors.Join(errs...)
}

// each runs do on all replicas at once, and meanwhile on this goroutine, and returns who failed.
func each(replicas []*replica, do func(*replica) error, meanwhile func()) failures {
	errs := make([]error, len(replicas))
	var wg sync.WaitGroup
	for i, r := range replicas {
		if i == len(replicas)-1 && meanwhile == nil {
			errs[i] = do(r)
			break
		}
		wg.Go(func() { errs[i] = do(r) })
	}
	if meanwhile != nil {
		meanwhile()
	}
	wg.Wait()
	var out failures
	for i, err := range errs {
		if err != nil {
			out = append(out, failure{replicas[i], err})
		}
	}
	return out
}

// together makes transfers on all replicas at once, and meanwhile runs the function, and returns who failed. It is each
// without goroutines, which cost more than the transfers.
func together(replicas []*replica, add func(*store.Transfers, *replica), meanwhile func()) (failed failures) {
	t := store.NewTransfers()
	defer t.Free()
	for _, r := range replicas {
		add(t, r)
	}
	t.Do(meanwhile)
	for _, r := range replicas {
		if err := t.Err(r.Replica); err != nil {
			failed = append(failed, failure{r, err})
		}
	}
	return failed
}

// group lets many callers share one run: a caller gets the result of a run that began after its call.
type group struct {
	mu   sync.Mutex
	next *flight
	turn locks.Mutex
}

type flight struct {
	done chan struct{}
	err  error
}

func (g *group) do(run func() error) error {
	g.mu.Lock()
	if f := g.next; f != nil {
		g.mu.Unlock()
		<-f.done
		return f.err
	}
	f := &flight{done: make(chan struct{})}
	g.next = f
	g.mu.Unlock()
	g.turn.Lock()
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	f.err = run()
	g.turn.Unlock()
	close(f.done)
	return f.err
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (s *Session) touch() { s.touched.Store(time.Now().UnixNano()) }
