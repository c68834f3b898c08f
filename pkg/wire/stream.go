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

// lineWriter puts messages on the connection. A caller that hung up is no error here: its ctx tells the method.
type lineWriter struct{ w http.ResponseWriter }

func (l *lineWriter) write(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		return // all three fields were marshalled before
	}
	_, _ = l.w.Write(append(line, '\n'))
	l.flush()
}

func (l *lineWriter) flush() { _ = http.NewResponseController(l.w).Flush() }

// mailbox holds the newest progress until the connection takes it, so that a slow caller never slows a method down.
type mailbox struct {
	mu     sync.Mutex
	letter json.RawMessage
	closed bool
	wake   chan struct{}
	done   chan struct{}
}

func newMailbox(out *lineWriter) *mailbox {
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

// readStream reads an answer up to its last line. It returns the result, the peer's error, ErrLost where the last line
// is missing, and ErrTooLarge or ErrBadRequest where a line cannot be one. progress may be nil.
func readStream(r io.Reader, codes codebook, progress func(json.RawMessage) error) (json.RawMessage, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, LineMax)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		m, err := parseLine(line)
		switch {
		case err != nil:
			return nil, err
		case m.Error != nil:
			return nil, codes.decode(m.Error)
		case m.Result != nil:
			return m.Result, nil
		case progress != nil:
			if err := progress(m.Progress); err != nil {
				return nil, err
			}
		}
	}
	return nil, endOfStream(lines.Err())
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

func endOfStream(err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("%w: it ended before its result", ErrLost)
	case errors.Is(err, bufio.ErrTooLong):
		return fmt.Errorf("%w: a line of the answer is over %d bytes", ErrTooLarge, LineMax)
	}
	return fmt.Errorf("%w: %w", ErrLost, err)
}

func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
