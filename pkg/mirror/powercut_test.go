package mirror

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// TestPowerCutLosesNothingThatWasFlushed: 500 writes are acknowledged, and so is the flush behind them; then the power of all three
// replicas is cut, and what no disk was told to sync is gone. None of the 500 is lost, on any of the replicas. (DESIGN.md §1: there all
// 500 were zeros on all three.) Without the flush all of them are lost, so the cut is a real one.
func TestPowerCutLosesNothingThatWasFlushed(t *testing.T) {
	for _, c := range []struct {
		name   string
		luck   *rand.Rand // nil: nothing survives that was not synced
		flush  bool
		remain int
	}{
		{"flushed", nil, true, 500},
		{"flushed, and some of the rest survives", rand.New(rand.NewPCG(5, 5)), true, 500},
		{"not flushed", nil, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := vfs.NewMem()
			l := newLab(t, mem, "/", 3, 64*volume.MiB)
			s := l.open(ForDevice)
			for i := range int64(500) {
				mustWrite(t, s, pattern(uint64(i), store.BlockSize), offsetOf(i))
			}
			if c.flush {
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			l.fs = mem.CrashClone(c.luck)
			for without := range 3 { // any two of the three have everything
				l.openDirs(3)
				if c.flush {
					l.dirs = append(l.dirs[:without:without], l.dirs[without+1:]...)
				}
				s := l.open(ForDevice)
				if got := remaining(t, s); got != c.remain {
					t.Errorf("without replica %d: %d of 500 acknowledged writes are there, want %d", without, got, c.remain)
				}
				s.Close()
				l.fs = mem.CrashClone(c.luck) // as it was when the power went
			}
		})
	}
}

// offsetOf scatters the writes.
func offsetOf(i int64) int64 { return i * 31 % (64 << 8) * store.BlockSize }

func remaining(t *testing.T, s *Session) (n int) {
	t.Helper()
	got := vfs.AlignedBuffer(store.BlockSize)
	for i := range int64(500) {
		// More than once: each member has its turn.
		for range s.Config().Members.Len() {
			if err := s.ReadAt(got, offsetOf(i)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, pattern(uint64(i), store.BlockSize)) {
				if !bytes.Equal(got, make([]byte, store.BlockSize)) {
					t.Fatal(fmt.Errorf("block %d is neither what was written nor zeros", i))
				}
				n--
				break
			}
		}
		n++
	}
	return n
}
