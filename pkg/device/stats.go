package device

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Stats is what a Server has done so far. Counts include requests that failed.
type Stats struct {
	Reads, ReadBytes   uint64
	Writes, WriteBytes uint64
	Flushes            uint64
	Discards           uint64 // requests to give a range back
	Zeroes             uint64 // requests to make a range read as zeros
	Failed             uint64 // requests answered with an error
	Resent             uint64 // requests that an earlier server had taken and not answered
	Orphaned           uint64 // replies to requests that the kernel did not know any more
	Inflight           int64  // requests being served now
	MemoryBytes        int64  // mapped for large requests
}

type counters struct {
	reads, readBytes, writes, writeBytes, flushes, discards, zeroes atomic.Uint64
	failed, resent, orphaned                                        atomic.Uint64
	inflight                                                        atomic.Int64
}

func (c *counters) count(m *message) {
	if m.resent() {
		c.resent.Add(1)
	}
	switch m.opcode {
	case opRead:
		c.reads.Add(1)
		c.readBytes.Add(uint64(m.length))
	case opWrite:
		c.writes.Add(1)
		c.writeBytes.Add(uint64(m.length))
	case opFsync:
		c.flushes.Add(1)
	case opFallocate:
		c.countFallocate(m.mode)
	}
}

func (c *counters) countFallocate(mode uint32) {
	if mode&fallocZeroRange != 0 {
		c.zeroes.Add(1)
		return
	}
	c.discards.Add(1)
}

// Stats returns the present figures. It may be called at any time.
func (s *Server) Stats() Stats {
	c := &s.counters
	return Stats{
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(), Writes: c.writes.Load(), WriteBytes: c.writeBytes.Load(),
		Flushes: c.flushes.Load(), Discards: c.discards.Load(), Zeroes: c.zeroes.Load(),
		Failed: c.failed.Load(), Resent: c.resent.Load(), Orphaned: c.orphaned.Load(),
		Inflight: c.inflight.Load(), MemoryBytes: s.buffers.mappedBytes(),
	}
}

// failureLog reports failed requests, at most one in failureEvery: a dead disk fails thousands a second.
type failureLog struct {
	log *slog.Logger

	mu       sync.Mutex
	last     time.Time
	withheld int
}

const failureEvery = time.Second

func (f *failureLog) report(m *message, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.last) < failureEvery {
		f.withheld++
		return
	}
	f.log.Error("request failed", "request", m.name(), "offset", m.offset, "bytes", m.length, "error", err, "withheld", f.withheld)
	f.last, f.withheld = time.Now(), 0
}

func (m *message) name() string {
	switch m.opcode {
	case opRead:
		return "read"
	case opWrite:
		return "write"
	case opFsync:
		return "flush"
	case opFallocate:
		return "discard or zero"
	}
	return "other"
}
