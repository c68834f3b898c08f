package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// strictGate counts what reaches it of what must be whole.
type strictGate struct{ wrong error }

func (g *strictGate) Why(_ context.Context, id volume.ID) (detach.Report, error) {
	g.named(id)
	return detach.Report{}, nil
}

func (g *strictGate) Override(_ context.Context, o detach.Override) error {
	g.named(o.Volume)
	return fmt.Errorf("%w: nobody overrides here", detach.ErrOverride)
}

func (g *strictGate) Salvage(_ context.Context, o detach.Salvage, _ func(engine.Progress)) (receipt.Receipt, error) {
	g.named(o.Volume)
	return receipt.Receipt{}, engine.ErrNotNeeded
}

func (g *strictGate) named(id volume.ID) {
	if _, err := volume.ParseID(string(id)); err != nil {
		g.wrong = errors.Join(g.wrong, err)
	}
}

// FuzzRequest asks a server anything over its socket: it answers every request with one result or one error that says of which kind it is, and
// nothing that is no volume's ID reaches the gate.
func FuzzRequest(f *testing.F) {
	methods := []string{methodAbout, methodVolumes, methodReceipts, methodVerify, methodWhy, methodFence, methodUpgrade, methodHistory, methodPlan, methodSalvage}
	for i := range methods {
		f.Add(uint8(i), []byte(`{"volume":"pvc-1"}`))
		f.Add(uint8(i), []byte(`{"volume":"../x"}`))
		f.Add(uint8(i), []byte(`null`))
	}
	f.Add(uint8(5), []byte(`{"volume":"pvc-1","epoch":3,"reason":"it burns","actor":"ann"}`))
	f.Add(uint8(9), []byte(`{"volume":"pvc-1","from":"a","reason":"it burns","actor":"ann","kill":true}`))
	f.Add(uint8(5), []byte(`{"volume":7,"epoch":-1}`))
	gate, client := &strictGate{}, rawClient(f)
	client.gate(gate)
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		method := methods[int(which)%len(methods)]
		result, failure := client.ask(t, method, body)
		if (result == nil) == (failure == nil) {
			t.Errorf("%s %q: result %q, error %+v", method, body, result, failure)
		}
		if failure != nil && (len(failure.Codes) == 0 || failure.Message == "") {
			t.Errorf("%s %q: %+v", method, body, failure)
		}
		if !json.Valid(body) && result != nil {
			t.Errorf("%s %q: result %s", method, body, result)
		}
		if gate.wrong != nil {
			t.Errorf("%s %q: the gate was asked of %v", method, body, gate.wrong)
			gate.wrong = nil
		}
	})
}

// rawAsker speaks to a server as whoever may open its socket can.
type rawAsker struct {
	f    *testing.F
	http http.Client
	sock string
}

func rawClient(f *testing.F) *rawAsker {
	a := &rawAsker{f: f, sock: filepath.Join(f.TempDir(), "a.sock")}
	a.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", a.sock)
	}}
	return a
}

// gate serves until the target ends.
func (a *rawAsker) gate(g Gate) {
	l, err := wire.Listen(a.sock)
	if err != nil {
		a.f.Fatal(err)
	}
	e := &fakeEngine{
		volumes:  []engine.Volume{{Spec: engine.Spec{ID: "pvc-1", Name: "pvc-1"}}},
		receipts: map[volume.ID][][]byte{"pvc-1": {[]byte("none"), []byte("none")}},
		verify: func(context.Context, func(engine.Progress)) (engine.Verification, error) {
			return engine.Verification{}, engine.ErrUnavailable
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := NewServer(Config{
		About: About{Version: "v9", Node: "n1"}, Control: e, Gate: g, Book: newBook(a.f), History: e, Checking: e.checking, Log: slog.New(slog.DiscardHandler),
	})
	go func() { done <- s.Serve(ctx, l) }()
	a.f.Cleanup(func() {
		cancel()
		a.http.CloseIdleConnections()
		if err := <-done; err != nil {
			a.f.Error(err)
		}
	})
}

// ask returns the last line of the answer.
func (a *rawAsker) ask(t *testing.T, method string, body []byte) (json.RawMessage, *wire.Error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://belay/v1/"+method, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Belay-Wire", wire.Version)
	answer, err := a.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var last struct {
		Result json.RawMessage
		Error  *wire.Error
	}
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Fatalf("%s %q: %q: %v", method, body, lines.Text(), err)
		}
	}
	return last.Result, last.Error
}
