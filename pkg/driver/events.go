package driver

import (
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/volume"
)

// Events are callbacks for metrics and for the volume's history, each told once for what happens once. Any may be nil. They are called
// from several goroutines and must not block.
type Events struct {
	// Created: the volume came into being.
	Created func(v engine.Volume)
	// Deleted: there is no volume of that ID any more. Told again where the deletion is asked for again.
	Deleted func(id volume.ID)
	// Published: the attachment was opened.
	Published func(a volume.Attachment)
	// Staged: the volume is shown on this node, as e says.
	Staged func(e detach.Entry, d engine.Device)
	// Refused: NodeUnstageVolume was answered with an error.
	Refused func(id volume.ID, cause error)
	// Unclean: the last writer died or was shut out before it had flushed.
	Unclean func(e detach.Entry, d engine.Device)
	// Checked: the filesystem's own check has ended.
	Checked func(e detach.Entry, c Check)
	// Lost: the volume was staged, and its device answers nothing but errors. Told at each stage that meets it.
	Lost func(a volume.Attachment, cause error)
}

// Check is the outcome of a check of a filesystem that was in doubt.
type Check struct {
	Writer volume.Epoch // on whose device it was
	Doubt  engine.Doubt // what was held against the filesystem before
	Report mount.Report
	Err    error // it could not be done
}

// Verdict is the outcome in a word.
func (c Check) Verdict() string {
	switch {
	case c.Err != nil:
		return "failed"
	case c.Report.Clean:
		return "clean"
	}
	return "damaged"
}

// withDefaults fills in what is not wanted.
func (e Events) withDefaults() Events {
	orNothing(&e.Created)
	orNothing(&e.Deleted)
	orNothing(&e.Published)
	or2Nothing(&e.Staged)
	or2Nothing(&e.Refused)
	or2Nothing(&e.Unclean)
	or2Nothing(&e.Checked)
	or2Nothing(&e.Lost)
	return e
}

func orNothing[A any](f *func(A)) {
	if *f == nil {
		*f = func(A) {}
	}
}

func or2Nothing[A, B any](f *func(A, B)) {
	if *f == nil {
		*f = func(A, B) {}
	}
}

func or3Nothing[A, B, C any](f *func(A, B, C)) {
	if *f == nil {
		*f = func(A, B, C) {}
	}
}
