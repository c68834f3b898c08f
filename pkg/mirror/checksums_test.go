package mirror

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
)

// forgetful opens a session that keeps one page of checksums in memory.
func (l *lab) forgetful() *Session {
	l.t.Helper()
	s, err := Open(context.Background(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: ForDevice, Holder: "test", Log: l.log, Pages: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Close)
	return s
}

// forget has the page of block 0 leave the memory.
func forget(t *testing.T, s *Session) {
	t.Helper()
	mustRead(t, s, make([]byte, store.BlockSize), store.EntriesPerPage*store.BlockSize)
	if s.pages.cached(0, 0) != nil {
		t.Fatal("the page is still in memory")
	}
}

// TestChecksumsOfADirtyRegionAreTheNewestOfAll: the first member loses the write of a page of checksums, or of the block as well, and the page is
// read again before anybody has read back what was written. What is read is what was written, and a detach finds nothing that it cannot decide.
// (Simulation, seeds 40, 64 and 73: EIO of blocks that two of three disks had, and a quarantine.)
func TestChecksumsOfADirtyRegionAreTheNewestOfAll(t *testing.T) {
	for lost, to := range map[string]int64{"checksums": blockAt(0), "checksums and block": blockAt(1)} {
		for _, read := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, read before the detach: %v", lost, read), func(t *testing.T) {
				l, trouble, _ := troubledLab(t, 3)
				s := l.forgetful()
				was, is := pattern(20, store.BlockSize), pattern(21, store.BlockSize)
				mustWrite(t, s, was, 0)
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				trouble.is(loses(0, 0, to))
				mustWrite(t, s, is, 0)
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
				trouble.is()
				forget(t, s)
				for range map[bool]int{true: 3}[read] { // from every member
					mustRead(t, s, is, 0)
				}
				b := l.detach(s)
				if agreeing(t, b, 3); len(b.Unresolved) > 0 {
					t.Fatalf("unresolved: %+v", b.Unresolved)
				}
				s = l.open(ForDevice)
				mustRead(t, s, is, 0)
				matching(t, s)
			})
		}
	}
}

// TestNothingIsWrittenWithoutChecksums: the checksums of what is to be overwritten cannot be read, once, and there is one replica. The write fails,
// and the block is what it was, as the receipt after it says. (Simulation, seed 3169: the block was overwritten, and the receipt told of the old one.)
func TestNothingIsWrittenWithoutChecksums(t *testing.T) {
	l, trouble, _ := troubledLab(t, 1)
	s := l.open(ForDevice)
	was := pattern(22, store.BlockSize)
	mustWrite(t, s, was, 0)
	before := l.detach(s)
	s = l.open(ForDevice)
	trouble.is(once(vfs.OpRead, "data", syscall.EIO, 0))
	if err := s.WriteAt(pattern(23, store.BlockSize), 0); !errors.Is(err, syscall.EIO) {
		t.Fatalf("write: %v", err)
	}
	mustRead(t, s, was, 0)
	b := l.detach(s)
	if agreeing(t, b, 1); !b.Expected.Equal(before.Expected) {
		t.Error("the write failed, and the digest is another one")
	}
	s = l.open(ForDevice)
	mustRead(t, s, was, 0)
	matching(t, s)
}

// TestOlderChecksumsOfOneMemberAreNotBelieved: the first member's disk goes back to an older page of checksums of a clean region, as sound as the
// newer one. No copy matches it, and the newer one is found on the others. (Simulation, seed 250: EIO with good copies there.)
func TestOlderChecksumsOfOneMemberAreNotBelieved(t *testing.T) {
	l, _, mem := troubledLab(t, 3)
	s := l.open(ForDevice)
	mustWrite(t, s, pattern(24, store.BlockSize), 0)
	l.detach(s)
	f, err := mem.Open(fmt.Sprintf("/s0/volumes/%s/data", testID), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	older := vfs.AlignedBuffer(store.PageSize)
	if err := f.ReadAt(older, 0); err != nil {
		t.Fatal(err)
	}
	s = l.open(ForDevice)
	is := pattern(25, store.BlockSize)
	mustWrite(t, s, is, 0)
	l.detach(s)
	if err := errors.Join(f.WriteAt(older, 0), f.Datasync()); err != nil {
		t.Fatal(err)
	}
	s = l.open(ForDevice)
	for range 3 { // from every member
		mustRead(t, s, is, 0)
	}
	agreeing(t, l.detach(s), 3)
}
