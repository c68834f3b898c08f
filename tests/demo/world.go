package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// world is the machine of the story: three stores, a server, and the places where the orchestrator mounts.
type world struct {
	*orchestrator.Machine
	admin   *admin.Client
	metered string // address of the metrics
}

func newWorld(binary, where string) (*world, error) {
	m, err := orchestrator.New(binary, where, 3)
	if err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.Args = []string{"--http-endpoint", address}
	return &world{Machine: m, admin: admin.NewClient(filepath.Join(m.Dir, "run", "admin.sock")), metered: address}, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// create provisions a volume with ext4.
func (w *world) create(ctx context.Context, name string, size int64, parameters map[string]string) (*orchestrator.Volume, error) {
	return w.Create(ctx, orchestrator.Spec{Name: name, Size: size, FSType: "ext4", Parameters: parameters})
}

// ask runs a verb against the running server, wants the exit code, and returns what it printed.
func (w *world) ask(ctx context.Context, code int, verb string, args ...string) (string, error) {
	a, err := w.Ask(ctx, verb, args...)
	if err == nil && a.Code != code {
		err = fmt.Errorf("belay %s: exit code %d, want %d: %s%s", verb, a.Code, code, a.Stderr, a.Stdout)
	}
	return a.Stdout, err
}

func (w *world) askJSON(ctx context.Context, into any, code int, verb string, args ...string) error {
	text, err := w.ask(ctx, code, verb, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// metrics returns the lines of /metrics that start with the names, and fails where one is not there.
func (w *world) metrics(names ...string) (lines []string, err error) {
	resp, err := http.Get("http://" + w.metered + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		at := strings.Index("\n"+string(text), "\n"+name)
		if at < 0 {
			return lines, fmt.Errorf("no %s among the metrics", name)
		}
		line, _, _ := strings.Cut(string(text)[at:], "\n")
		lines = append(lines, line)
	}
	return lines, nil
}

// wantCode is nil where err carries the gRPC code, by its name.
func wantCode(err error, name string) error {
	if err == nil {
		return fmt.Errorf("answered OK, want %s", name)
	}
	if got := status.Code(err).String(); got != name {
		return fmt.Errorf("answered %s, want %s: %w", got, name, err)
	}
	return nil
}

// said is what an answer says to people.
func said(err error) string {
	s := status.Convert(err)
	return s.Code().String() + ": " + s.Message()
}
