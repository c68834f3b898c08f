// Package telemetry is what operators see from outside: the log's form, Prometheus metrics and health, wired in cmd only.
//
// Nothing that is measured knows of this package: others report through callbacks, whose signatures the methods of
// [Metrics] have in plain types.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
)

// Formats of the log.
const (
	Text = "text"
	JSON = "json"
)

// NewLogger returns a logger that writes to w in the format, Text or JSON. Verbosity 0 is what an operator wants during an
// incident: state changes, each once. 1 and more is everything.
func NewLogger(w io.Writer, format string, verbosity int) (*slog.Logger, error) {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if verbosity > 0 {
		o.Level = slog.LevelDebug
	}
	switch format {
	case Text:
		return slog.New(slog.NewTextHandler(w, o)), nil
	case JSON:
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	return nil, fmt.Errorf("log format %q: want %s or %s", format, Text, JSON)
}
