package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// flip changes bits of a replica's block behind the session's back.
func (l *lab) flip(store int, block int64, mask byte) { l.corrupt(store, "data", blockAt(block), mask) }

func blockAt(block int64) int64 { return store.DataOffset(block) }

func (l *lab) corrupt(store int, file string, at int64, mask byte) {
	l.t.Helper()
	f, err := l.fs.Open(fmt.Sprintf("%s/s%d/volumes/%s/%s", l.root, store, testID, file), vfs.Direct)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	p := vfs.AlignedBuffer(vfs.Align)
	page := at / vfs.Align * vfs.Align
	if err := f.ReadAt(p, page); err != nil {
		l.t.Fatal(err)
	}
	p[at-page] ^= mask
	if err := errors.Join(f.WriteAt(p, page), f.Datasync()); err != nil {
		l.t.Fatal(err)
	}
}

func memLab(t *testing.T, replicas int) *lab {
	return newLab(t, vfs.NewMem(), "/", replicas, 32*volume.MiB)
}

// TestFlippedByteSinceVerification: found at the detach, mended from the good copies, told in the barrier.
func TestFlippedByteSinceVerification(t *testing.T) {
	for bad := range 3 {
		l := memLab(t, 3)
		s := l.open(ForDevice)
		want := pattern(3, 64<<10)
		mustWrite(t, s, want, 1<<20)
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		l.flip(bad, 256+5, 0x40)
		b := l.detach(s)
		agreeing(t, b, 3)
		if len(b.Repairs) != 1 || b.Repairs[0].Offset != 261*4096 || string(b.Repairs[0].Replica) != l.dirs[bad].ID().String() {
			t.Fatalf("store %d: repairs %+v", bad, b.Repairs)
		}
		s = l.open(ForDevice)
		for range 3 { // from every member
			mustRead(t, s, want, 1<<20)
		}
		l.detach(s)
	}
}

// TestFlippedByteIsNeverRead: a read takes the good copy and mends the bad one.
func TestFlippedByteIsNeverRead(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	want := pattern(4, 4096)
	mustWrite(t, s, want, 0)
	l.detach(s)
	l.flip(1, 0, 1)
	s = l.open(ForDevice)
	for range 6 {
		mustRead(t, s, want, 0)
	}
	if repairs, _, _ := s.ledger.entries(); len(repairs) != 1 {
		t.Errorf("repairs %+v, want one", repairs)
	}
}

// TestNoCopyCanWin: a block that is wrong on every replica, and differently so, is not decided by anybody.
func TestNoCopyCanWin(t *testing.T) {
	for _, masks := range [][3]byte{{1, 2, 4}, {1, 1, 1}} { // equal wrong copies are still wrong
		l := memLab(t, 3)
		s := l.open(ForDevice)
		mustWrite(t, s, pattern(5, 4096), 8192)
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		for i, m := range masks {
			l.flip(i, 2, m)
		}
		b, err := s.Evidence(context.Background(), nil)
		if err != nil || len(b.Unresolved) != 1 || b.Unresolved[0].Offset != 8192 {
			t.Fatalf("masks %v: barrier %+v, %v", masks, b, err)
		}
		for i, m := range masks { // the disks come to their senses
			l.flip(i, 2, m)
		}
		l2 := l.reattach(s)
		if b := l.detach(l2); len(b.Unresolved) != 0 {
			t.Errorf("masks %v: healed, and still %+v", masks, b.Unresolved)
		}
	}
}

// TestForcedSealKeepsTheQuarantine: an operator may let such a volume go; nobody attaches it afterwards.
func TestForcedSealKeepsTheQuarantine(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(5, 4096), 8192)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		l.flip(i, 2, byte(1)<<i)
	}
	s.Close()
	s = l.open(ForRecovery) // the unresolved block must not be forgotten by a take-over
	b, err := s.Evidence(t.Context(), nil)
	if err != nil || len(b.Unresolved) != 1 || !b.Clean {
		t.Fatalf("barrier %+v, %v", b, err)
	}
	if err := s.Seal(b, []byte("forced")); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := l.tryOpen(ForDevice); !errors.Is(err, engine.ErrQuarantined) {
		t.Fatalf("attach after a forced seal: %v", err)
	}
}

func (l *lab) reattach(s *Session) *Session {
	s.Close()
	return l.open(ForDevice)
}

// TestScrubFindsOldDamage: what was written and verified long ago is found by the background verifier.
func TestScrubFindsOldDamage(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(6, 1<<20), 5<<20)
	l.detach(s)
	s = l.open(ForDevice)
	l.flip(2, (5<<20)/4096+3, 0x80)
	v, err := s.ScrubNow(context.Background(), nil)
	if err != nil || len(v.Repairs) != 1 || len(v.Unresolved) != 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	v, err = s.ScrubNow(context.Background(), nil)
	if err != nil || len(v.Repairs) != 0 {
		t.Fatalf("second pass: %+v, %v", v, err)
	}
}

// TestDamagedEntries: a checksum record that is damaged in one store is taken from another.
func TestDamagedEntries(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	want := pattern(7, 4096)
	mustWrite(t, s, want, 0)
	l.detach(s)
	l.corrupt(0, "data", 3, 0xff) // the first entry's hash
	s = l.open(ForDevice)
	for range 3 {
		mustRead(t, s, want, 0)
	}
	l.detach(s)
}

// TestDamagedRecord: a replica whose record is damaged is unknown: it does not vote, is not reset, and is given the
// majority's record and rebuilt once the volume is attached without it.
func TestDamagedRecord(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(8, 8192), 0)
	l.detach(s)
	for slot := range 2 {
		l.corrupt(1, "meta", int64(0x2000+slot*0x1000+100), 1)
	}
	if _, _, err := l.dirs[1].Peek(testID); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("peek: %v", err)
	}
	only := l.dirs
	l.dirs = only[:2] // one good replica of three: the damaged one must not make it two
	if _, err := l.tryOpen(ForDevice); err == nil {
		t.Fatal("a damaged record voted")
	}
	l.dirs = only
	s = l.open(ForDevice)
	if got := s.Config().Members; got != quorum.SetOf(0, 2) {
		t.Fatalf("members %v", got.Indexes())
	}
	mustWrite(t, s, pattern(9, 4096), 1<<20)
	s.bringBack(context.Background())
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("after the rebuild: members %v", got.Indexes())
	}
	agreeing(t, l.detach(s), 3)
}

// TestStaleReplicaIsNeverTheSource: a replica that missed writes is not read, whatever its files look like, and is rebuilt
// with no more than what it missed.
func TestStaleReplicaIsNeverTheSource(t *testing.T) {
	l := memLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(10, 4<<20), 0)
	l.detach(s)
	all := l.dirs
	l.dirs = all[:2] // store 2 is away
	s = l.open(ForDevice)
	mustWrite(t, s, pattern(11, 4096), 4096)
	l.detach(s)
	l.dirs = all
	s = l.open(ForDevice)
	for range 4 {
		mustRead(t, s, pattern(11, 4096), 4096)
	}
	s.bringBack(context.Background())
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("members %v", got.Indexes())
	}
	for range 4 {
		mustRead(t, s, pattern(11, 4096), 4096)
	}
	agreeing(t, l.detach(s), 3)
	l.dirs = all[2:] // alone it is no majority
	if _, err := l.tryOpen(ForDevice); err == nil {
		t.Fatal("one of three replicas was enough")
	}
}

// TestAbsentMemberCannotComeBackAlone: the replica that was left behind and one that holds the newest configuration are a
// majority; the newest one is the source.
func TestAbsentMemberCannotComeBackAlone(t *testing.T) {
	l := memLab(t, 3)
	all := l.dirs
	l.dirs = all[:2]
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(12, 4096), 0)
	l.detach(s)
	l.dirs = all[1:] // 1 has it, 2 has not
	s = l.open(ForDevice)
	for range 4 {
		mustRead(t, s, pattern(12, 4096), 0)
	}
}

// TestFullStores: where every store is full the guest gets ENOSPC and nothing is excluded; where one is, it is left out.
func TestFullStores(t *testing.T) {
	full := [3]bool{}
	mem := vfs.NewMem()
	disk := vfs.Faulty(mem, func(op *vfs.Op) error {
		for i, f := range full {
			if f && op.Kind == vfs.OpWrite && bytes.HasPrefix([]byte(op.Name), fmt.Appendf(nil, "/s%d/", i)) && bytes.HasSuffix([]byte(op.Name), []byte("/data")) {
				return syscall.ENOSPC
			}
		}
		return nil
	})
	l := newLab(t, disk, "/", 3, 16*volume.MiB)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(1, 4096), 0)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	full = [3]bool{true, true, true}
	if err := s.WriteAt(pattern(2, 4096), 1<<20); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("all full: %v", err)
	}
	if got := s.Config().Members; got != quorum.All(3) {
		t.Fatalf("members %v", got.Indexes())
	}
	full = [3]bool{false, false, true}
	mustWrite(t, s, pattern(2, 4096), 1<<20)
	if got := s.Config().Members; got != quorum.SetOf(0, 1) {
		t.Fatalf("members %v", got.Indexes())
	}
	full = [3]bool{}
	s.bringBack(context.Background())
	agreeing(t, l.detach(s), 3)
}
