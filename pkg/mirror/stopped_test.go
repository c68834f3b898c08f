package mirror

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// alone leaves one replica of a session in sync, and says which the others are. Each has failed a sync, once; now they are well.
func alone(t *testing.T, s *Session, trouble *trouble) (others []int) {
	t.Helper()
	for i := 1; i < len(s.Config().Voters); i++ {
		others = append(others, i)
	}
	leaveOut(t, s, trouble, others...)
	return others
}

// leaveOut has the replicas excluded, one after the other. Each has failed a sync, once; now they are well.
func leaveOut(t *testing.T, s *Session, trouble *trouble, others ...int) {
	t.Helper()
	left := s.Config().Members
	for _, i := range others {
		left = left.Without(quorum.SetOf(i))
		trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, i))
		mustWrite(t, s, pattern(uint64(i), store.BlockSize), int64(i)*store.BlockSize)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Config().Members; got != left {
		t.Fatalf("members %v", got.Indexes())
	}
}

// allFailed wants the voters to have failed: none of them answers.
func allFailed(t *testing.T, s *Session, voters []int) {
	t.Helper()
	for _, i := range voters {
		if s.view.Load().replicas[i].Failed() == nil {
			t.Fatalf("voter %d has not failed", i)
		}
	}
}

// TestStoppedWriterOpensAgainWhatHasFailed: the voters that are not in sync fail once more while they are rebuilt, and the writer is stopped. That it left
// nothing behind is recorded by a majority, and the detach goes on to its end. (Simulation, seed 1144: no detach, for ever.)
func TestStoppedWriterOpensAgainWhatHasFailed(t *testing.T) {
	for _, replicas := range []int{2, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, trouble, _ := troubledLab(t, replicas)
				s := l.open(ForDevice)
				others := alone(t, s, trouble)
				trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, others...))
				s.bringBack(t.Context())
				allFailed(t, s, others)
				b := l.detach(s)
				if agreeing(t, b, 2); !b.Clean {
					t.Error("the writer flushed, and the barrier is not clean")
				}
			})
		})
	}
}

// TestEvidenceOpensAgainWhatHasFailed: a session in a lost writer's place rebuilds what it needs, and each of those fails a sync, once. The next attempt
// has them back. (Simulation, seed 21: no detach, for ever.)
func TestEvidenceOpensAgainWhatHasFailed(t *testing.T) {
	for _, replicas := range []int{2, 3} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, trouble, _ := troubledLab(t, replicas)
				s := l.open(ForDevice)
				others := alone(t, s, trouble)
				s.Close()
				s = l.open(ForRecovery)
				trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, others...))
				if b, err := s.Evidence(t.Context(), nil); err == nil {
					agreeing(t, b, 1)
				}
				allFailed(t, s, others)
				b, err := s.Evidence(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				agreeing(t, b, 2)
				if err := s.Seal(b, []byte("receipt")); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// twoFailed is a session in a lost writer's place, two of whose four members have failed, unnoticed by a majority: one was away when it was
// to be sealed, and another one failed the sync of its record, once, as that one was excluded. Both are well now.
func twoFailed(t *testing.T) (*lab, *Session, *trouble) {
	t.Helper()
	l, trouble, mem := troubledLab(t, 4)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = l.open(ForRecovery)
	b, err := s.Evidence(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	trouble.is(once(vfs.OpDatasync, "meta", syscall.EIO, 2))
	away := mem.Rename("/s3", "/s3.away")
	if err := s.Seal(b, []byte("receipt")); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("seal: %v", err)
	}
	if err := errors.Join(away, mem.Rename("/s3.away", "/s3")); err != nil {
		t.Fatal(err)
	}
	trouble.is()
	allFailed(t, s, []int{2, 3})
	if s.Config().Members != quorum.All(4) || s.LostCause() != nil {
		t.Fatalf("members %v, lost: %v", s.Config().Members.Indexes(), s.LostCause())
	}
	return l, s, trouble
}

// TestStoppedSessionExcludesWhatHasFailed: half of the members have failed. They vote for their exclusion once they are open again, and are rebuilt.
// (Simulation, seed 5542: they were waited for to be excluded, and without them there was no majority.)
func TestStoppedSessionExcludesWhatHasFailed(t *testing.T) {
	l, s, _ := twoFailed(t)
	b, err := s.Evidence(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	agreeing(t, b, 3) // a majority, which is what is needed
	if err := s.Seal(b, []byte("receipt")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	mustRead(t, l.open(ForDevice), pattern(1, store.BlockSize), 0)
}

// TestFailedMembersAreNotWellBeforeTheyAreExcluded: no majority takes the record that they are out. They may have lost what they had not synced, and
// do not count until it does.
func TestFailedMembersAreNotWellBeforeTheyAreExcluded(t *testing.T) {
	_, s, trouble := twoFailed(t)
	trouble.is(once(vfs.OpRead, "meta", syscall.EIO, 0, 1))
	if _, err := s.Evidence(context.Background(), nil); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("evidence while they cannot be excluded: %v", err)
	}
	allFailed(t, s, []int{2, 3})
	b, err := s.Evidence(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	agreeing(t, b, 3)
}

// TestStoppedSessionWithoutAWellMemberIsOver: the only replica had lost its cache, and fails the sync of the record that forgives it, once. Nothing would
// open it again within the session, so that ends, and the next one in the lost writer's place finds it well.
func TestStoppedSessionWithoutAWellMemberIsOver(t *testing.T) {
	l, trouble, _ := troubledLab(t, 1)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = l.open(ForRecovery)
	if err := s.view.Load().replicas[0].Mark(true); err != nil {
		t.Fatal(err)
	}
	trouble.is(once(vfs.OpDatasync, "meta", syscall.EIO, 0))
	s.forgive()
	allFailed(t, s, []int{0})
	if _, err := s.Evidence(context.Background(), nil); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("evidence of no replica: %v", err)
	}
	if err := s.LostCause(); !errors.Is(err, engine.ErrDeviceLost) {
		t.Errorf("the session goes on: %v", err)
	}
	s.Close()
	agreeing(t, l.detach(l.open(ForRecovery)), 1)
}

// TestStopOpensAgainWhatHasFailed: a seal was refused, which ends the work in the background, and then the last member but one fails a sync, once, while the third
// store is away. The next attempt finds all of them well, and nobody says that requests wait. (Simulation, seed 7051255: no detach, for ever.)
func TestStopOpensAgainWhatHasFailed(t *testing.T) {
	l, trouble, mem := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, store.BlockSize), 0)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Seal(engine.Barrier{}, []byte("receipt")); !errors.Is(err, engine.ErrStaleEpoch) {
		t.Fatalf("seal of another barrier: %v", err)
	}
	away := mem.Rename("/s1", "/s1.away")
	if err := s.exclude(failures{{s.view.Load().replicas[1], errors.New("away")}}); err != nil || away != nil {
		t.Fatal(err, away)
	}
	trouble.is(once(vfs.OpDatasync, "data", syscall.EIO, 2))
	if err := s.Stop(); !errors.Is(err, engine.ErrUnavailable) {
		t.Fatalf("stop with one store of three: %v", err)
	}
	allFailed(t, s, []int{1, 2})
	if why := s.Stalled(); why != "" {
		t.Errorf("requests are said to wait: %s", why)
	}
	if err := mem.Rename("/s1.away", "/s1"); err != nil {
		t.Fatal(err)
	}
	agreeing(t, l.detach(s), 2)
}

// TestSealThatEndsAWaitForAMajority: all is proved, and a read finds a bad block on one of four replicas, whose disk refuses to write it, once. Two others are away, so that
// its exclusion waits, for which it is opened again and votes. Then the seal is asked for, and ends the wait: the replica is no member that is well for that, and attests to nothing
// before it has failed, was excluded and rebuilt.
func TestSealThatEndsAWaitForAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, trouble, _ := troubledLab(t, 4)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(1, store.BlockSize), 0)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		b, err := s.Evidence(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		l.flip(2, 0, 1)
		trouble.is(noWrites(1, 3), once(vfs.OpWrite, "data", syscall.EIO, 2))
		bad := []int64{0}
		done := make(chan error, 1)
		go func() { done <- s.mendBlocks(bad) }()
		time.Sleep(10 * stallRetry)
		if s.Stalled() == "" {
			t.Fatal("it does not wait for a majority")
		}
		if err := s.Seal(b, []byte("receipt")); !errors.Is(err, engine.ErrUnavailable) {
			t.Fatalf("seal with two stores of four: %v", err)
		}
		if err := <-done; !errors.Is(err, engine.ErrUnavailable) {
			t.Errorf("exclusion without a majority: %v", err)
		}
		allFailed(t, s, []int{2})
		trouble.is()
		agreeing(t, l.detach(s), 3)
	})
}
