package host

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// Errors beyond those of package engine.
var (
	// ErrRolledBack: refused; the new engine could not serve and the old one serves on.
	ErrRolledBack = errors.New("rolled back")
	// ErrNotServing: refused for now; no engine serves the device at this moment.
	ErrNotServing = errors.New("no engine serves the device now")
)

// State is what becomes of requests to a device.
type State string

// States of a device.
const (
	Attaching State = "attaching" // no device yet: its first engine recovers the volume
	Serving   State = "serving"   // answered
	Waiting   State = "waiting"   // they wait: the engine died, and the next one cannot start yet
	Upgrading State = "upgrading" // answered, with a short pause while engines change places
	Lost      State = "lost"      // each fails: the device was given up
)

// Spec is a device to be made.
type Spec struct {
	Volume volume.ID `json:"volume"`
	// Name is what the kernel keeps of the device.
	Name      string `json:"name"`
	BlockSize int    `json:"blockSize"`
	// Executable is the engine's program: the file, not the name, is kept, so that its replacement changes nothing.
	Executable string          `json:"executable"`
	Order      json.RawMessage `json:"order"`
	// Key tells one attachment of the volume from another.
	Key string `json:"key"`
}

// Device is what the host says of a device.
type Device struct {
	Volume volume.ID `json:"volume"`
	Name   string    `json:"name"`
	Key    string    `json:"key"`
	Path   string    `json:"path"`
	State  State     `json:"state"`
	// Cause is why State is Waiting or Lost, and since when.
	Cause string    `json:"cause,omitempty"`
	Since time.Time `json:"since"`
	// Engine is the process that serves, or served last.
	Engine Engine `json:"engine"`
	// First is the Info of the first engine of this device, Info that of the newest.
	First json.RawMessage `json:"first,omitempty"`
	Info  json.RawMessage `json:"info,omitempty"`
	// Deaths is how many engines of this device ended unasked.
	Deaths int `json:"deaths"`
	// Pause is how long the last change of engines kept requests waiting.
	Pause time.Duration `json:"pause,omitempty"`
}

// Engine is an engine process.
type Engine struct {
	PID     int       `json:"pid"`
	Start   string    `json:"start"` // ticks since boot; with PID it names a process for ever
	Version string    `json:"version"`
	Socket  string    `json:"socket"`
	Since   time.Time `json:"since"` // it serves
}

// Upgrade is the outcome of an upgrade.
type Upgrade struct {
	Volume volume.ID `json:"volume"`
	From   string    `json:"from"` // version
	To     string    `json:"to"`
	// Pause is how long requests waited.
	Pause time.Duration `json:"pause"`
}
