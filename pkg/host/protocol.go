// Package host keeps the block devices of a machine alive while the engine processes that serve them come and go.
//
// A Host is one small process. It makes each device, holds it open, starts an engine process for it and starts the next
// one where that dies. RunEngine is the other side: the frame of an engine process, which lets an engine take a device
// over from the one before it and yield it to the one after. DESIGN.md has the whole story.
package host

import (
	"encoding/json"
	"maps"
	"time"

	"github.com/belay-storage/belay/pkg/device"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// Protocol is what a host and an engine process speak. A host runs engines of protocolOldest to Protocol, and so does an
// engine with its host, so that either side can be replaced before the other. What an upgrade must keep is in DESIGN.md.
const (
	Protocol       = 1
	protocolOldest = 1
)

// Codes are the errors that keep their identity on the host's socket.
var Codes = codes()

func codes() map[string]error {
	all := maps.Clone(engine.Codes)
	all["device-in-use"] = device.ErrInUse
	all["rolled-back"] = ErrRolledBack
	all["not-serving"] = ErrNotServing
	return all
}

// opening is the first line that an engine process is told on its standard input. The input stays open for as long as its
// host lives.
type opening struct {
	Protocol int       `json:"protocol"`
	Volume   volume.ID `json:"volume"`
	Socket   string    `json:"socket"` // where it shall answer
	Words    string    `json:"words"`  // file for its last words
}

// hello is the only line that an engine process says on its standard output, once it answers at its socket.
type hello struct {
	Protocol  int    `json:"protocol"`
	Version   string `json:"version"`
	FormatMin int    `json:"formatMin"` // formats of replicas on disk that it reads and writes
	FormatMax int    `json:"formatMax"`
	Error     string `json:"error,omitempty"` // why it cannot serve
}

// Take is what an engine is given with a device.
type Take struct {
	// Order is the engine's own, as its node half made it.
	Order json.RawMessage `json:"order"`
	// Warm says that the guest's device is alive: what the engine before acknowledged is owed to the guest, and what it did
	// not answer is asked again.
	Warm bool `json:"warm,omitempty"`
	// Resend has the kernel ask again what the engine before did not answer.
	Resend bool `json:"resend,omitempty"`
	// Previous is the Info of the engine before, nil where there was none.
	Previous json.RawMessage `json:"previous,omitempty"`
	// Words are the last words of the engine before, nil where it died without.
	Words json.RawMessage `json:"words,omitempty"`
	// Self is the process that takes it.
	Self Identity `json:"-"`
}

// taken answers a Take.
type taken struct {
	Info json.RawMessage `json:"info"`
}

// yielding bounds how long requests in flight may take.
type yielding struct {
	Within time.Duration `json:"within"`
}

// pulse is what an engine process says of itself at any time.
type pulse struct {
	Serving bool   `json:"serving"`
	Format  int    `json:"format"` // of what it serves
	Served  uint64 `json:"served"` // requests answered
	Resent  uint64 `json:"resent"` // requests that the engine before had taken and not answered
	// Waiting is how long the device has had requests in flight without one being answered.
	Waiting time.Duration `json:"waiting"`
}

// nothing is an empty request or answer.
type nothing struct{}

// Methods that every engine process answers. Its own have other names.
const (
	methodTake    = "host/take"
	methodPrepare = "host/prepare"
	methodYield   = "host/yield"
	methodPulse   = "host/pulse"
	methodEnd     = "host/end"
)
