package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/volume"
)

// History is what is asked of the histories.
type History interface {
	Read(ctx context.Context, id volume.ID) (history.History, error)
}

// Why is the gate's report with what else is known of the volume.
type Why struct {
	detach.Report
	Checking     string          `json:"checking,omitempty"` // how far the check of its filesystem is, which runs now
	History      []history.Entry `json:"history,omitempty"`  // the newest entries, oldest first
	HistoryError string          `json:"historyError,omitempty"`
}

// whyEntries is how much of the history `belay why` shows.
const whyEntries = 6

// Text is the report on one screen.
func (w Why) Text() string {
	var b strings.Builder
	b.WriteString(w.Report.Text())
	if w.Checking != "" {
		fmt.Fprintf(&b, "%-10s %s\n", "now", w.Checking)
	}
	if w.HistoryError != "" {
		fmt.Fprintf(&b, "%-10s cannot be read: %s\n", "history", w.HistoryError)
	}
	for _, e := range w.History {
		fmt.Fprintf(&b, "%-10s %s\n", "history", e)
	}
	return b.String()
}

func (s server) why(ctx context.Context, n named, _ func(none)) (Why, error) {
	v, err := s.resolve(ctx, n.Volume)
	if err != nil {
		return Why{}, err
	}
	r, err := s.Gate.Why(ctx, v.ID)
	if err != nil {
		return Why{}, err
	}
	w := Why{Report: r, Checking: s.Checking(v.ID)}
	h, err := s.History.Read(ctx, v.ID)
	w.History, w.HistoryError = h.Newest(whyEntries), text(err)
	return w, nil
}

// history answers also where the engine cannot, as when its stores are away: then people ask most.
func (s server) history(ctx context.Context, n named, _ func(none)) (history.History, error) {
	v, err := s.resolve(ctx, n.Volume)
	if err == nil {
		return s.History.Read(ctx, v.ID)
	}
	id, nameErr := volume.IDForName(n.Volume)
	if nameErr != nil || errors.Is(err, engine.ErrNotFound) {
		return history.History{}, err
	}
	h, readErr := s.History.Read(ctx, id)
	if readErr != nil || len(h.Entries) == 0 {
		return history.History{}, err
	}
	return h, nil
}
