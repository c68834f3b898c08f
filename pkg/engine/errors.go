package engine

import "errors"

// Errors of an engine. Each says which of the three outcomes it is: done (no error), refused, or unknown.
var (
	// ErrUnsupported: refused; the engine does not state the capability. Never a silent success.
	ErrUnsupported = errors.New("not supported by this engine")
	// ErrInvalid: refused; a parameter is unknown or malformed.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: refused; provably no such volume, attachment or device.
	ErrNotFound = errors.New("not found")
	// ErrExists: refused; something else has that name.
	ErrExists = errors.New("already exists and differs")
	// ErrOutOfRange: refused; no volume can have that size.
	ErrOutOfRange = errors.New("out of range")
	// ErrNoSpace: refused; the replicas' places do not hold that much.
	ErrNoSpace = errors.New("not enough space")
	// ErrBusy: refused for now; another operation on the volume runs.
	ErrBusy = errors.New("another operation is running")
	// ErrAttached: refused; the volume is attached, or may be.
	ErrAttached = errors.New("attached")
	// ErrNotStopped: refused; a writer may still write.
	ErrNotStopped = errors.New("writer not stopped")
	// ErrNotSealed: refused; no seal or no receipt is in force.
	ErrNotSealed = errors.New("not sealed")
	// ErrStaleEpoch: refused for ever; somebody newer has taken the place.
	ErrStaleEpoch = errors.New("epoch is not current")
	// ErrUnavailable: refused for now; too few replicas answer. Nothing was touched, nothing is lost.
	ErrUnavailable = errors.New("too few replicas answer")
	// ErrDeviceLost: the device answers nothing but errors; detach it and attach anew.
	ErrDeviceLost = errors.New("device lost")
	// ErrQuarantined: refused until a person decides; copies disagree and nobody can tell which is right.
	ErrQuarantined = errors.New("quarantined: copies disagree")
	// ErrNotNeeded: refused; the rules suffice, and a person has nothing to decide.
	ErrNotNeeded = errors.New("not needed")
)

// Codes names the errors where they cross a process boundary.
var Codes = map[string]error{
	"unsupported": ErrUnsupported, "invalid": ErrInvalid, "not-found": ErrNotFound, "exists": ErrExists,
	"out-of-range": ErrOutOfRange, "no-space": ErrNoSpace, "busy": ErrBusy, "attached": ErrAttached,
	"not-stopped": ErrNotStopped, "not-sealed": ErrNotSealed, "stale-epoch": ErrStaleEpoch,
	"unavailable": ErrUnavailable, "device-lost": ErrDeviceLost, "quarantined": ErrQuarantined,
	"not-needed": ErrNotNeeded,
}
