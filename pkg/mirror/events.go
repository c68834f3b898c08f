package mirror

import (
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/volume"
)

// Events reports what happens in a session or an engine. Any may be nil; none may block.
type Events struct {
	// Replicas: members of the volume's replicas are in sync now.
	Replicas func(id volume.ID, members, replicas int)
	// Repaired: a block of a replica was mended.
	Repaired func(id volume.ID)
	// Scrubbed: the background verifier has read so many bytes.
	Scrubbed func(id volume.ID, n volume.Bytes)
	// Engine: the volume's engine process started (true) or ended.
	Engine func(id volume.ID, up bool)
	// Host: the host tells of a device. At least once each, in order; what happened while nobody asked comes later.
	Host func(host.Event)
}

func (e Events) replicas(s *Session) {
	if e.Replicas != nil {
		c := s.Config()
		e.Replicas(s.id, c.Members.Len(), len(c.Voters))
	}
}

func (e Events) repaired(s *Session) {
	if e.Repaired != nil {
		e.Repaired(s.id)
	}
}

func (e Events) scrubbed(s *Session, n volume.Bytes) {
	if e.Scrubbed != nil {
		e.Scrubbed(s.id, n)
	}
}

func (e Events) engine(id volume.ID, up bool) {
	if e.Engine != nil {
		e.Engine(id, up)
	}
}

// meter counts the progress of one piece of work.
type meter struct {
	mu       sync.Mutex
	progress engine.Progress
	total    volume.Bytes
	report   func(engine.Progress)
}

func newMeter(phase string, report func(engine.Progress)) *meter {
	return &meter{progress: engine.Progress{Phase: phase, Since: time.Now().UTC()}, report: report}
}

func (m *meter) add(n volume.Bytes) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.progress.Done += n
	m.progress.Total = max(m.total, m.progress.Done)
	if m.report != nil {
		m.report(m.progress)
	}
}
