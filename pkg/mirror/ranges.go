package mirror

import "sync"

// ranges locks ranges of blocks, shared or exclusive. Overlapping writes must reach every replica in one order, or the
// replicas differ. Locks are held for one request, so the list is as long as requests are in flight.
type ranges struct {
	mu   sync.Mutex
	held []*span
}

type span struct {
	first, end int64
	exclusive  bool
	released   chan struct{} // made by the first that waits for it
}

func (s *span) conflicts(o *span) bool {
	return s.first < o.end && o.first < s.end && (s.exclusive || o.exclusive)
}

// lock waits until no conflicting range is held and takes [first, first+n). Give the result to unlock.
func (r *ranges) lock(first, n int64, exclusive bool) *span {
	want := &span{first: first, end: first + n, exclusive: exclusive}
	for {
		blocker := r.try(want)
		if blocker == nil {
			return want
		}
		<-blocker
	}
}

func (r *ranges) try(want *span) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held {
		if h.conflicts(want) {
			if h.released == nil {
				h.released = make(chan struct{})
			}
			return h.released
		}
	}
	r.held = append(r.held, want)
	return nil
}

func (r *ranges) unlock(s *span) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, h := range r.held {
		if h == s {
			last := len(r.held) - 1
			r.held[i] = r.held[last]
			r.held[last] = nil
			r.held = r.held[:last]
			break
		}
	}
	if s.released != nil {
		close(s.released)
	}
}
