package vfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"
)

// withRing runs test where there is an io_uring. Where there is none the conformance suite has covered all there is.
func withRing(t *testing.T, test func(t *testing.T, r *ring, f *osFile)) {
	r, err := theRing()
	if err != nil {
		t.Logf("no io_uring here: %v", err)
		return
	}
	dir, err := os.MkdirTemp("/var/tmp", "belay-vfs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f, err := OS().Open(filepath.Join(dir, "f"), Create|Direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	test(t, r, f.(*osFile))
}

func TestRingLayout(t *testing.T) {
	for name, got := range map[string][2]uintptr{
		"params": {unsafe.Sizeof(ringParams{}), 120},
		"sqe":    {unsafe.Sizeof(sqe{}), 64},
		"cqe":    {unsafe.Sizeof(cqe{}), 16},
		"user":   {unsafe.Offsetof(sqe{}.userData), 32},
		"cq":     {unsafe.Offsetof(ringParams{}.cq), 80},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %d, want %d", name, got[0], got[1])
		}
	}
}

// filled is a buffer whose every 8 bytes say where in the file they belong and in which round.
func filled(size int, off int64, round uint64) []byte {
	p := AlignedBuffer(size)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(off)+uint64(i)+round<<40)
	}
	return p
}

// TestRingManyRequests has more requests at once than there are slots, of several sizes, while the collector runs.
func TestRingManyRequests(t *testing.T) {
	withRing(t, func(t *testing.T, r *ring, f *osFile) {
		var wg sync.WaitGroup
		var done atomic.Bool
		collector := make(chan struct{})
		go func() {
			defer close(collector)
			for !done.Load() {
				runtime.GC()
			}
		}()
		for w := range ringSlots + 100 {
			wg.Go(func() { rewrite(t, f, int64(w)<<16, []int{4096, 8192, 65536}[w%3]) })
		}
		wg.Wait()
		done.Store(true)
		<-collector
		if len(r.free) != ringSlots || r.inflight.Load() != 0 {
			t.Fatalf("%d slots free, %d in flight", len(r.free), r.inflight.Load())
		}
	})
}

func rewrite(t *testing.T, f *osFile, off int64, size int) {
	for round := range uint64(3) {
		want := filled(size, off, round)
		got := AlignedBuffer(size)
		if err := errors.Join(f.WriteAt(want, off), f.ReadAt(got, off)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %d: %v", size, off, err)
			return
		}
	}
}

func TestRingReturnsErrorsAndShortReads(t *testing.T) {
	withRing(t, func(t *testing.T, r *ring, f *osFile) {
		p := filled(8192, 0, 1)
		if n, ok, err := r.do(ringWrite, f.fd, p[:4096], 0); n != 4096 || !ok || err != nil {
			t.Fatal(n, ok, err)
		}
		if n, ok, err := r.do(ringRead, f.fd, p, 0); n != 4096 || !ok || err != nil {
			t.Fatal(n, ok, err)
		}
		if n, ok, err := r.do(ringRead, f.fd, p, 1<<20); n != 0 || !ok || err != nil {
			t.Fatal(n, ok, err)
		}
		if _, ok, err := r.do(ringRead, f.fd, p[:100], 0); !ok || !errors.Is(err, syscall.EINVAL) {
			t.Fatal(ok, err)
		}
		if _, ok, err := r.do(ringRead, 1<<20, p, 0); !ok || !errors.Is(err, syscall.EBADF) {
			t.Fatal(ok, err)
		}
	})
}

// TestRingOutlivesItsThreads: the kernel ties a request to the thread that submitted it.
func TestRingOutlivesItsThreads(t *testing.T) {
	withRing(t, func(t *testing.T, r *ring, f *osFile) {
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
				rewrite(t, f, int64(w)<<16, 65536)
			})
		}
		wg.Wait()
	})
}

func TestRingTakesOverOnlyWhereRequestsOverlap(t *testing.T) {
	r := &ring{}
	one := func() bool { defer r.end(1); return r.begin(1) }
	for i := range 3 * aloneAfter {
		if alone := one(); alone != (i >= aloneAfter) {
			t.Fatalf("request %d: alone is %v", i, alone)
		}
	}
	r.begin(1)
	if one() {
		t.Fatal("the second of two requests in flight is alone")
	}
	r.end(1)
	if one() {
		t.Fatal("alone at once after two were in flight")
	}
}
