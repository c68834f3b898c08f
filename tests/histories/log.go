package histories

import (
	"sync"
	"time"
)

// Kind is what a client, or whoever ends devices, did.
type Kind string

// The kinds. A Flush and a Loss are of all sectors.
const (
	Write Kind = "write"
	Read  Kind = "read"
	Flush Kind = "flush" // also a receipt: what was written before is stable
	Loss  Kind = "loss"  // from the moment at which it may have happened on, until the device that came instead is there
	// Restart is that of who serves the device, which itself lives. A write that was under way then may have been done and be done again.
	Restart Kind = "restart"
)

// Operation is something that was done between two moments.
type Operation struct {
	Client int
	Kind   Kind
	// First is the first sector; there are as many as Values.
	First int64
	// Values are what was read, or what was written, sector by sector.
	Values []Value
	// Durable is a write that was to be stable when it is answered.
	Durable bool
	// Unanswered is true where an error was the answer: it took effect in some sectors, or in none, before Return or never.
	Unanswered bool
	// Call and Return are nanoseconds of the log's clock; the operation happened between them.
	Call, Return int64
}

// Log is what happened to one device. It may be used by several goroutines.
type Log struct {
	begin time.Time
	mu    sync.Mutex
	all   []Operation
}

// NewLog is an empty log whose clock starts now.
func NewLog() *Log { return &Log{begin: time.Now()} }

// Now is the log's clock.
func (l *Log) Now() int64 { return int64(time.Since(l.begin)) }

// Add records an operation that has ended.
func (l *Log) Add(o Operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, o)
}

// Operations are those recorded so far, in the order in which they were recorded.
func (l *Log) Operations() []Operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Operation(nil), l.all...)
}
