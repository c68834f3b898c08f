package mirror

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/mirror/store"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

const testID volume.ID = "vol"

// lab is a volume of three replicas on some file system.
type lab struct {
	t    testing.TB
	fs   vfs.FS
	root string
	dirs []*store.Dir
	log  *slog.Logger
}

var testInstallation = quorum.UUID{1}

func newLab(t testing.TB, fsys vfs.FS, root string, replicas int, size volume.Bytes) *lab {
	t.Helper()
	l := &lab{t: t, fs: fsys, root: root, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	l.openDirs(replicas)
	spec := engine.Spec{ID: testID, Name: "vol", Size: size, Parameters: map[string]string{"verify": "off"}}
	e := &Engine{}
	if err := e.make(spec, layout{replicas: replicas, blockSize: 4096}, l.dirs); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) openDirs(n int) {
	l.t.Helper()
	l.dirs = nil
	for i := range n {
		d, err := store.OpenDir(l.fs, fmt.Sprintf("%s/s%d", l.root, i), testInstallation)
		if err != nil {
			l.t.Fatal(err)
		}
		l.dirs = append(l.dirs, d)
	}
}

func (l *lab) tryOpen(p Purpose) (*Session, error) {
	return Open(context.Background(), OpenConfig{ID: testID, Stores: l.dirs, Purpose: p, Holder: "test", Log: l.log})
}

func (l *lab) open(p Purpose) *Session {
	l.t.Helper()
	s, err := l.tryOpen(p)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(s.Close)
	return s
}

// detach stops, proves and seals, and returns the barrier.
func (l *lab) detach(s *Session) engine.Barrier {
	l.t.Helper()
	if err := s.Stop(); err != nil {
		l.t.Fatal(err)
	}
	b, err := s.Evidence(context.Background(), nil)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := s.Seal(b, []byte("receipt of "+b.View)); err != nil {
		l.t.Fatal(err)
	}
	s.Close()
	return b
}

func pattern(seed uint64, n int) []byte {
	p := vfs.AlignedBuffer(n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for k := range min(8, n-i) {
			p[i+k] = byte(v >> (8 * k))
		}
	}
	return p
}

func mustWrite(t testing.TB, s *Session, p []byte, off int64) {
	t.Helper()
	if err := s.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, s *Session, want []byte, off int64) {
	t.Helper()
	got := vfs.AlignedBuffer(len(want))
	if err := s.ReadAt(got, off); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("offset %d: read differs from what was written", off)
	}
}

func agreeing(t testing.TB, b engine.Barrier, n int) {
	t.Helper()
	equal := 0
	for _, e := range b.Evidence {
		if e.Digest.Equal(b.Expected) && e.Durable {
			equal++
		}
	}
	if equal != n {
		t.Fatalf("%d replicas agree, want %d: %+v", equal, n, b)
	}
}

// TestSealEndsBackgroundWork: background work that begins just as a seal wants it to end, and works on the evidence too.
func TestSealEndsBackgroundWork(t *testing.T) {
	l := newLab(t, vfs.NewMem(), "/", 3, 64*volume.MiB)
	s := l.open(ForDevice)
	s.background.wg.Go(func() {
		<-s.background.ctx.Done()
		s.bringBack(s.background.ctx)
	})
	sealed := make(chan struct{})
	go func() {
		l.detach(s)
		close(sealed)
	}()
	select {
	case <-sealed:
	case <-time.After(30 * time.Second):
		t.Fatal("seal waits for work that waits for it")
	}
}

func TestWriteDetachAttach(t *testing.T) {
	l := newLab(t, vfs.OS(), t.TempDir(), 3, 64*volume.MiB)
	s := l.open(ForDevice)
	if !s.Blank() {
		t.Error("a new volume is not blank")
	}
	big, small := pattern(1, 1<<20), pattern(2, 512)
	mustWrite(t, s, big, 3<<20+4096*7)
	mustWrite(t, s, small, 512*3)
	mustRead(t, s, small, 512*3)
	mustRead(t, s, big, 3<<20+4096*7)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.Zero(4<<20, 64<<10); err != nil {
		t.Fatal(err)
	}
	b := l.detach(s)
	agreeing(t, b, 3)
	if !b.Clean || b.Verified == 0 {
		t.Errorf("barrier %+v: want clean and verified", b)
	}
	s = l.open(ForDevice)
	if s.unclean {
		t.Error("unclean after a seal")
	}
	mustRead(t, s, small, 512*3)
	copy(big[(4<<20)-(3<<20+4096*7):], make([]byte, 64<<10))
	mustRead(t, s, big, 3<<20+4096*7)
	if got := l.detach(s); !got.Expected.Equal(b.Expected) {
		t.Error("reading changed the digest")
	}
}
