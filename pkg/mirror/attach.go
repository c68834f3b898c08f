package mirror

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/digest"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/mutant"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// Purpose says what a session is opened for.
type Purpose int

// Purposes. ForControl changes the configuration of a sealed volume and touches no data. ForDevice serves a device.
// ForRecovery takes a lost writer's place without a device, so that the gate can verify and seal.
const (
	ForControl Purpose = iota
	ForDevice
	ForRecovery
)

// OpenConfig is what Open needs.
type OpenConfig struct {
	ID     volume.ID
	Stores []*store.Dir // those that are there; the volume's are picked by identity
	// Find opens a store that was away, or whose disk failed, anew. Optional: such a store stays away then.
	Find    func(quorum.UUID) (*store.Dir, error)
	Purpose Purpose
	// Attachment is the epoch of the publication the session serves; 0: whichever.
	Attachment volume.Epoch
	// Floor is what is remembered of a salvage; nil: nothing.
	Floor *floor
	// Holder is written into the replicas' locks for people and for the proof of death.
	Holder string
	// Boot identifies the running kernel: a cache that was lost with another one makes its replica lossy.
	Boot quorum.UUID
	// Warm takes a device over from an engine that is dead or has yielded (ForDevice only). nil: the device is new.
	Warm *Warm
	// Suspend: where the session is ended by force its requests are not answered, since the engine after it may. See Lost.
	Suspend bool
	// Idle is called when nobody has asked anything for a while and memory was given back to the heap. Optional.
	Idle func()
	// Pages bounds how many pages of checksums stay in memory; 0: 16,384.
	Pages    int
	Progress func(engine.Progress) // of the recovery; may be nil
	Log      *slog.Logger
	Events   Events
}

// Open attaches: it fences every older epoch at a majority of the voters and at a member of the newest configuration,
// makes the members identical, and commits its own first configuration (DESIGN.md §3.1, §3.2). When it returns a session
// nothing of an older epoch reaches the volume any more.
//
// Warm, everything counts that the engine before acknowledged, and members that may have lost some of it drop out. What it left
// unsettled is settled when it is first asked for, and in the background: the guest waits for no more than the locks, two records on
// each store and the regions' sums.
//
// ErrUnavailable: too few replicas answer; nothing was changed but promises. ErrBusy: another process holds the volume.
// ErrStaleEpoch: the attachment is not the open one, or, warm, somebody came between. ErrDeviceLost: warm, and no member has all that
// was acknowledged. ErrNotFound, ErrQuarantined as they say.
func Open(ctx context.Context, c OpenConfig) (*Session, error) {
	if c.Warm != nil && c.Purpose != ForDevice {
		return nil, fmt.Errorf("%w: volume %s: only a device is taken over warm", engine.ErrInvalid, c.ID)
	}
	found := survey(c.Stores, c.ID)
	found.floor = c.Floor
	newest, err := found.newest()
	if err != nil {
		return nil, err
	}
	s := newSession(c)
	s.view.Store(&view{config: newest, replicas: make([]*replica, len(newest.Voters))})
	s.opening.Store(true)
	if err := s.attach(ctx, c); err != nil {
		s.Close()
		return nil, err
	}
	if c.Purpose != ForControl {
		s.startBackground()
	}
	return s, nil
}

func newSession(c OpenConfig) *Session {
	s := &Session{id: c.ID, log: c.Log, events: c.Events, holder: c.Holder, regions: newRegions(), suspend: c.Suspend, idle: c.Idle, lost: make(chan struct{}), closed: make(chan struct{})}
	s.mark.Boot = c.Boot
	rand.Read(s.mark.ID[:]) //nolint:errcheck // never fails (crypto/rand documentation)
	s.pages = newPages(s.loadPage)
	if c.Pages > 0 {
		s.pages.max = c.Pages
	}
	s.dirs, s.find = slices.Clone(c.Stores), c.Find
	s.background.init()
	return s
}

func (s *Session) attach(ctx context.Context, c OpenConfig) error {
	if err := s.openVoters(); err != nil {
		return err
	}
	if c.Warm != nil {
		c.Warm.forget(s.view.Load().replicas)
	}
	newest, _, err := s.elect(c.Warm)
	if err != nil {
		return err
	}
	if err := s.allowed(newest, c); err != nil {
		return err
	}
	if err := s.fence(); err != nil {
		return err
	}
	newest, sources, err := s.elect(c.Warm)
	if err != nil {
		return err
	}
	s.unflushed = !newest.Flags.Has(quorum.Clean) && newest.Writer != 0
	s.unclean = s.unflushed && c.Warm == nil
	s.adoptConfig(newest, sources, c.Purpose)
	if c.Purpose != ForControl {
		if err := s.recover(ctx, newest, c); err != nil {
			return err
		}
	}
	return s.begin(c)
}

// openVoters opens and locks every voter's replica that can be had, all at once: each waits for its disk several times.
func (s *Session) openVoters() error {
	v := s.view.Load()
	errs := make([]error, len(v.config.Voters))
	var wg sync.WaitGroup
	for i, voter := range v.config.Voters {
		wg.Go(func() { v.replicas[i], errs[i] = s.openDrained(i, voter) })
	}
	wg.Wait()
	for i, err := range errs {
		if err == nil {
			s.super = v.replicas[i].Superblock()
			s.hash = digest.NewHasher(s.super.Key)
			continue
		}
		if locked, ok := errors.AsType[*vfs.LockedError](err); ok {
			return fmt.Errorf("%w: volume %s is held by %s", engine.ErrBusy, s.id, locked.Holder)
		}
		s.log.Warn("replica cannot be opened", "volume", s.id, "voter", i, "cause", err)
	}
	return nil
}

// drainWithin is how long an attach waits for what a dead process had given to the kernel. A disk that takes longer is left out.
const drainWithin = 5 * time.Second

// openDrained opens a voter's replica once nothing of a dead process reaches it any more.
func (s *Session) openDrained(i int, voter quorum.Voter) (*replica, error) {
	return openDrained(func() (*replica, error) { return s.openVoter(i, voter) })
}

func openDrained[R any](open func() (R, error)) (R, error) {
	for started := time.Now(); ; time.Sleep(time.Millisecond) {
		r, err := open()
		if !errors.Is(err, store.ErrDraining) || time.Since(started) > drainWithin {
			return r, err
		}
	}
}

func (s *Session) openVoter(i int, voter quorum.Voter) (*replica, error) {
	dir := dirOf(s.dirs, voter.Store)
	if dir == nil {
		return nil, fmt.Errorf("store %s is not there", voter.Store)
	}
	opened, err := dir.Open(s.id, s.holder)
	if err != nil {
		return nil, err
	}
	if got := opened.Superblock().Incarnation; got != voter.Incarnation && !mutant.ReplacedDiskVotes {
		opened.Close()
		return nil, fmt.Errorf("store %s holds incarnation %s, the volume admitted %s: it does not vote", dir.Path(), got, voter.Incarnation)
	}
	if err := opened.Present(); err != nil { // the store was opened on another disk that was mounted there for a while
		opened.Close()
		return nil, err
	}
	r := &replica{Replica: opened, dir: dir, index: i}
	mark := opened.Record().Session
	r.lossy = opened.Record().Lossy || mark.Open && (mark.Boot != s.mark.Boot || mark.Mount != opened.MountID())
	return r, nil
}

func (s *Session) answers() []quorum.Answer {
	v := s.view.Load()
	out := make([]quorum.Answer, len(v.replicas))
	for i, r := range v.replicas {
		if r != nil {
			rec := r.Record()
			out[i] = quorum.Answer{Known: true, Promised: rec.Promised, Config: rec.Config, Lossy: r.lossy}
		}
	}
	return out
}

// allowed refuses before anything is promised.
func (s *Session) allowed(newest quorum.Config, c OpenConfig) error {
	switch {
	case newest.Flags.Has(quorum.Deleted):
		return fmt.Errorf("%w: volume %s was deleted", engine.ErrNotFound, s.id)
	case c.Attachment != 0 && newest.Published != c.Attachment:
		return fmt.Errorf("%w: volume %s is published at epoch %d, not %d; publish it again", engine.ErrStaleEpoch, s.id, newest.Published, c.Attachment)
	case c.Warm != nil && !c.Warm.follows(newest):
		return fmt.Errorf("%w: volume %s: its newest configuration is %s, of writer %d: it is not the device's any more; detach it and attach it anew",
			engine.ErrStaleEpoch, s.id, newest, newest.Writer)
	case c.Purpose == ForDevice && newest.Flags.Has(quorum.Quarantined):
		return fmt.Errorf("%w: volume %s", engine.ErrQuarantined, s.id)
	case c.Purpose == ForControl && !newest.Flags.Has(quorum.Sealed):
		return fmt.Errorf("%w: volume %s has a writer of epoch %d", engine.ErrNotSealed, s.id, newest.Writer)
	}
	return nil
}

// fence makes every replica that is open promise the new epoch; those that do not are closed.
func (s *Session) fence() error {
	s.epoch = quorum.NextEpoch(s.answers())
	v := s.view.Load()
	failed := each(v.voters(), func(r *replica) error {
		if mutant.AttachWithoutPromise {
			return nil
		}
		return r.Promise(s.epoch)
	}, nil)
	for _, f := range failed {
		s.log.Warn("replica does not promise", "volume", s.id, "epoch", s.epoch, "cause", f.err)
		f.replica.Close()
		v.replicas[f.replica.index] = nil
	}
	return nil
}

// adoptConfig goes on from the newest configuration under the new epoch. A member that cannot be reached is out: what
// is written from now on it does not get. Only a change that writes nothing leaves the members as they are.
func (s *Session) adoptConfig(newest quorum.Config, sources quorum.Set, p Purpose) {
	next := newest
	next.Epoch, next.Step = s.epoch, 0
	if p != ForControl {
		next.Members = sources
	}
	old := s.view.Load()
	s.view.Store(&view{config: next, replicas: old.replicas})
}

// begin commits the session's first configuration. After it the session is the writer.
func (s *Session) begin(c OpenConfig) error {
	s.gate.Lock()
	defer s.gate.Unlock()
	next := s.view.Load().config
	switch c.Purpose {
	case ForControl:
		s.opening.Store(false)
		return nil // what it was opened for is its first configuration
	case ForDevice:
		next.Flags |= quorum.Staged
		next.Writer = s.epoch
		editAttributes(&next, func(a *attributes) { a.Since = time.Now().UTC().Truncate(time.Second) }) //nolint:errcheck // for people: left out where there is no room
		next.Flags &^= quorum.Sealed | quorum.Clean
		if err := s.raiseDoubt(&next); err != nil {
			return err
		}
	case ForRecovery:
		s.stopped.Store(true)
		next.Flags &^= quorum.Sealed // Clean stays: it speaks of the last writer with a device
	}
	if err := s.commit(next, true); err != nil {
		return err
	}
	s.opening.Store(false)
	s.forgive()
	return nil
}

// forgive takes the mark of a lost cache from the members: they were made identical, durably.
func (s *Session) forgive() {
	each(s.view.Load().members(), func(r *replica) error {
		if !r.Record().Lossy {
			return nil
		}
		return r.Mark(false) // where that fails it stays as it is, which costs a rebuild
	}, nil)
}

// raiseDoubt remembers, until somebody has checked it, that the filesystem is one whose writer had not flushed: the next writer that stops
// in good order is clean again, and says nothing of what it found. Warm the guest is alive, and loses nothing.
func (s *Session) raiseDoubt(next *quorum.Config) error {
	if !s.unclean {
		return nil
	}
	return editAttributes(next, func(a *attributes) { a.Format = a.Format.AfterUnclean() })
}

// Close gives the locks back. Without a Seal before it the volume stays attached. Requests that wait for the next engine fail: their
// device is gone.
func (s *Session) Close() {
	s.close.Do(func() { close(s.closed) })
	s.background.stop()
	s.closeReplicas()
}

func (s *Session) closeReplicas() {
	for _, r := range s.view.Load().replicas {
		if r != nil {
			r.Close()
		}
	}
}

func dirOf(dirs []*store.Dir, id quorum.UUID) *store.Dir {
	for _, d := range dirs {
		if d.ID() == id {
			return d
		}
	}
	return nil
}
