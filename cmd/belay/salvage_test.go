package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/engine/enginetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// lostMajority serves a volume of which one stale replica is left, with the true gate.
func lostMajority(t *testing.T) (*enginetest.Memory, string) {
	t.Helper()
	m := enginetest.NewMemory(enginetest.MemoryOptions{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Create(t.Context(), engine.Spec{ID: "pvc-1", Name: "data of Ann", Size: 16 * volume.MiB})
	must(err)
	replicas := m.Replicas()
	for seed := range byte(2) {
		a, err := m.Publish(t.Context(), "pvc-1", "n1", engine.PublishOptions{})
		must(err)
		d, err := m.On("n1").Attach(t.Context(), a)
		must(err)
		must(m.Write("pvc-1", d.Writer, 0, append(make([]byte, 4095), seed+1)))
		m.Forget("pvc-1")
		m.Down(replicas[0])
	}
	m.Down(replicas[1])
	m.Down(replicas[2])
	m.Up(replicas[0])
	return m, serveMemory(t, m)
}

func serveMemory(t *testing.T, m *enginetest.Memory) string {
	t.Helper()
	keys, err := receipt.OpenKeyring(vfs.OS(), filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	book := receipt.NewBook(keys, time.Now)
	gate, err := detach.NewGate(detach.GateConfig{Control: m, Book: book, Agents: func(volume.NodeID) (detach.AgentClient, error) { return nil, context.Canceled }})
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := admin.NewServer(admin.Config{About: admin.About{Version: "v7", Node: "n1"}, Control: m, Gate: gate, Book: book, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		gate.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestSalvage(t *testing.T) {
	m, socket := lostMajority(t)
	from := string(m.Replicas()[0])
	code, out, errOut := belay(t, "salvage", "data of Ann", "--socket", socket)
	for _, want := range []string{"WAITS: too few replicas answer", "waits for", "a newer one may be", "memory-0", "NOT THERE", "--from memory", "Only if they never come"} {
		if code != exitOK || !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q in\n%s%s", code, want, out, errOut)
		}
	}
	var p admin.SalvagePlan
	code, out, _ = belay(t, "salvage", "pvc-1", "-o", "json", "--socket", socket)
	if err := json.Unmarshal([]byte(out), &p); code != exitOK || err != nil || len(p.Choices) != 1 || p.Outlook != engine.OutlookWaits {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
	for _, bad := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--from", from, "--reason", "because"}, exitUsage, "--yes"},
		{[]string{"--from", "nowhere", "--reason", "because", "--yes"}, exitFailed, "nowhere"},
		{[]string{"--from", "memory", "--reason", "because", "--yes"}, exitFailed, "whole ID"},
		{[]string{"--from", string(m.Replicas()[1]), "--reason", "because", "--yes"}, exitFailed, "invalid"},
	} {
		if code, out, errOut := belay(t, append([]string{"salvage", "pvc-1", "--socket", socket}, bad.args...)...); code != bad.code || !strings.Contains(errOut, bad.says) {
			t.Errorf("%v: exit %d\n%s%s", bad.args, code, out, errOut)
		}
	}
	for range 2 { // the same again is done already
		code, out, errOut = belay(t, "salvage", "pvc-1", "--from", from, "--reason", "two disks burnt", "--yes", "--socket", socket)
		if code != exitOK || !strings.Contains(out, "forced") || !strings.Contains(out, "SALVAGED") || !strings.Contains(out, "two disks burnt") {
			t.Errorf("exit %d\n%s%s", code, out, errOut)
		}
	}
	if code, out, _ = belay(t, "salvage", "pvc-1", "--socket", socket); code != exitOK || !strings.Contains(out, "COMES UP") || !strings.Contains(out, "nothing to decide") || !strings.Contains(out, "salvaged") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, errOut = belay(t, "salvage", "pvc-2", "--socket", socket); code != exitFailed || !strings.Contains(errOut, "pvc-2") {
		t.Errorf("unknown: exit %d %s", code, errOut)
	}
}

// TestSalvageAsks: a person types the volume's ID, or nothing is done.
func TestSalvageAsks(t *testing.T) {
	p := admin.SalvagePlan{SalvagePlan: engine.SalvagePlan{Volume: "pvc-1"}}
	c := engine.SalvageChoice{From: "a", Place: "/srv/a", Configuration: "7.3", LostBlocks: 3, Loses: []string{"three blocks"}}
	for answer, confirmed := range map[string]bool{"pvc-1\n": true, " pvc-1 ": true, "": false, "yes\n": false, "pvc-10\n": false} {
		var out strings.Builder
		err := ask(t.Context(), strings.NewReader(answer), &out, p, c)
		if (err == nil) != confirmed || !strings.Contains(out.String(), "three blocks") || !strings.Contains(out.String(), "/srv/a") {
			t.Errorf("answer %q: %v\n%s", answer, err, out.String())
		}
	}
}

func TestCompleteSalvage(t *testing.T) {
	_, socket := lostMajority(t)
	code, out, _ := belay(t, "__complete", "salvage", "pvc-1", "--socket", socket, "--from", "mem")
	if code != exitOK || !strings.Contains(out, "memory\tconfiguration") {
		t.Errorf("exit %d\n%s", code, out)
	}
}
