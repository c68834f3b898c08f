package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// fakeServer answers the verbs from what it is given, over a real socket.
type fakeServer struct {
	volumes  []engine.Volume
	receipts [][]byte
	found    engine.Verification
	report   detach.Report
	history  history.History
}

func (f *fakeServer) Get(_ context.Context, id volume.ID) (engine.Volume, error) {
	for _, v := range f.volumes {
		if v.ID == id {
			return v, nil
		}
	}
	return engine.Volume{}, fmt.Errorf("volume %s: %w", id, engine.ErrNotFound)
}

func (f *fakeServer) List(context.Context) ([]engine.Volume, error) { return f.volumes, nil }

func (f *fakeServer) Receipts(context.Context, volume.ID) ([][]byte, error) { return f.receipts, nil }

func (f *fakeServer) Verify(_ context.Context, _ volume.ID, progress func(engine.Progress)) (engine.Verification, error) {
	progress(engine.Progress{Phase: "verify", Done: volume.GiB, Total: 2 * volume.GiB})
	return f.found, nil
}

// Upgrade knows one good program.
func (f *fakeServer) Upgrade(_ context.Context, id volume.ID, binary string, progress func(engine.Progress)) (engine.Upgrade, error) {
	progress(engine.Progress{Phase: "drain"})
	if binary != "/good" {
		return engine.Upgrade{}, fmt.Errorf("rolled back: volume %s: %s is no engine", id, binary)
	}
	return engine.Upgrade{Volume: id, From: "v1", To: "v2", Pause: 12 * time.Millisecond}, nil
}

func (f *fakeServer) Override(_ context.Context, o detach.Override) error {
	if o.Volume != "pvc-1" || o.Epoch != 2 || o.Reason != "it burns" || o.Actor == "" {
		return fmt.Errorf("%w: %+v", detach.ErrOverride, o)
	}
	return nil
}

func (f *fakeServer) Read(context.Context, volume.ID) (history.History, error) { return f.history, nil }

// SalvagePlan is of an engine that does not state the capability; see salvage_test.go for one that does.
func (f *fakeServer) SalvagePlan(context.Context, volume.ID, bool, func(engine.Progress)) (engine.SalvagePlan, error) {
	return engine.SalvagePlan{}, engine.ErrUnsupported
}

func (f *fakeServer) Salvage(context.Context, detach.Salvage, func(engine.Progress)) (receipt.Receipt, error) {
	return receipt.Receipt{}, engine.ErrUnsupported
}

func (f *fakeServer) Why(context.Context, volume.ID) (detach.Report, error) { return f.report, nil }

var digest = engine.Digest{Algorithm: "test", Scope: "full", Bytes: volume.GiB, Sum: engine.HexBytes("the content of it")}

// newFake has one detached volume with one receipt.
func newFake(t *testing.T) (*fakeServer, *receipt.Book) {
	t.Helper()
	fsys := vfs.NewMem()
	if err := fsys.MkdirAll("/state"); err != nil {
		t.Fatal(err)
	}
	keys, err := receipt.OpenKeyring(fsys, "/state/keys")
	if err != nil {
		t.Fatal(err)
	}
	book := receipt.NewBook(keys, time.Now)
	in := engine.Replica{ID: "r1", Place: "/srv/a", State: engine.InSync}
	raw, _, err := book.Sign(engine.Barrier{
		Attachment: volume.Attachment{Volume: "pvc-1", Node: "n1", Epoch: 2}, Writer: 3, View: "3.2", Clean: true, Size: volume.GiB, Replicas: 1,
		Expected: digest, Evidence: []engine.Evidence{{Replica: in, Digest: digest, Durable: true, Verified: volume.MiB}}, Verified: volume.MiB,
		Repairs: []engine.Repair{{Finding: engine.Finding{Replica: "r1", Offset: 4096, Length: 4096, Cause: "rot"}, From: "r2"}},
	}, receipt.Facts{Name: "data of Ann"})
	if err != nil {
		t.Fatal(err)
	}
	v := engine.Volume{
		Spec: engine.Spec{ID: "pvc-1", Name: "data of Ann", Size: volume.GiB}, State: engine.Degraded, Reason: "store b is away", Sealed: true, Writer: 3,
		Replicas: []engine.Replica{in, {ID: "r2", State: engine.Unreachable}}, Head: receipt.Hash(raw),
	}
	return &fakeServer{
		volumes: []engine.Volume{v}, receipts: [][]byte{raw}, report: detach.Report{Volume: v, Answer: "OK", Next: "nothing to do"},
		found: engine.Verification{Volume: "pvc-1", Size: volume.GiB, Read: volume.GiB, Sealed: true, Expected: digest, Evidence: []engine.Evidence{{Replica: in, Digest: digest, Verified: volume.GiB}}},
	}, book
}

func (f *fakeServer) serve(t *testing.T, book *receipt.Book) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "admin.sock")
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := admin.NewServer(admin.Config{About: admin.About{Version: "v7", Node: "n1"}, Control: f, Gate: f, Book: book, History: f, Checking: func(volume.ID) string { return "" }, Log: slog.New(slog.DiscardHandler)})
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// belay runs a command line.
func belay(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func TestExitCodesOfUsage(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.sock")
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"", exitOK, ""},
		{"--help", exitOK, ""},
		{"frob", exitUsage, "frob"},
		{"upgrade pvc-1", exitUsage, "--to"},
		{"upgrade --to /x", exitUsage, "name one volume"},
		{"upgrade pvc-1 --all --to /x", exitUsage, "not both"},
		{"upgrade --all --to /x --pace -1s", exitUsage, "--pace"},
		{"volumes extra", exitUsage, "extra"},
		{"volumes --frob", exitUsage, "frob"},
		{"volumes -o xml", exitUsage, "xml"},
		{"why", exitUsage, "name one volume"},
		{"why a b", exitUsage, "name one volume"},
		{"receipts", exitUsage, "belay receipts --help"},
		{"fence a", exitUsage, "--epoch"},
		{"fence a --epoch 3", exitUsage, "--reason"},
		{"fence a --epoch x --reason y", exitUsage, "epoch"},
		{"salvage", exitUsage, "name one volume"},
		{"salvage a --from /srv/a", exitUsage, "--reason"},
		{"salvage a --reason because", exitUsage, "--from"},
		{"salvage a --yes", exitUsage, "--from"},
		{"serve", exitUsage, "--store"},
		{"serve extra", exitUsage, "extra"},
		{"volumes --socket " + none, exitFailed, "belay serve is not running"},
		{"why x --socket " + none, exitFailed, none},
	} {
		code, out, errOut := belay(t, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(errOut, tc.says) {
			t.Errorf("belay %s: exit %d, %q", tc.args, code, errOut)
		}
		if code == exitOK && !strings.Contains(out, "Examples:") {
			t.Errorf("belay %s: help without examples", tc.args)
		}
	}
}

func TestEveryVerbExplainsItself(t *testing.T) {
	for _, cmd := range newRoot().Commands() {
		if cmd.Hidden || cmd.Name() == "completion" || cmd.Name() == "help" {
			continue
		}
		if len(cmd.Long) < 40 || !strings.Contains(cmd.Example, "belay "+cmd.Name()) || cmd.Short == "" {
			t.Errorf("%s: long %q, example %q", cmd.Name(), cmd.Long, cmd.Example)
		}
	}
}

func TestVolumes(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	code, out, errOut := belay(t, "volumes", "--socket", socket)
	if code != exitOK {
		t.Fatal(errOut)
	}
	for _, want := range []string{"pvc-1", "data of Ann", "1 GiB", "Degraded", "detached", "1/2", "clean, ", "store b is away"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, _ = belay(t, "volumes", "-o", "json", "--socket", socket)
	var all []admin.Volume
	if err := json.Unmarshal([]byte(out), &all); code != exitOK || err != nil || len(all) != 1 || all[0].Receipt.Writer != 3 {
		t.Errorf("exit %d, %v, %s", code, err, out)
	}
	f.volumes[0].Format = engine.Format{Stage: engine.Formatted, FSType: "ext4", Doubt: engine.Damaged}
	if _, out, _ := belay(t, "volumes", "--socket", socket); !strings.Contains(out, "pvc-1: its ext4 is damaged") {
		t.Errorf("damaged:\n%s", out)
	}
	f.volumes = nil
	if _, out, _ := belay(t, "volumes", "--socket", socket); out != "no volumes\n" {
		t.Errorf("none: %q", out)
	}
	if _, out, _ := belay(t, "volumes", "-o", "json", "--socket", socket); out != "[]\n" {
		t.Errorf("none as JSON: %q", out)
	}
}

func TestUseOfAVolume(t *testing.T) {
	open := &volume.Attachment{Volume: "a", Node: "n", Epoch: 1}
	for want, v := range map[string]engine.Volume{
		"attached": {Attachment: open}, "published": {Attachment: open, Sealed: true}, "detached": {Sealed: true},
	} {
		if got := useOf(v); got != want {
			t.Errorf("%+v: %s, want %s", v, got, want)
		}
	}
	if got := useOf(engine.Volume{}); got != "attached" { // a writer may exist though nobody holds it
		t.Errorf("unsealed: %s", got)
	}
}

func TestReceipts(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	code, out, errOut := belay(t, "receipts", "data of Ann", "--socket", socket)
	if code != exitOK {
		t.Fatal(errOut)
	}
	for _, want := range []string{"clean", "node n1", "digest equal, on stable media", "r1 at /srv/a", "repaired", "at 4096", "rot", "none: the first", "every signature good"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	f.receipts[0] = bytes.Replace(f.receipts[0], []byte("rot"), []byte("rat"), 1)
	for _, form := range []string{outText, outJSON} {
		code, out, errOut = belay(t, "receipts", "pvc-1", "-o", form, "--socket", socket)
		if code != exitFailed || !strings.Contains(errOut, "do not hold") || !strings.Contains(out, "signature does not match") {
			t.Errorf("forged, %s: exit %d\n%s\n%s", form, code, out, errOut)
		}
	}
	f.receipts, f.volumes[0].Head = nil, nil
	if code, out, _ := belay(t, "receipts", "pvc-1", "--socket", socket); code != exitOK || !strings.Contains(out, "no receipt") {
		t.Errorf("none: exit %d %s", code, out)
	}
}

func TestVerify(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	code, out, errOut := belay(t, "verify", "pvc-1", "--socket", socket)
	if code != exitOK || !strings.Contains(out, "equal to the newest receipt") || !strings.Contains(out, "no difference found") || !strings.Contains(errOut, "verify pvc-1: 1 GiB of 2 GiB") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	rot := engine.Finding{Replica: "r1", Offset: 8192, Length: 4096, Cause: "rot"}
	f.found.Findings = []engine.Finding{rot}
	if code, out, _ = belay(t, "verify", "pvc-1", "--socket", socket); code != exitDiffers || !strings.Contains(out, "WRONG replica r1, 4 KiB at offset 8192: rot") {
		t.Errorf("finding: exit %d\n%s", code, out)
	}
	f.found.Findings, f.found.Repairs = nil, []engine.Repair{{Finding: rot, From: "r2"}}
	if code, out, _ = belay(t, "verify", "pvc-1", "--socket", socket); code != exitDiffers || !strings.Contains(out, "mended from r2") {
		t.Errorf("repair: exit %d\n%s", code, out)
	}
	f.found.Repairs, f.found.Unresolved = nil, []engine.Finding{rot}
	if code, out, _ = belay(t, "verify", "pvc-1", "--socket", socket); code != exitDiffers || !strings.Contains(out, "DATA LOSS") {
		t.Errorf("unresolved: exit %d\n%s", code, out)
	}
	f.found.Unresolved, f.found.Evidence[0].Digest.Sum = nil, engine.HexBytes("another")
	code, out, errOut = belay(t, "verify", "pvc-1", "-o", "json", "--socket", socket)
	var v admin.Verification
	if err := json.Unmarshal([]byte(out), &v); code != exitDiffers || err != nil || v.Comparison != admin.Differs || strings.Contains(errOut, "belay:") {
		t.Errorf("differs: exit %d %v\n%s\n%s", code, err, out, errOut)
	}
}

func TestUpgrade(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	code, out, errOut := belay(t, "upgrade", "pvc-1", "--to", "/good", "--socket", socket)
	if code != exitOK || out != "volume pvc-1: upgraded from v1 to v2; requests waited 12ms\n" || !strings.Contains(errOut, "requests are held") {
		t.Errorf("exit %d\n%s\n%s", code, out, errOut)
	}
	if code, out, errOut = belay(t, "upgrade", "pvc-1", "--to", "/bad", "--socket", socket); code != exitFailed || !strings.Contains(out, "NOT upgraded: rolled back") {
		t.Errorf("bad program: exit %d\n%s\n%s", code, out, errOut)
	}
	if code, out, _ = belay(t, "upgrade", "--all", "--to", "/good", "--socket", socket); code != exitOK || out != "no volume is attached\n" {
		t.Errorf("none attached: exit %d\n%s", code, out)
	}
	for i := range 3 {
		v := f.volumes[0]
		v.ID, v.Attachment, v.Staged, v.Sealed = volume.ID(fmt.Sprint("used-", i)), &volume.Attachment{}, true, false
		f.volumes = append(f.volumes, v)
	}
	code, out, _ = belay(t, "upgrade", "--all", "--to", "/bad", "--pace", "0", "--socket", socket)
	if code != exitFailed || strings.Count(out, "NOT upgraded") != 1 || !strings.Contains(out, "2 volumes not tried") {
		t.Errorf("stops at the first: exit %d\n%s", code, out)
	}
	code, out, _ = belay(t, "upgrade", "--all", "--to", "/bad", "--pace", "0", "--keep-going", "-o", "json", "--socket", socket)
	var all []upgradeOutcome
	if err := json.Unmarshal([]byte(out), &all); code != exitFailed || err != nil || len(all) != 3 || all[2].Error == "" {
		t.Errorf("goes on: exit %d %v\n%s", code, err, out)
	}
}

func TestWhyAndUnknown(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	if code, out, _ := belay(t, "why", "pvc-1", "--socket", socket); code != exitOK || !strings.Contains(out, "pvc-1") || !strings.Contains(out, "nothing to do") {
		t.Errorf("exit %d\n%s", code, out)
	}
	code, out, _ := belay(t, "why", "pvc-1", "-o", "json", "--socket", socket)
	var r detach.Report
	if err := json.Unmarshal([]byte(out), &r); code != exitOK || err != nil || r.Next != "nothing to do" {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
	if code, _, errOut := belay(t, "why", "pvc-2", "--socket", socket); code != exitFailed || !strings.Contains(errOut, "pvc-2") || !strings.Contains(errOut, "not found") {
		t.Errorf("unknown: exit %d %s", code, errOut)
	}
}

func TestHistory(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	if code, out, _ := belay(t, "history", "pvc-1", "--socket", socket); code != exitOK || !strings.Contains(out, "nothing is kept") {
		t.Errorf("none: exit %d\n%s", code, out)
	}
	at := time.Date(2026, 10, 1, 12, 0, 0, 0, time.Local)
	f.history = history.History{Volume: "pvc-1", Dropped: 7, Until: at, Damaged: 3, Entries: []history.Entry{
		{Time: at, Kind: history.Created, Text: "1 GiB"}, {Time: at.Add(time.Hour), Kind: history.TakenOver, Epoch: 9, Took: 31 * time.Millisecond, Text: "version v2"},
	}}
	code, out, _ := belay(t, "history", "data of Ann", "--socket", socket)
	want := `7 older entries made room, the newest of them of 2026-10-01 12:00:00
3 bytes of it are damaged or unfinished, and left out
TIME                 WHAT        EPOCH  TOOK  DETAILS
2026-10-01 12:00:00  created     -      -     1 GiB
2026-10-01 13:00:00  taken-over  9      31ms  version v2
`
	if code != exitOK || out != want {
		t.Errorf("exit %d\n%s", code, out)
	}
	code, out, _ = belay(t, "history", "pvc-1", "--last", "1", "-o", "json", "--socket", socket)
	var h history.History
	if err := json.Unmarshal([]byte(out), &h); code != exitOK || err != nil || len(h.Entries) != 1 || h.Entries[0].Kind != history.TakenOver {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
	if code, out, _ := belay(t, "why", "pvc-1", "--socket", socket); code != exitOK || !strings.Contains(out, "history    2026-10-01 13:00:00 taken-over (epoch 9) [31ms] version v2") {
		t.Errorf("why: exit %d\n%s", code, out)
	}
	if code, _, errOut := belay(t, "history", "pvc-1", "--last", "-1", "--socket", socket); code != exitUsage || !strings.Contains(errOut, "--last") {
		t.Errorf("exit %d %s", code, errOut)
	}
}

func TestFence(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	if code, out, errOut := belay(t, "fence", "data of Ann", "--epoch", "2", "--reason", "it burns", "--socket", socket); code != exitOK || !strings.Contains(out, "attachment epoch 2") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	if code, _, errOut := belay(t, "fence", "pvc-1", "--epoch", "1", "--reason", "it burns", "--socket", socket); code != exitFailed || !strings.Contains(errOut, "does not apply") {
		t.Errorf("another epoch: exit %d %s", code, errOut)
	}
}

func TestVersionWithAndWithoutServer(t *testing.T) {
	f, book := newFake(t)
	if code, out, _ := belay(t, "version", "--socket", f.serve(t, book)); code != exitOK || !strings.Contains(out, "server: v7") {
		t.Errorf("exit %d %s", code, out)
	}
	if code, out, _ := belay(t, "version", "--socket", filepath.Join(t.TempDir(), "x")); code != exitOK || !strings.Contains(out, "not running") {
		t.Errorf("exit %d %s", code, out)
	}
}

func TestCompletionOffersVolumes(t *testing.T) {
	f, book := newFake(t)
	socket := f.serve(t, book)
	for _, verb := range []string{"why", "history", "receipts", "verify"} {
		code, out, _ := belay(t, "__complete", verb, "--socket", socket, "pv")
		if code != exitOK || !strings.HasPrefix(out, "pvc-1\t1 GiB, detached\n") {
			t.Errorf("%s: exit %d %q", verb, code, out)
		}
		if _, out, _ := belay(t, "__complete", verb, "--socket", socket, "pvc-1", ""); strings.Contains(out, "pvc-1") {
			t.Errorf("%s: offers a second volume: %q", verb, out)
		}
	}
	if code, out, _ := belay(t, "__complete", "why", "--socket", filepath.Join(t.TempDir(), "x"), ""); code != exitOK || strings.Contains(out, "\t") {
		t.Errorf("no server: exit %d %q", code, out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, out, _ := belay(t, "completion", shell); code != exitOK || !strings.Contains(out, "belay") {
			t.Errorf("%s: exit %d", shell, code)
		}
	}
}

func TestServeChecksItsFlags(t *testing.T) {
	good := func() *serveConfig {
		return &serveConfig{
			Endpoint: "unix:///run/x/csi.sock", NodeID: "n1", DriverName: "csi.belay.storage", Stores: []string{"/a", "/b/"}, State: "/s",
			AdminSocket: "/run/x/admin.sock", Overcommit: 1, ForgottenAfter: time.Minute, LogFormat: "text",
		}
	}
	c := good()
	if err := c.validate(); err != nil || c.csiSocket != "/run/x/csi.sock" || c.node != "n1" || c.Stores[1] != "/b" {
		t.Fatalf("%+v %v", c, err)
	}
	for flag, spoil := range map[string]func(*serveConfig){
		"--endpoint":        func(c *serveConfig) { c.Endpoint = "tcp://0.0.0.0:1" },
		"--endpoint ":       func(c *serveConfig) { c.Endpoint = "unix://relative" },
		"--nodeid":          func(c *serveConfig) { c.NodeID = "a\nb" },
		"--drivername":      func(c *serveConfig) { c.DriverName = "has space" },
		"--store":           func(c *serveConfig) { c.Stores = nil },
		"--store no text":   func(c *serveConfig) { c.Stores = []string{"/a\xff"} },
		"--store relative":  func(c *serveConfig) { c.Stores = []string{"a"} },
		"--store twice":     func(c *serveConfig) { c.Stores = []string{"/a", "/a/"} },
		"--state":           func(c *serveConfig) { c.State = "x" },
		"--admin-socket":    func(c *serveConfig) { c.AdminSocket = "x" },
		"--admin-socket =":  func(c *serveConfig) { c.AdminSocket = "/run/x//csi.sock" },
		"--overcommit":      func(c *serveConfig) { c.Overcommit = 0.5 },
		"--max-volumes":     func(c *serveConfig) { c.MaxVolumes = -1 },
		"--forgotten-after": func(c *serveConfig) { c.ForgottenAfter = 0 },
		"-v":                func(c *serveConfig) { c.Verbosity = -1 },
		"--log-format":      func(c *serveConfig) { c.LogFormat = "xml" },
	} {
		c := good()
		spoil(c)
		name, _, _ := strings.Cut(flag, " ")
		if err := c.validate(); !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	c = good()
	c.NodeID = ""
	host, err := os.Hostname()
	if err := errors.Join(err, c.validate()); err != nil || string(c.node) != host {
		t.Errorf("default node %q: %v", c.node, err)
	}
}

func TestEveryRefusalHasItsWord(t *testing.T) {
	for err, want := range map[error]string{
		detach.ErrHeld: "held", detach.ErrInProgress: "in-progress", detach.ErrDataLoss: "data-loss", engine.ErrUnavailable: "unavailable",
		detach.ErrNodeSilent: "node-silent", errors.New("other"): "unknown", fmt.Errorf("volume a: %w", engine.ErrQuarantined): "data-loss",
	} {
		if got := reasonOf(err); got != want {
			t.Errorf("%v: %s", err, got)
		}
	}
}
