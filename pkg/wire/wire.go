// Package wire carries calls between the processes of one machine: JSON over HTTP on a unix socket, with progress and typed errors.
//
//	POST /v1/METHOD       the request, one JSON value of at most RequestMax bytes
//	200 OK                one JSON object a line:
//	  {"progress":…}      any number of times
//	  {"result":…}        or {"error":{"codes":["not-found"],"message":"…"}}, once, the last line
//
// Both sides state their protocol version in the header Belay-Wire and refuse another. An answer that ends without
// its last line is an outcome unknown (ErrLost). It imports nothing of ours.
package wire

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Version is the version of the protocol. Both sides refuse to talk to any other.
const Version = "1"

// Caps on what is read from the other side.
const (
	RequestMax = 4 << 20  // bytes of a request
	LineMax    = 32 << 20 // bytes of one line of an answer
)

const (
	versionHeader = "Belay-Wire"
	pathPrefix    = "/v1/"
	contentType   = "application/x-ndjson"
)

// Errors of the transport. Those of the peer's own work come from the codes that both sides were made with.
var (
	// ErrNotRunning: refused; nobody listens at the socket.
	ErrNotRunning = errors.New("not running")
	// ErrLost: unknown; the connection broke, or the peer died, before the answer was whole.
	ErrLost = errors.New("answer lost")
	// ErrInUse: refused; somebody else already listens at the socket.
	ErrInUse = errors.New("socket in use")
	// ErrPeer: refused; the other end belongs to a user who is neither root nor the caller.
	ErrPeer = errors.New("peer not trusted")
	// ErrVersion: refused; the other side speaks another version of this protocol.
	ErrVersion = errors.New("protocol version differs")
	// ErrUnknownMethod: refused; the peer has no such method.
	ErrUnknownMethod = errors.New("unknown method")
	// ErrBadRequest: refused; the request cannot be read.
	ErrBadRequest = errors.New("bad request")
	// ErrTooLarge: refused; the request or a line of the answer is over its cap.
	ErrTooLarge = errors.New("message too large")
	// ErrPanic: unknown; the method failed on a broken invariant of the peer.
	ErrPanic = errors.New("internal failure")
)

// ownCodes are known on both sides of every connection.
var ownCodes = map[string]error{
	"wire-version": ErrVersion, "wire-unknown-method": ErrUnknownMethod, "wire-bad-request": ErrBadRequest,
	"wire-too-large": ErrTooLarge, "wire-panic": ErrPanic,
	"canceled": context.Canceled, "deadline-exceeded": context.DeadlineExceeded,
}

// Error is an error that crossed a socket: it has the message of the original, and errors.Is finds every sentinel
// that the original wrapped and both sides know by a code.
type Error struct {
	Codes   []string `json:"codes,omitempty"`
	Message string   `json:"message"`

	wrapped []error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the sentinels that the codes stand for.
func (e *Error) Unwrap() []error { return e.wrapped }

// codebook translates between sentinels and their codes.
type codebook map[string]error

func newCodebook(codes map[string]error) codebook {
	all := maps.Clone(ownCodes)
	maps.Copy(all, codes)
	return all
}

func (b codebook) encode(err error) *Error {
	e := &Error{Message: err.Error()}
	for code, sentinel := range b {
		if errors.Is(err, sentinel) {
			e.Codes = append(e.Codes, code)
		}
	}
	slices.Sort(e.Codes)
	return e
}

// decode fills in the sentinels of e. A code that this side does not know leaves an error that wraps less, never another.
func (b codebook) decode(e *Error) error {
	for _, code := range e.Codes {
		if sentinel, ok := b[code]; ok {
			e.wrapped = append(e.wrapped, sentinel)
		}
	}
	return e
}

func versionError(theirs string) error {
	if theirs == "" {
		theirs = "none"
	}
	return fmt.Errorf("%w: this side speaks %s, the other %s; run one version of belay on both sides", ErrVersion, Version, theirs)
}
