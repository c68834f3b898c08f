package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// FuzzReadStream: an answer of any text is a result, an error of the peer, or an outcome unknown.
func FuzzReadStream(f *testing.F) {
	f.Add([]byte("{\"progress\":{\"Done\":1}}\n{\"result\":null}\n"))
	f.Add([]byte("{\"error\":{\"codes\":[\"gone\",\"new\"],\"message\":\"m\"}}\n"))
	f.Add([]byte("{\"progress\":1}"))
	f.Add([]byte("{\"result\":1,\"error\":{}}\n"))
	f.Add([]byte("\n\n{}\nnull\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := read(bytes.NewReader(in), newCodebook(codes), func(p json.RawMessage) error {
			if !json.Valid(p) {
				t.Errorf("progress %q", p)
			}
			return nil
		})
		peers := errors.As(err, new(*Error))
		if known := errors.Is(err, ErrLost) || errors.Is(err, ErrBadRequest) || errors.Is(err, ErrTooLarge); err != nil && !peers && !known {
			t.Errorf("%q: %v", in, err)
		}
		if err == nil && (got == nil || !json.Valid(got)) {
			t.Errorf("%q: result %q", in, got)
		}
		if text := string(in); err == nil && !strings.Contains(strings.ToLower(text), "result") && !strings.Contains(text, "\\u") {
			t.Errorf("%q: a result", in)
		}
	})
}

// FuzzRequest asks a server anything: what is no request of a method that it has is refused, and every answer can be read by a client.
func FuzzRequest(f *testing.F) {
	s := NewServer(codes, quiet())
	Handle(s, "count", func(_ context.Context, a ask, progress func(step)) (ask, error) {
		progress(step{a.N})
		if a.N < 0 {
			return a, fmt.Errorf("%w: %d", errGone, a.N)
		}
		return ask{a.N + 1}, nil
	})
	f.Add("POST", "/v1/count", Version, []byte(`{"N":7}`))
	f.Add("POST", "/v1/count", Version, []byte(`{"N":-1}`))
	f.Add("POST", "/v1/count", "2", []byte(`{}`))
	f.Add("GET", "/v1/count", Version, []byte(nil))
	f.Add("POST", "/v1/other", Version, []byte(`{"N":`))
	f.Add("POST", "/count", Version, []byte(`null`))
	f.Fuzz(func(t *testing.T, verb, path, version string, body []byte) {
		if strings.ContainsAny(verb+path, " \t\r\n%?#\x00") || verb == "" || !strings.HasPrefix(path, "/") {
			return // no line of HTTP
		}
		r, err := http.NewRequest(verb, "http://belay"+path, bytes.NewReader(body))
		if err != nil {
			return
		}
		r.Header.Set(versionHeader, version)
		w := httptest.NewRecorder()
		s.answer(w, r)
		result, err := read(w.Body, newCodebook(codes), nil)
		var a, got ask
		invalid := json.Unmarshal(body, &a)
		switch name, good := strings.CutPrefix(r.URL.Path, pathPrefix); {
		case version != Version:
			mustBe(t, w.Code, http.StatusUpgradeRequired, err, ErrVersion)
		case !good && r.URL.Path != "count" || good && name != "count":
			mustBe(t, w.Code, http.StatusNotFound, err, ErrUnknownMethod)
		case verb != http.MethodPost:
			mustBe(t, w.Code, http.StatusMethodNotAllowed, err, ErrBadRequest)
		case invalid != nil:
			mustBe(t, w.Code, http.StatusOK, err, ErrBadRequest)
		case a.N < 0:
			mustBe(t, w.Code, http.StatusOK, err, errGone)
		default:
			if err != nil || json.Unmarshal(result, &got) != nil || got.N != a.N+1 {
				t.Errorf("%q: %s, %v", body, result, err)
			}
		}
	})
}

func mustBe(t *testing.T, status, want int, err, sentinel error) {
	t.Helper()
	if status != want || !errors.Is(err, sentinel) {
		t.Errorf("status %d, %v; want %d, %v", status, err, want, sentinel)
	}
}

// FuzzError: an error that crosses a socket wraps what it wrapped, as far as both sides know it, and nothing else.
func FuzzError(f *testing.F) {
	f.Add("m", true, false, []byte(`{"codes":["gone"],"message":"x"}`))
	f.Add("", false, false, []byte(`{"codes":["canceled","gone","gone","new"],"message":""}`))
	f.Add("\xff", true, true, []byte(`{}`))
	f.Fuzz(func(t *testing.T, text string, gone, other bool, raw []byte) {
		book := newCodebook(codes)
		sent := errors.New(text)
		for sentinel, is := range map[error]bool{errGone: gone, errOther: other} {
			if is {
				sent = errors.Join(sent, sentinel)
			}
		}
		line, err := json.Marshal(book.encode(sent))
		var e, theirs Error
		if err != nil || json.Unmarshal(line, &e) != nil {
			t.Fatalf("%v cannot be sent: %s, %v", sent, line, err)
		}
		if got := book.decode(&e); errors.Is(got, errGone) != gone || errors.Is(got, errOther) != other || errors.Is(got, ErrLost) {
			t.Errorf("%v arrived as %v", sent, got)
		}
		if json.Unmarshal(raw, &theirs) == nil {
			got := book.decode(&theirs)
			for code, sentinel := range book {
				if errors.Is(got, sentinel) != slices.Contains(theirs.Codes, code) {
					t.Errorf("%q arrived as %v, which is %v: %t", raw, got, sentinel, errors.Is(got, sentinel))
				}
			}
		}
	})
}
