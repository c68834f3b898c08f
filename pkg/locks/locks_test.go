package locks

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestExcludes: a writer is alone, readers are together.
func TestExcludes(t *testing.T) {
	var l RWMutex
	var in, writers atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 2000 {
				if i < 3 {
					l.Lock()
					if writers.Add(1) != 1 || in.Load() != 0 {
						t.Error("a writer is not alone")
					}
					writers.Add(-1)
					l.Unlock()
					continue
				}
				l.RLock()
				in.Add(1)
				if writers.Load() != 0 {
					t.Error("a reader beside a writer")
				}
				in.Add(-1)
				l.RUnlock()
			}
		})
	}
	wg.Wait()
}

// TestOrderAndClock: the clock goes on while a holder sleeps, and who came first is first.
func TestOrderAndClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Mutex
		var order []int
		l.Lock()
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				l.Lock()
				time.Sleep(time.Second)
				order = append(order, i)
				l.Unlock()
			})
			synctest.Wait()
		}
		time.Sleep(time.Hour)
		l.Unlock()
		wg.Wait()
		for i, got := range order {
			if got != i {
				t.Fatalf("order %v", order)
			}
		}
	})
}

// TestWriterBeforeLaterReaders: readers cannot starve a writer, and come together after it.
func TestWriterBeforeLaterReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l RWMutex
		l.RLock()
		wrote := false
		go func() {
			l.Lock()
			wrote = true
			l.Unlock()
		}()
		synctest.Wait()
		both := make(chan bool)
		var inside atomic.Int32
		for range 2 {
			go func() {
				l.RLock()
				inside.Add(1)
				time.Sleep(time.Second)
				both <- wrote && inside.Load() == 2
				l.RUnlock()
			}()
		}
		synctest.Wait()
		if wrote || inside.Load() != 0 {
			t.Fatal("somebody has overtaken the reader, or the writer")
		}
		l.RUnlock()
		if !<-both || !<-both {
			t.Error("the readers did not come together, after the writer")
		}
	})
}

func TestTryLock(t *testing.T) {
	var l RWMutex
	if !l.TryLock() || l.TryLock() {
		t.Fatal("a free lock is taken once")
	}
	l.Unlock()
	l.RLock()
	if l.TryLock() {
		t.Fatal("taken beside a reader")
	}
	l.RUnlock()
	for _, unlock := range []func(){l.Unlock, l.RUnlock} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("given up twice")
				}
			}()
			unlock()
		}()
	}
}

func BenchmarkMutex(b *testing.B) {
	b.Run("locks", func(b *testing.B) {
		var l RWMutex
		for b.Loop() {
			l.RLock()
			l.RUnlock()
		}
	})
	b.Run("sync", func(b *testing.B) {
		var l sync.RWMutex
		for b.Loop() {
			l.RLock()
			l.RUnlock()
		}
	})
}
