package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// fakeEngine holds volumes and their receipts.
type fakeEngine struct {
	board    *Board
	volumes  []engine.Volume
	receipts map[volume.ID][][]byte
	verify   func(ctx context.Context, progress func(engine.Progress)) (engine.Verification, error)
	err      error
	history  history.History
	readErr  error
	check    string // under way
}

func (f *fakeEngine) Read(_ context.Context, id volume.ID) (history.History, error) {
	if f.readErr != nil || id != f.history.Volume {
		return history.History{Volume: id}, f.readErr
	}
	return f.history, nil
}

func (f *fakeEngine) checking(volume.ID) string { return f.check }

func (f *fakeEngine) Get(_ context.Context, id volume.ID) (engine.Volume, error) {
	for _, v := range f.volumes {
		if v.ID == id {
			return v, f.err
		}
	}
	return engine.Volume{}, fmt.Errorf("volume %s: %w", id, engine.ErrNotFound)
}

func (f *fakeEngine) List(context.Context) ([]engine.Volume, error) { return f.volumes, f.err }

func (f *fakeEngine) Receipts(_ context.Context, id volume.ID) ([][]byte, error) {
	return f.receipts[id], nil
}

func (f *fakeEngine) Verify(ctx context.Context, _ volume.ID, progress func(engine.Progress)) (engine.Verification, error) {
	return f.verify(ctx, progress)
}

func (f *fakeEngine) Upgrade(_ context.Context, id volume.ID, binary string, progress func(engine.Progress)) (engine.Upgrade, error) {
	progress(engine.Progress{Phase: "drain"})
	return engine.Upgrade{Volume: id, To: binary}, f.err
}

// SalvagePlan knows the first volume, from which nobody needs to be saved; its newest receipt is there.
func (f *fakeEngine) SalvagePlan(_ context.Context, id volume.ID, read bool, progress func(engine.Progress)) (engine.SalvagePlan, error) {
	if id != f.volumes[0].ID {
		return engine.SalvagePlan{}, fmt.Errorf("volume %s: %w", id, engine.ErrNotFound)
	}
	p := engine.SalvagePlan{Volume: id, Outlook: engine.OutlookComesUp, Receipt: f.receipts[id][1]}
	if read {
		progress(engine.Progress{Phase: "read", Done: volume.GiB, Total: volume.GiB})
		p.Read = volume.GiB
	}
	return p, f.err
}

type fakeGate func(id volume.ID) (detach.Report, error)

func (g fakeGate) Why(_ context.Context, id volume.ID) (detach.Report, error) { return g(id) }

// Override knows one attachment, of epoch 3.
func (g fakeGate) Override(_ context.Context, o detach.Override) error {
	if o.Volume != "pvc-1" || o.Epoch != 3 || o.Reason != "it burns" || o.Actor != "ann" {
		return fmt.Errorf("%w: %+v", detach.ErrOverride, o)
	}
	return nil
}

// Salvage is refused where the rules suffice.
func (g fakeGate) Salvage(_ context.Context, o detach.Salvage, progress func(engine.Progress)) (receipt.Receipt, error) {
	if o != (detach.Salvage{Volume: "pvc-1", From: "a", Reason: "it burns", Actor: "ann", Kill: true}) {
		return receipt.Receipt{}, fmt.Errorf("%w: %+v", engine.ErrNotNeeded, o)
	}
	progress(engine.Progress{Phase: "settle", Done: 1, Total: 1})
	return receipt.Receipt{Kind: receipt.Forced, Salvaged: &engine.Salvaged{From: o.From}}, nil
}

var sum = engine.Digest{Algorithm: "test", Scope: "full", Bytes: volume.GiB, Sum: engine.HexBytes("content")}

func newBook(t testing.TB) *receipt.Book {
	t.Helper()
	fsys := vfs.NewMem()
	if err := fsys.MkdirAll("/state"); err != nil {
		t.Fatal(err)
	}
	keys, err := receipt.OpenKeyring(fsys, "/state/keys")
	if err != nil {
		t.Fatal(err)
	}
	return receipt.NewBook(keys, time.Now)
}

func sign(t *testing.T, b *receipt.Book, epoch volume.Epoch, head []byte) []byte {
	t.Helper()
	raw, _, err := b.Sign(engine.Barrier{
		Attachment: volume.Attachment{Volume: "pvc-1", Node: "n1", Epoch: epoch}, Writer: epoch, View: "1.1", Clean: true,
		Size: volume.GiB, Replicas: 1, Expected: sum, Head: head,
		Evidence: []engine.Evidence{{Replica: engine.Replica{ID: "a", State: engine.InSync}, Digest: sum, Durable: true}},
	}, receipt.Facts{Name: "data"})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// sealed is a volume with two receipts in force.
func sealed(t *testing.T) (*fakeEngine, *receipt.Book) {
	b := newBook(t)
	first := sign(t, b, 1, nil)
	second := sign(t, b, 3, receipt.Hash(first))
	return &fakeEngine{
		board: NewBoard("n1"),
		volumes: []engine.Volume{{
			Spec: engine.Spec{ID: "pvc-1", Name: "data of Ann", Size: volume.GiB}, State: engine.Healthy, Sealed: true, Writer: 3,
			Replicas: []engine.Replica{{ID: "a", State: engine.InSync}}, Head: receipt.Hash(second),
		}},
		receipts: map[volume.ID][][]byte{"pvc-1": {first, second}},
		verify: func(_ context.Context, progress func(engine.Progress)) (engine.Verification, error) {
			progress(engine.Progress{Phase: "verify", Done: volume.GiB, Total: volume.GiB})
			return engine.Verification{
				Volume: "pvc-1", Size: volume.GiB, Read: volume.GiB, Expected: sum, Sealed: true,
				Evidence: []engine.Evidence{{Replica: engine.Replica{ID: "a", State: engine.InSync}, Digest: sum}},
			}, nil
		},
	}, b
}

func serve(t *testing.T, e *fakeEngine, b Book, g Gate) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "a.sock")
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := NewServer(Config{
		About: About{Version: "v9", Node: "n1"}, Control: e, Gate: g, Book: b, History: e, Board: e.board, Checking: e.checking, Log: slog.New(slog.DiscardHandler),
	})
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return NewClient(socket)
}

func TestAboutAndWhy(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, fakeGate(func(id volume.ID) (detach.Report, error) {
		return detach.Report{Volume: e.volumes[0], Answer: "OK", Next: "nothing for " + string(id)}, nil
	}))
	if a, err := c.About(t.Context()); err != nil || a.Version != "v9" {
		t.Errorf("%+v %v", a, err)
	}
	for _, name := range []string{"pvc-1", "data of Ann"} { // ID, then the orchestrator's name
		if r, err := c.Why(t.Context(), name); err != nil || r.Next != "nothing for pvc-1" || r.Volume.Name != "data of Ann" {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

func TestHistory(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, fakeGate(func(volume.ID) (detach.Report, error) {
		return detach.Report{Volume: e.volumes[0], Next: "nothing"}, nil
	}))
	for n := range 10 {
		e.history.Entries = append(e.history.Entries, history.Entry{Kind: history.Attached, Epoch: volume.Epoch(n), Text: fmt.Sprint("entry ", n)})
	}
	e.history.Volume, e.check = "pvc-1", "pass 2 of 5"
	for _, name := range []string{"pvc-1", "data of Ann"} {
		if h, err := c.History(t.Context(), name); err != nil || len(h.Entries) != 10 {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
	w, err := c.Why(t.Context(), "pvc-1")
	text := w.Text()
	if err != nil || w.Next != "nothing" || strings.Contains(text, "entry 3") || !strings.Contains(text, "entry 4") || !strings.Contains(text, "entry 9") || !strings.Contains(text, "pass 2 of 5") {
		t.Errorf("why: %v\n%s", err, text)
	}
	e.readErr = errors.New("disk on fire")
	if w, err = c.Why(t.Context(), "pvc-1"); err != nil || !strings.Contains(w.Text(), "disk on fire") {
		t.Errorf("why without a history: %v\n%s", err, w.Text())
	}
	if _, err := c.History(t.Context(), "pvc-1"); err == nil || !strings.Contains(err.Error(), "disk on fire") {
		t.Errorf("history: %v", err)
	}
	e.readErr, e.err = nil, fmt.Errorf("stores are away: %w", engine.ErrUnavailable)
	if h, err := c.History(t.Context(), "pvc-1"); err != nil || len(h.Entries) != 10 {
		t.Errorf("while stores are away: %+v, %v", h, err)
	}
	if _, err := c.History(t.Context(), "pvc-2"); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("of an unknown one while stores are away: %v", err)
	}
	e.err = nil
	if _, err := c.History(t.Context(), "pvc-2"); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("of an unknown one: %v", err)
	}
}

func TestUnknownAndMalformedVolumes(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, nil)
	if _, err := c.Why(t.Context(), "pvc-2"); !errors.Is(err, engine.ErrNotFound) || !strings.Contains(err.Error(), "pvc-2") {
		t.Errorf("unknown: %v", err)
	}
	for _, bad := range []string{"", strings.Repeat("n", volume.NameMax+1)} {
		if _, err := c.Receipts(t.Context(), bad); !errors.Is(err, engine.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	e.err = fmt.Errorf("volume pvc-1: %w", engine.ErrUnavailable)
	if _, err := c.Verify(t.Context(), "pvc-1", nil); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("unavailable: %v", err)
	}
}

func TestVolumesCarryTheirNewestReceipt(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, nil)
	all, err := c.Volumes(t.Context())
	got := all.Volumes
	if err != nil || len(got) != 1 || got[0].Receipt == nil || got[0].Receipt.Writer != 3 || got[0].ReceiptError != "" {
		t.Fatalf("%+v %v", got, err)
	}
	e.receipts["pvc-1"] = e.receipts["pvc-1"][:1] // somebody cut the newest off
	all, err = c.Volumes(t.Context())
	got = all.Volumes
	if err != nil || got[0].Receipt != nil || !strings.Contains(got[0].ReceiptError, "pvc-1") {
		t.Errorf("%+v %v", got, err)
	}
}

func TestReceiptsShowEveryBreak(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, nil)
	r, err := c.Receipts(t.Context(), "pvc-1")
	if err != nil || !r.Good() || len(r.Entries) != 2 || r.Entries[1].Receipt.Kind != receipt.Clean {
		t.Fatalf("%+v %v", r, err)
	}
	whole := e.receipts["pvc-1"]
	forged := []byte(strings.Replace(string(whole[1]), "clean", "Clean", 1))
	for name, raws := range map[string][][]byte{
		"end cut off": whole[:1], "first removed": {whole[1], whole[1]}, "forged": {whole[0], forged}, "all gone": {},
		"unknown key": {sign(t, newBook(t), 1, nil), whole[1]},
	} {
		e.receipts["pvc-1"] = raws
		if r, err := c.Receipts(t.Context(), "pvc-1"); err != nil || r.Good() {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
}

// grow is an expansion after the receipt: the digests are of the new size.
func grow(v *engine.Verification) {
	v.Size *= 2
	v.Expected.Bytes *= 2
	v.Evidence[0].Digest.Bytes *= 2
}

func TestVerifyComparesWithTheNewestReceipt(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*fakeEngine, *engine.Verification)
		want   Comparison
		clean  bool
	}{
		"equal":    {func(*fakeEngine, *engine.Verification) {}, Equal, true},
		"attached": {func(e *fakeEngine, _ *engine.Verification) { e.volumes[0].Sealed = false }, Since, true},
		"written":  {func(e *fakeEngine, _ *engine.Verification) { e.volumes[0].Writer = 4 }, Since, true},
		"none": {func(e *fakeEngine, _ *engine.Verification) {
			e.volumes[0].Head, e.receipts["pvc-1"] = nil, nil
		}, NoReceipt, true},
		"cut off": {func(e *fakeEngine, _ *engine.Verification) { e.receipts["pvc-1"] = nil }, Unreadable, false},
		"differs": {func(_ *fakeEngine, v *engine.Verification) { v.Evidence[0].Digest.Sum = engine.HexBytes("other") }, Differs, false},
		"grown":   {func(_ *fakeEngine, v *engine.Verification) { grow(v) }, Grown, true},
		"grown and differs": {func(_ *fakeEngine, v *engine.Verification) {
			grow(v)
			v.Evidence[0].Digest.Sum = engine.HexBytes("other")
		}, Differs, false},
		"finding": {func(_ *fakeEngine, v *engine.Verification) { v.Findings = []engine.Finding{{Replica: "a"}} }, Equal, false},
		"mended":  {func(_ *fakeEngine, v *engine.Verification) { v.Repairs = []engine.Repair{{From: "a"}} }, Equal, false},
	} {
		t.Run(name, func(t *testing.T) {
			e, b := sealed(t)
			inner := e.verify
			e.verify = func(ctx context.Context, p func(engine.Progress)) (engine.Verification, error) {
				v, err := inner(ctx, p)
				tc.change(e, &v)
				return v, err
			}
			tc.change(e, &engine.Verification{Evidence: make([]engine.Evidence, 1)})
			progressed := false
			v, err := serve(t, e, b, nil).Verify(t.Context(), "pvc-1", func(engine.Progress) { progressed = true })
			if err != nil || v.Comparison != tc.want || v.Clean() != tc.clean || !progressed {
				t.Errorf("%s clean=%v progressed=%v: %v", v.Comparison, v.Clean(), progressed, err)
			}
		})
	}
}

func TestFencePassesTheOverrideOnAndReturnsItsReceipt(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, fakeGate(nil))
	o := detach.Override{Epoch: 3, Reason: "it burns", Actor: "ann"}
	if r, err := c.Fence(t.Context(), "data of Ann", o); err != nil || r.Writer != 3 { // the fake knows the ID only
		t.Errorf("%+v %v", r, err)
	}
	o.Epoch = 2
	if _, err := c.Fence(t.Context(), "pvc-1", o); !errors.Is(err, detach.ErrOverride) {
		t.Errorf("another epoch: %v", err)
	}
	e.volumes[0].Head = nil
	o.Epoch = 3
	if _, err := c.Fence(t.Context(), "pvc-1", o); err == nil || !strings.Contains(err.Error(), "no receipt is in force") {
		t.Errorf("no receipt: %v", err)
	}
}
