package telemetry

import (
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Call notes a CSI call: its full method, the name of its gRPC status code, and how long it took.
func (m *served) Call(method, code string, took time.Duration) {
	m.calls.WithLabelValues(m.driver, method, code).Observe(took.Seconds())
}

// DetachRefused notes that the gate did not let a detach finish, for the reason, a short fixed word.
func (m *Metrics) DetachRefused(reason string) { m.refused.WithLabelValues(reason).Inc() }

// BarrierStarted notes that the work which ends in a receipt began. Starting again after a failure goes on counting.
func (m *Metrics) BarrierStarted(id volume.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.barriers[id] == nil {
		m.barriers[id] = &barrier{since: time.Now()}
	}
	m.running.Set(float64(len(m.barriers)))
}

// BarrierVerified notes how much of the volume has been read back so far.
func (m *Metrics) BarrierVerified(id volume.ID, done volume.Bytes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.barriers[id]; b != nil {
		b.verified = max(b.verified, done)
	}
}

// Receipt notes that a receipt of the kind is in force: the volume is detached.
func (m *Metrics) Receipt(id volume.ID, kind string) {
	m.receipts.WithLabelValues(kind).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.barriers[id]; b != nil {
		m.seconds.Observe(time.Since(b.since).Seconds())
		m.bytes.Observe(float64(b.verified))
	}
	delete(m.barriers, id)
	m.running.Set(float64(len(m.barriers)))
	m.released[id] = true
	m.drop(id)
}

// Fenced notes that a lost writer was shut out.
func (m *Metrics) Fenced() { m.fences.Inc() }

// Quarantined notes that a volume was quarantined.
func (m *Metrics) Quarantined() { m.quarantined.Inc() }

// Unclean notes that a volume was staged whose last writer had not flushed.
func (m *Metrics) Unclean() { m.unclean.Inc() }

// Checked notes that a filesystem in doubt was checked, with the verdict, a short fixed word.
func (m *Metrics) Checked(verdict string, took time.Duration) {
	m.checks.WithLabelValues(verdict).Observe(took.Seconds())
}

// Repaired notes that a block of a replica was mended.
func (m *Metrics) Repaired() { m.repaired.Inc() }

// Replicas notes how many of a volume's replicas are in sync.
func (m *Metrics) Replicas(id volume.ID, inSync, replicas int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.released[id] {
		return
	}
	m.inSync.WithLabelValues(string(id)).Set(float64(inSync))
	m.wanted.WithLabelValues(string(id)).Set(float64(replicas))
}

// Scrubbed notes that the background verifier has read n more bytes.
func (m *Metrics) Scrubbed(id volume.ID, n volume.Bytes) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.released[id] {
		m.scrubbed.WithLabelValues(string(id)).Add(float64(n))
	}
}

// Engine notes that a volume's engine started, or that it ended: 0 stays to be seen where there was no receipt first.
func (m *Metrics) Engine(id volume.ID, up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case up:
		delete(m.released, id)
		m.engineUp.WithLabelValues(string(id)).Set(1)
	case m.released[id]:
		delete(m.released, id)
		m.drop(id)
	default:
		m.engineUp.WithLabelValues(string(id)).Set(0)
	}
}

// drop ends the volume's own series. mu is held.
func (m *Metrics) drop(id volume.ID) {
	for _, vec := range []interface{ DeleteLabelValues(...string) bool }{m.engineUp, m.inSync, m.wanted, m.scrubbed} {
		vec.DeleteLabelValues(string(id))
	}
}
