package admin

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// serveFleet returns a client of a server that has those of the machines answer.
func serveFleet(t *testing.T, of map[volume.NodeID]*Client) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "fleet.sock")
	l, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s := NewFleetServer(FleetConfig{
		About: About{Version: "v9"}, Log: slog.New(slog.DiscardHandler), Client: func(n volume.NodeID) *Client { return of[n] },
		Nodes: func(context.Context) (list []volume.NodeID, _ error) {
			for n := range of {
				list = append(list, n)
			}
			return list, nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return NewClient(socket)
}

func TestFleetAsksTheMachineOfTheVolume(t *testing.T) {
	e, b := sealed(t)
	answer := fakeGate(func(id volume.ID) (detach.Report, error) {
		return detach.Report{Next: "nothing for " + string(id)}, nil
	})
	one := serve(t, e, b, answer)
	other, otherBook := sealed(t)
	other.volumes[0].ID, other.volumes[0].Name = "pvc-2", "data of Bob"
	other.receipts["pvc-2"] = other.receipts["pvc-1"]
	c := serveFleet(t, map[volume.NodeID]*Client{"n1": one, "n2": serve(t, other, otherBook, answer)})
	all, err := c.Volumes(t.Context())
	if err != nil || all.Err() != nil || len(all.Volumes) != 2 || all.Volumes[0].At != "n1" || all.Volumes[1].At != "n2" {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, name := range []string{"pvc-2@n2", "pvc-2", "data of Bob"} {
		if w, err := c.Why(t.Context(), name); err != nil || w.Next != "nothing for pvc-2" {
			t.Errorf("%s: %+v, %v", name, w.Next, err)
		}
	}
	if r, err := c.Receipts(t.Context(), "pvc-1"); err != nil || len(r.Entries) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if v, err := c.Verify(t.Context(), "pvc-1", nil); err != nil || !v.Clean() {
		t.Errorf("%+v, %v", v, err)
	}
	for _, name := range []string{"pvc-3", "pvc-1@n3", "pvc-2@n1"} {
		if _, err := c.Why(t.Context(), name); !errors.Is(err, engine.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFleetGuessesNoMachine: a CreateVolume that was tried on another machine in the end may have left a volume of the same name on the first.
func TestFleetGuessesNoMachine(t *testing.T) {
	of := map[volume.NodeID]*Client{}
	for _, n := range []volume.NodeID{"n1", "n2"} {
		e, b := sealed(t)
		of[n] = serve(t, e, b, fakeGate(func(volume.ID) (detach.Report, error) { return detach.Report{Next: "asked"}, nil }))
	}
	c := serveFleet(t, of)
	for _, name := range []string{"pvc-1", "data of Ann"} {
		_, err := c.Why(t.Context(), name)
		if !errors.Is(err, engine.ErrInvalid) || !strings.Contains(err.Error(), "pvc-1@n1") || !strings.Contains(err.Error(), "pvc-1@n2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w, err := c.Why(t.Context(), "pvc-1@n2"); err != nil || w.Next != "asked" {
		t.Errorf("%+v, %v", w, err)
	}
}

func TestFleetSaysWhoIsAway(t *testing.T) {
	e, b := sealed(t)
	c := serveFleet(t, map[volume.NodeID]*Client{"n1": serve(t, e, b, nil), "n2": NewClient(filepath.Join(t.TempDir(), "nobody.sock"))})
	all, err := c.Volumes(t.Context())
	if err != nil || len(all.Volumes) != 1 || len(all.Away) != 1 || !strings.Contains(all.Err().Error(), "node n2") {
		t.Fatalf("%+v, %v", all, err)
	}
	if _, err := c.Receipts(t.Context(), "pvc-1"); err != nil {
		t.Errorf("one that is there: %v", err)
	}
	if _, err := c.Receipts(t.Context(), "pvc-2"); !errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), "n2") {
		t.Errorf("one that may be on the node that is away: %v", err)
	}
}

func TestBoardTellsEachNoticeOnce(t *testing.T) {
	b := NewBoard("n1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.Wait(ctx, Cursor{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("nothing happened, and: %v", err)
	}
	var got []uint64
	posted := make(chan struct{})
	go func() {
		defer close(posted)
		for range 3 * noticesKept / 2 {
			b.Post(Notice{Kind: Refused, Volume: "pvc-1"})
		}
	}()
	at, missed := Cursor{}, false
	for len(got) == 0 || got[len(got)-1] < 3*noticesKept/2 {
		page, err := b.Wait(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		missed = missed || page.Missed
		for _, n := range page.Notices {
			if len(got) > 0 && n.Seq <= got[len(got)-1] {
				t.Fatalf("notice %d after %d", n.Seq, got[len(got)-1])
			}
			if len(got) > 0 && n.Seq != got[len(got)-1]+1 && !page.Missed {
				t.Fatalf("notice %d after %d, and nothing is said to be missed", n.Seq, got[len(got)-1])
			}
			got = append(got, n.Seq)
		}
		at = page.Next
	}
	<-posted
	if page, _ := b.after(Cursor{Run: at.Run}); !page.Missed || len(page.Notices) == 0 || len(page.Notices) > noticesKept {
		t.Errorf("from the first on: %d notices, missed %t", len(page.Notices), page.Missed)
	}
	if page, _ := b.after(Cursor{Run: "another", Seq: at.Seq}); !page.Missed || len(page.Notices) == 0 {
		t.Errorf("with another run's cursor: %d notices, missed %t", len(page.Notices), page.Missed)
	}
	if page, _ := b.after(at); page.Missed || len(page.Notices) != 0 {
		t.Errorf("at the end: %+v", page)
	}
}

// TestAPageHasAnEnd: whoever comes late to many boards holds a page of each, and what is left is asked for.
func TestAPageHasAnEnd(t *testing.T) {
	b := NewBoard("n1")
	for range noticesKept {
		b.Post(Notice{Kind: Refused, Volume: "pvc-1"})
	}
	at, got := Cursor{}, 0
	for pages := 1; ; pages++ {
		page, _ := b.after(at)
		if got += len(page.Notices); len(page.Notices) > noticesPage || page.Missed || page.Next.Seq != uint64(got) {
			t.Fatalf("page %d: %d notices, next %d after %d, missed %t", pages, len(page.Notices), page.Next.Seq, got, page.Missed)
		}
		if at = page.Next; !page.More {
			break
		}
	}
	if page, _ := b.after(at); got != noticesKept || len(page.Notices) != 0 || page.More {
		t.Errorf("%d of %d notices, then %d more", got, noticesKept, len(page.Notices))
	}
}

func TestNoticesCrossTheWire(t *testing.T) {
	e, b := sealed(t)
	c := serve(t, e, b, nil)
	e.board.Post(Notice{Kind: Refused, Volume: "pvc-1", Epoch: 3, Message: "held"})
	page, err := c.Notices(t.Context(), Cursor{})
	if err != nil || len(page.Notices) != 1 || page.Notices[0].Message != "held" || page.Notices[0].Node != "n1" {
		t.Fatalf("%+v, %v", page, err)
	}
	next := make(chan NoticePage)
	go func() {
		page, _ := c.Notices(t.Context(), page.Next)
		next <- page
	}()
	e.board.Post(Notice{Kind: Finished, Volume: "pvc-1"})
	if page := <-next; len(page.Notices) != 1 || page.Notices[0].Kind != Finished || page.Missed {
		t.Errorf("%+v", page)
	}
}
