// Package locks has locks that may be held while a disk is waited for.
//
// They do what those of package sync do, with two differences. Whoever waits gets the lock in the order of arrival, so that what happens
// does not depend on the Go scheduler; and waiting is waiting on a channel, which testing/synctest sees: the simulated
// clock goes on while one goroutine has the lock and sleeps and others wait for it. A lock that is held for memory alone is sync's, which
// costs less: here an uncontended pair of Lock and Unlock takes two of them.
package locks

import "sync"

// Mutex is like sync.Mutex; the zero value is unlocked. It must not be copied after first use.
type Mutex struct{ rw RWMutex }

// Lock waits until the lock is free and takes it.
func (m *Mutex) Lock() { m.rw.Lock() }

// TryLock takes the lock if it is free.
func (m *Mutex) TryLock() bool { return m.rw.TryLock() }

// Unlock gives the lock to who has waited longest. It panics where the lock is not held.
func (m *Mutex) Unlock() { m.rw.Unlock() }

// RWMutex is like sync.RWMutex; the zero value is unlocked. A writer that waits holds up the readers that come after it. It must not
// be copied after first use.
type RWMutex struct {
	mu      sync.Mutex // guards the rest; nobody waits while it is held
	readers int
	writing bool
	waiting []*waiter // in the order of arrival; none that could go on now
}

type waiter struct {
	write bool
	turn  chan struct{} // closed when it has the lock
}

// Lock waits until nobody has the lock and takes it alone.
func (l *RWMutex) Lock() { l.wait(l.enter(true)) }

// RLock waits until no writer has the lock, nor waits longer for it, and takes it beside other readers.
func (l *RWMutex) RLock() { l.wait(l.enter(false)) }

// TryLock takes the lock alone if that is possible at once.
func (l *RWMutex) TryLock() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(true)
}

// Unlock gives up a lock taken by Lock. It panics where there is none.
func (l *RWMutex) Unlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.writing {
		panic("locks: Unlock of a lock that is not held")
	}
	l.writing = false
	l.pass()
}

// RUnlock gives up a lock taken by RLock. It panics where there is none.
func (l *RWMutex) RUnlock() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.readers == 0 {
		panic("locks: RUnlock of a lock that is not held")
	}
	l.readers--
	l.pass()
}

// enter takes the lock, or returns the place in the row.
func (l *RWMutex) enter(write bool) *waiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.take(write) {
		return nil
	}
	w := &waiter{write: write, turn: make(chan struct{})}
	l.waiting = append(l.waiting, w)
	return w
}

func (l *RWMutex) wait(w *waiter) {
	if w != nil {
		<-w.turn
	}
}

// take takes the lock where it is free and nobody waits. The caller holds mu.
func (l *RWMutex) take(write bool) bool {
	return len(l.waiting) == 0 && l.admit(write)
}

// admit takes the lock where it is free. The caller holds mu.
func (l *RWMutex) admit(write bool) bool {
	switch {
	case l.writing, write && l.readers > 0:
		return false
	case write:
		l.writing = true
	default:
		l.readers++
	}
	return true
}

// pass gives the lock to those whose turn it is. The caller holds mu.
func (l *RWMutex) pass() {
	for len(l.waiting) > 0 && l.admit(l.waiting[0].write) {
		close(l.waiting[0].turn)
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
	}
	if len(l.waiting) == 0 {
		l.waiting = nil
	}
}
