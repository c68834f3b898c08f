package mirror

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// replugged has the disk of store 1 mounted anew each time mounts is raised.
type replugged struct {
	vfs.FS
	mounts *atomic.Uint64
}

type repluggedFile struct {
	vfs.File
	mount uint64
}

func (f repluggedFile) Info() (vfs.Info, error) {
	i, err := f.File.Info()
	i.Mount += f.mount
	return i, err
}

func (r replugged) Open(name string, mode vfs.Mode) (vfs.File, error) {
	f, err := r.FS.Open(name, mode)
	if err == nil && strings.HasPrefix(name, "/s1/") {
		f = repluggedFile{f, 1000 * r.mounts.Load()}
	}
	return f, err
}

// plugLab is a volume of which store 1's disk can be replugged.
type plugLab struct {
	*lab
	trouble *trouble
	mem     *vfs.Mem
	mounts  *atomic.Uint64
}

func newPlugLab(t *testing.T, replicas int) plugLab {
	t.Helper()
	p := plugLab{trouble: &trouble{}, mem: vfs.NewMem(), mounts: &atomic.Uint64{}}
	p.trouble.is()
	disks := vfs.Faulty(replugged{p.mem, p.mounts}, func(op *vfs.Op) error { return (*p.trouble.now.Load())(op) })
	p.lab = newLab(t, disks, "/", replicas, 32*volume.MiB)
	return p
}

// replug has store 1's disk lose its cache and come back as another mount.
func (p plugLab) replug() {
	_ = p.mem.LoseUnsynced("/s1/volumes/vol/data", nil)
	p.mounts.Add(1)
}

// next is the engine after one that was killed. What its host was told before goes with it.
func (p plugLab) next(s *Session) *Session {
	p.t.Helper()
	after := Warm{After: s.epoch, Lossy: s.LossyMembers()}
	s.background.stop()
	s.Close()
	p.trouble.is()
	l := *p.lab
	l.fs = replugged{p.mem.Restart(), p.mounts}
	l.openDirs(len(l.dirs))
	return l.warm(after)
}

// noWrites has the stores take nothing; what is there can be read.
func noWrites(stores ...int) vfs.Hook {
	sick := sickStores(stores...)
	return func(op *vfs.Op) error {
		if op.Kind == vfs.OpWrite || op.Kind == vfs.OpDatasync || op.Kind == vfs.OpLock {
			return sick(op)
		}
		return nil
	}
}

// killedOnceTold has all calls fail, as of an engine that was killed, once the record of the voter was written.
func killedOnceTold(voter int, dead *atomic.Bool) vfs.Hook {
	var written atomic.Bool
	return func(op *vfs.Op) error {
		switch {
		case dead.Load() && op.Kind != vfs.OpClose && op.Kind != vfs.OpUnlock:
			return syscall.EIO
		case calls(op, vfs.OpWrite, voter, "meta"):
			written.Store(true)
		case calls(op, vfs.OpDatasync, voter, "meta") && written.Load():
			op.Then = func(err error) error { dead.Store(true); return err }
		}
		return nil
	}
}

// killedOnceVoter2IsTold has voter 2 come back, and the engine, which waits for a majority, be killed as soon as that voter is told the members.
func (p plugLab) killedOnceVoter2IsTold(s *Session) {
	p.t.Helper()
	var dead atomic.Bool
	p.trouble.is(noWrites(3), killedOnceTold(2, &dead))
	time.Sleep(5 * time.Second)
	if !dead.Load() {
		p.t.Fatal("voter 2 was told nothing")
	}
	s.background.stop()
}

// TestMemberToBeExcludedIsNoSource: a member's disk was away and has lost its cache. It votes for its own exclusion, which finds no majority; a voter
// that comes back is told the members as they are, and the engine is killed. Warm, nobody goes on from it. (tests/model: CLOSED_EARLY.)
func TestMemberToBeExcludedIsNoSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlugLab(t, 4)
		s := p.open(ForDevice)
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		leaveOut(t, s, p.trouble, 2, 3)
		p.trouble.is(noWrites(2, 3))
		mustWrite(t, s, pattern(2, store.BlockSize), 0)
		p.replug()
		p.trouble.is(noWrites(2, 3), once(vfs.OpWrite, "data", syscall.EIO, 1))
		done := make(chan error, 1)
		go func() { done <- s.WriteAt(pattern(3, store.BlockSize), 5*store.BlockSize) }()
		time.Sleep(5 * time.Second)
		if s.Stalled() == "" {
			t.Fatal("it does not wait for a majority")
		}
		p.killedOnceVoter2IsTold(s)
		<-done
		mustRead(t, p.next(s), pattern(2, store.BlockSize), 0)
	})
}

// TestMemberThatHasNotTakenThatItIsOne: a copy is proposed as a member and the others agree, but its own record cannot be read for an instant. It has acknowledged
// a write when its disk loses its cache and the engine is killed. Warm, nobody goes on from it. (tests/model: UNTOLD.)
func TestMemberThatHasNotTakenThatItIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlugLab(t, 3)
		s := p.open(ForDevice)
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		alone(t, s, p.trouble)
		p.trouble.is()
		s.gate.Lock()
		s.reopen(s.Config().Members)
		s.gate.Unlock()
		var reads atomic.Int64
		p.trouble.is(func(op *vfs.Op) error {
			if calls(op, vfs.OpRead, 1, "meta") && reads.Add(1) == 2 { // the first is Mark's
				return syscall.EIO
			}
			return nil
		})
		if err := s.rebuild(t.Context(), s.view.Load().replicas[1], nil); err != nil || reads.Load() < 2 {
			t.Fatalf("admission: %v, %d reads of the record", err, reads.Load())
		}
		p.trouble.is()
		mustWrite(t, s, pattern(2, store.BlockSize), 0)
		p.replug()
		mustRead(t, p.next(s), pattern(2, store.BlockSize), 0)
	})
}

// TestMemberThatLostItsCacheIsToldSoBeforeItVotes: a member's disk loses its cache, says so at a sync, and takes no record of it. It is opened again to vote for its own exclusion,
// which finds no majority; a voter that comes back is told the members as they are, and the engine is killed. Warm, nobody goes on from it.
func TestMemberThatLostItsCacheIsToldSoBeforeItVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlugLab(t, 4)
		s := p.open(ForDevice)
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		leaveOut(t, s, p.trouble, 2, 3)
		p.trouble.is(noWrites(2, 3))
		mustWrite(t, s, pattern(2, store.BlockSize), 0)
		_ = p.mem.LoseUnsynced("/s1/volumes/vol/data", nil)
		var told atomic.Bool
		p.trouble.is(noWrites(2, 3), func(op *vfs.Op) error {
			if calls(op, vfs.OpDatasync, 1, "meta") || told.Load() && calls(op, vfs.OpWrite, 1, "meta") {
				told.Store(true)
				return syscall.EIO
			}
			return nil
		})
		done := make(chan error, 1)
		go func() { done <- s.WriteAt(pattern(3, store.BlockSize), 3*store.RegionSize) }() // its region is marked, with a sync
		time.Sleep(stallRetry / 2)
		if s.Stalled() == "" {
			t.Fatal("it does not wait for a majority")
		}
		p.trouble.is(noWrites(2, 3))
		time.Sleep(5 * time.Second)
		if s.view.Load().replicas[1].Failed() != nil {
			t.Fatal("the member was not opened again")
		}
		p.killedOnceVoter2IsTold(s)
		<-done
		mustRead(t, p.next(s), pattern(2, store.BlockSize), 0)
	})
}
