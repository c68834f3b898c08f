package host

import (
	"context"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Kind is what happened to a device.
type Kind string

// Kinds of events.
const (
	Attached   Kind = "attached"
	Died       Kind = "engine-died"
	TakenOver  Kind = "taken-over" // by the engine after one that died
	Upgraded   Kind = "upgraded"
	RolledBack Kind = "rolled-back"
	GivenUp    Kind = "lost"
	Detached   Kind = "detached"
)

// Event is something that happened to a device.
type Event struct {
	Sequence uint64    `json:"sequence"` // of this host, from 1
	At       time.Time `json:"at"`
	Volume   volume.ID `json:"volume"`
	Kind     Kind      `json:"kind"`
	Cause    string    `json:"cause,omitempty"`
	From     string    `json:"from,omitempty"` // version
	To       string    `json:"to,omitempty"`
	// Pause is how long requests waited.
	Pause time.Duration `json:"pause,omitempty"`
}

// eventsMax is how many events are kept for whoever asks later.
const eventsMax = 1000

// events keeps the newest events and wakes whoever waits for the next.
type events struct {
	mu      sync.Mutex
	kept    []Event
	last    uint64
	changed chan struct{}
	waiting int // watchers
}

func newEvents() *events { return &events{changed: make(chan struct{})} }

func (s *events) add(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	e.Sequence, e.At = s.last, time.Now().UTC()
	s.kept = append(s.kept, e)
	if len(s.kept) > eventsMax {
		s.kept = append([]Event(nil), s.kept[len(s.kept)-eventsMax:]...)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// after waits for events behind the sequence and returns them; none where ctx ends first.
func (s *events) after(ctx context.Context, sequence uint64) []Event {
	for {
		got, changed := s.since(sequence)
		if len(got) > 0 {
			return got
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *events) since(sequence uint64) ([]Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Event
	for _, e := range s.kept {
		if e.Sequence > sequence {
			out = append(out, e)
		}
	}
	return out, s.changed
}

func (s *events) watch(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting += n
}

func (s *events) watchers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}
