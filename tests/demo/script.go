package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// errStory ends the story after a step that failed.
var errStory = errors.New("a step failed; what follows could not make sense")

// script prints one line a step and counts.
type script struct {
	w          io.Writer
	began      time.Time
	step       time.Time
	good, bad  int
	lastFailed string
}

func newScript(w io.Writer) *script {
	now := time.Now()
	return &script{w: w, began: now, step: now}
}

func (s *script) heading(title string) { fmt.Fprintf(s.w, "\n%s\n", title) }

// check prints the step: ok where err is nil. It returns errStory otherwise.
func (s *script) check(what string, err error) error {
	took := time.Since(s.step)
	s.step = time.Now()
	if err == nil {
		s.good++
		fmt.Fprintf(s.w, "  ok    %-100s %6.2f s\n", what, took.Seconds())
		return nil
	}
	s.bad++
	s.lastFailed = what
	fmt.Fprintf(s.w, "  FAIL  %-100s %6.2f s\n        %v\n", what, took.Seconds(), err)
	return errStory
}

// quote shows what somebody said, below the step.
func (s *script) quote(text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fmt.Fprintf(s.w, "        │ %s\n", line)
	}
}

func (s *script) end() error {
	fmt.Fprintf(s.w, "\n%d steps ok, %d failed, %.1f s\n", s.good, s.bad, time.Since(s.began).Seconds())
	if s.bad > 0 {
		return fmt.Errorf("%d steps failed, the last: %s", s.bad, s.lastFailed)
	}
	return nil
}
