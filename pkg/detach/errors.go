// Package detach is the way out: the gate that decides whether a volume may be let go of, and the work that earns a receipt.
package detach

import "errors"

// Errors of a detach that was not finished. The volume stays attached under every one of them. Those of pkg/engine
// come through as they are: engine.ErrUnavailable means that too few replicas answer and nothing was touched.
var (
	// ErrHeld: refused; somebody uses the volume, or may. The message names who, where, and what to do.
	ErrHeld = errors.New("volume is held")
	// ErrInProgress: not finished yet; the work goes on without the caller, who asks again. The message tells how far it is.
	ErrInProgress = errors.New("detach in progress")
	// ErrNodeSilent: refused for now; the node does not answer and nothing says that it is lost, so nobody is fenced.
	ErrNodeSilent = errors.New("node does not answer")
	// ErrDataLoss: refused until a person decides; copies disagree, nobody can tell which is right, and the volume is quarantined.
	ErrDataLoss = errors.New("copies disagree")
	// ErrWriteback is for a Releaser: the file system says that it could not write data back. The detach goes on
	// and its receipt says that it was not clean.
	ErrWriteback = errors.New("file system could not write data back")
	// ErrOverride: refused; the override names another epoch, has no reason or nobody to answer for it, or there is nothing to override.
	ErrOverride = errors.New("override does not apply")
	// ErrJournal: the journal's entry for the volume cannot be read or trusted. It is never dropped.
	ErrJournal = errors.New("stage journal entry is damaged")
)
