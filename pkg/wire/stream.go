package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// lineOverhead is more than a message adds to what it carries.
const lineOverhead = 64

// message is one line of an answer: exactly one field is set.
type message struct {
	Progress json.RawMessage `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// lineWriter puts a line on its way to the caller. One that hung up is no error here: its ctx tells the method.
type lineWriter func(line []byte)

func (w lineWriter) write(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		return // all three fields were marshalled before
	}
	w(line)
}

// linesOn puts lines on a connection.
func linesOn(w http.ResponseWriter) lineWriter {
	return func(line []byte) {
		_, _ = w.Write(append(line, '\n'))
		flush(w)
	}
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

// mailbox holds the newest progress until the connection takes it, so that a slow caller never slows a method down.
type mailbox struct {
	mu     sync.Mutex
	letter json.RawMessage
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

func newMailbox(out lineWriter) *mailbox {
	b := &mailbox{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		for range b.wake {
			if letter := b.take(); letter != nil {
				out.write(message{Progress: letter})
			}
		}
	}()
	return b
}

func (b *mailbox) send(p any) {
	letter, err := json.Marshal(p)
	if err != nil || len(letter) > LineMax-lineOverhead {
		return // progress is a courtesy; the result still comes
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.letter = letter
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *mailbox) take() json.RawMessage {
	b.mu.Lock()
	defer b.mu.Unlock()
	letter := b.letter
	b.letter = nil
	return letter
}

// close returns when the last letter is on its way and no other will follow.
func (b *mailbox) close() {
	b.mu.Lock()
	b.closed = true
	close(b.wake)
	b.mu.Unlock()
	<-b.done
}

// answer is what has arrived of an answer: once it has ended, the result or the peer's error, or ErrBadRequest where a line is none.
type answer struct {
	codes    codebook
	progress func(json.RawMessage) error // may be nil

	ended  bool
	result json.RawMessage
	err    error
}

// more takes the next line and says whether it wants another.
func (a *answer) more(line []byte) bool {
	m, err := parseLine(line)
	switch {
	case err != nil:
		a.end(nil, err)
	case m.Error != nil:
		a.end(nil, a.codes.decode(m.Error))
	case m.Result != nil:
		a.end(m.Result, nil)
	case a.progress != nil:
		if err := a.progress(m.Progress); err != nil {
			a.end(nil, err)
		}
	}
	return !a.ended
}

func (a *answer) end(result json.RawMessage, err error) { a.ended, a.result, a.err = true, result, err }

// readLines hands over each line until more returns false. ErrTooLarge where one is over LineMax.
func readLines(r io.Reader, more func([]byte) bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, LineMax)
	for lines.Scan() {
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 && !more(line) {
			return nil
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("%w: a line of the answer is over %d bytes", ErrTooLarge, LineMax)
	}
	return lines.Err()
}

func parseLine(line []byte) (m message, err error) {
	if err := json.Unmarshal(line, &m); err != nil {
		return m, fmt.Errorf("%w: answer %q: %w", ErrBadRequest, clip(string(line)), err)
	}
	set := 0
	for _, is := range []bool{m.Progress != nil, m.Result != nil, m.Error != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return m, fmt.Errorf("%w: answer %q: want one of progress, result and error", ErrBadRequest, clip(string(line)))
	}
	return m, nil
}

func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
