package receipt

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

var now = time.Date(2026, 11, 24, 9, 42, 1, 234_567_890, time.FixedZone("CET", 3600))

func newBook(t testing.TB) *Book {
	t.Helper()
	keys, err := OpenKeyring(vfs.NewMem(), "/keys")
	if err != nil {
		t.Fatal(err)
	}
	return NewBook(keys, func() time.Time { return now })
}

func barrier(epoch volume.Epoch, head []byte) engine.Barrier {
	digest := engine.Digest{Algorithm: "sum", Scope: "full", Bytes: volume.GiB, Sum: engine.HexBytes{1, 2, 3}}
	b := engine.Barrier{
		Attachment: volume.Attachment{Volume: "pvc-1", Node: "node-a", Epoch: epoch}, Writer: epoch, View: "7.2", Clean: true,
		Size: volume.GiB, Replicas: 3, Expected: digest, Verified: 3 * volume.MiB, Head: head,
		Repairs: []engine.Repair{{Finding: engine.Finding{Replica: "b", Offset: 4096, Length: 4096, Cause: "rot"}, From: "a"}},
	}
	for _, id := range []engine.ReplicaID{"a", "b", "c"} {
		b.Evidence = append(b.Evidence, engine.Evidence{
			Replica:     engine.Replica{ID: id, Domain: "disk " + string(id), Place: "/stores/<" + string(id) + ">", State: engine.InSync, Reason: "fine"},
			Incarnation: "i", Position: engine.Position{Generation: "g", Sequence: 9}, PositionBy: engine.AttestReplica,
			Digest: digest, DigestBy: engine.AttestReplica, Durable: true, Lossy: true, Verified: volume.MiB, At: now,
		})
	}
	return b
}

func sign(t testing.TB, b *Book, from engine.Barrier, f Facts) ([]byte, Receipt) {
	t.Helper()
	raw, r, err := b.Sign(from, f)
	if err != nil {
		t.Fatal(err)
	}
	return raw, r
}

func TestKindOf(t *testing.T) {
	cases := []struct {
		forced, flushed, whole bool
		want                   Kind
	}{
		{false, true, true, Clean}, {false, true, false, Degraded}, {false, false, true, Fenced}, {false, false, false, Fenced},
		{true, true, true, Forced}, {true, true, false, Forced}, {true, false, true, Forced}, {true, false, false, Forced},
	}
	for _, c := range cases {
		if got := KindOf(c.forced, c.flushed, c.whole); got != c.want {
			t.Errorf("KindOf(%t, %t, %t) = %s, want %s", c.forced, c.flushed, c.whole, got, c.want)
		}
	}
}

func TestSignAndVerify(t *testing.T) {
	book := newBook(t)
	b := barrier(5, nil)
	raw, signed := sign(t, book, b, Facts{Name: "the claim", Reason: "because"})
	got, err := book.Verify(raw)
	if err != nil || !reflect.DeepEqual(got, signed) {
		t.Fatalf("%+v, %v", got, err)
	}
	want := Receipt{
		Version: 1, Kind: Clean, Name: "the claim", Attachment: b.Attachment, Writer: 5, View: "7.2", Clean: true, Size: volume.GiB,
		Replicas: 3, Expected: b.Expected, Verified: b.Verified, Repairs: b.Repairs, RepairCount: 1, Reason: "because",
		At: time.Date(2026, 11, 24, 8, 42, 1, 234_000_000, time.UTC), Key: book.keys.Current(), Evidence: got.Evidence,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	e := got.Evidence[1]
	if len(got.Evidence) != 3 || e.ID != "b" || e.Place != "/stores/<b>" || !e.Digest.Equal(b.Expected) || !e.Durable || !e.Lossy || e.Error != "fine" {
		t.Errorf("evidence %+v", got.Evidence)
	}
	again, _ := sign(t, book, b, Facts{Name: "the claim", Reason: "because"})
	if !bytes.Equal(raw, again) {
		t.Error("the same facts are not the same bytes")
	}
}

func TestKindsOfReceipts(t *testing.T) {
	book := newBook(t)
	cases := []struct {
		name   string
		change func(*engine.Barrier, *Facts)
		want   Kind
		clean  bool
	}{
		{"clean, with a repair", func(*engine.Barrier, *Facts) {}, Clean, true},
		{"a replica missing", func(b *engine.Barrier, _ *Facts) { b.Evidence = b.Evidence[:2] }, Degraded, true},
		{"a replica stale", func(b *engine.Barrier, _ *Facts) { b.Evidence[0].State = engine.Stale }, Degraded, true},
		{"a replica in error", func(b *engine.Barrier, _ *Facts) { b.Evidence[0].Error = "EIO" }, Degraded, true},
		{"writer shut out", func(b *engine.Barrier, _ *Facts) { b.Clean = false }, Fenced, false},
		{"write-back error", func(_ *engine.Barrier, f *Facts) { f.Unflushed = "EIO" }, Fenced, false},
		{"forced", func(b *engine.Barrier, f *Facts) {
			f.Forced, f.Actor = true, "admin"
			b.Unresolved = []engine.Finding{{Offset: 4096, Length: 4096, Cause: "rot"}}
		}, Forced, true},
	}
	for _, c := range cases {
		b, f := barrier(5, nil), Facts{}
		c.change(&b, &f)
		raw, r := sign(t, book, b, f)
		if r.Kind != c.want || r.Clean != c.clean {
			t.Errorf("%s: kind %s, clean=%t", c.name, r.Kind, r.Clean)
		}
		if _, err := book.Verify(raw); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	book := newBook(t)
	cases := map[string]func(*engine.Barrier){
		"no copy can win":       func(b *engine.Barrier) { b.Unresolved = make([]engine.Finding, 1) },
		"no volume":             func(b *engine.Barrier) { b.Attachment.Volume = "" },
		"no node":               func(b *engine.Barrier) { b.Attachment.Node = "" },
		"no epoch":              func(b *engine.Barrier) { b.Attachment.Epoch = 0 },
		"writer before attach":  func(b *engine.Barrier) { b.Writer = 4 },
		"no replicas":           func(b *engine.Barrier) { b.Replicas = 0 },
		"absurd evidence":       func(b *engine.Barrier) { b.Evidence = make([]engine.Evidence, EvidenceMax+1) },
		"head that is no hash":  func(b *engine.Barrier) { b.Head = []byte{1} },
		"absurd digest, unread": func(b *engine.Barrier) { b.Expected.Sum = make([]byte, RawMax) },
	}
	for name, spoil := range cases {
		b := barrier(5, nil)
		spoil(&b)
		if _, _, err := book.Sign(b, Facts{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLongAndOddTextsAreCut(t *testing.T) {
	book := newBook(t)
	b := barrier(5, nil)
	long := strings.Repeat("ü", 5000) + "\xff\x00<>&\u2028"
	for range 5000 {
		b.Repairs = append(b.Repairs, engine.Repair{Finding: engine.Finding{Replica: "a", Cause: long}, From: "b"})
	}
	for i := range b.Evidence {
		b.Evidence[i].Place, b.Evidence[i].Reason, b.Evidence[i].Incarnation = "\xff\x00<>&\u2028", long, long
	}
	raw, r := sign(t, book, b, Facts{Name: long, Reason: long, Actor: "\xc3\x28"})
	if got, err := book.Verify(raw); err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("%v", err)
	}
	if len(r.Repairs) != ListMax || r.RepairCount != 5001 || len(r.Name) > textMax || !strings.HasSuffix(r.Name, "…") {
		t.Errorf("%d repairs of %d, name of %d bytes", len(r.Repairs), r.RepairCount, len(r.Name))
	}
}

func TestEveryChangedByteIsFound(t *testing.T) {
	book := newBook(t)
	raw, _ := sign(t, book, barrier(5, Hash([]byte("before"))), Facts{Name: "the claim"})
	for i := range raw {
		for _, mask := range []byte{0x01, 0x20, 0x80} {
			spoiled := bytes.Clone(raw)
			spoiled[i] ^= mask
			if r, err := book.Verify(spoiled); err == nil {
				t.Fatalf("byte %d changed by %#x: %+v", i, mask, r)
			}
		}
	}
	for name, spoiled := range map[string][]byte{
		"cut": raw[:len(raw)-1], "longer": append(bytes.Clone(raw), '\n'), "spaced": append([]byte(" "), raw...), "empty": nil,
		"two": append(bytes.Clone(raw), raw...), "huge": make([]byte, RawMax+1),
	} {
		if _, err := book.Verify(spoiled); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSignatureIsOverTheFacts: a well-formed receipt with other facts and the old signature.
func TestSignatureIsOverTheFacts(t *testing.T) {
	book := newBook(t)
	raw, r := sign(t, book, barrier(5, nil), Facts{})
	var s sealed
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	r.Attachment.Node = "node-b"
	forged, err := canonical(r, s.Signature)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(forged); err != nil {
		t.Fatalf("the forgery is not even well-formed: %v", err)
	}
	if _, err := book.Verify(forged); !errors.Is(err, ErrSignature) {
		t.Errorf("forged: %v", err)
	}
	if _, err := newBook(t).Verify(raw); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("another installation's: %v", err)
	}
}

func chain(t testing.TB, book *Book, n int) (raws [][]byte) {
	t.Helper()
	var head []byte
	for i := range n {
		raw, r := sign(t, book, barrier(volume.Epoch(5+2*i), head), Facts{})
		if !bytes.Equal(r.Previous, head) {
			t.Fatalf("receipt %d names %x, want %x", i, r.Previous, head)
		}
		raws, head = append(raws, raw), Hash(raw)
	}
	return raws
}

func TestVerifyChain(t *testing.T) {
	book := newBook(t)
	good := chain(t, book, 4)
	if breaks := book.VerifyChain(good); len(breaks) > 0 {
		t.Fatalf("%+v", breaks)
	}
	if breaks := book.VerifyChain(nil); len(breaks) > 0 {
		t.Fatalf("no receipts: %+v", breaks)
	}
	other := barrier(20, Hash(good[0]))
	other.Attachment.Volume = "pvc-2"
	foreign, _ := sign(t, book, other, Facts{})
	old, _ := sign(t, book, barrier(5, Hash(good[0])), Facts{})
	spoiled := bytes.Clone(good[1])
	spoiled[20] ^= 1
	cases := []struct {
		name string
		raws [][]byte
		at   []int
		says string
	}{
		{"one removed", [][]byte{good[0], good[2], good[3]}, []int{1}, "as the receipt before it"},
		{"two swapped", [][]byte{good[0], good[2], good[1], good[3]}, []int{1, 2, 3}, "as the receipt before it"},
		{"one twice", [][]byte{good[0], good[0], good[1]}, []int{1}, "as the receipt before it"},
		{"one spoiled", [][]byte{good[0], spoiled, good[2], good[3]}, []int{1, 2}, "receipt"},
		{"another volume's", [][]byte{good[0], foreign}, []int{1}, "pvc-2"},
		{"an older epoch", [][]byte{good[0], old}, []int{1}, "epoch 5"},
		{"the first is missing: not a break, the rest holds", good[1:], nil, ""},
	}
	for _, c := range cases {
		var at []int
		for _, b := range book.VerifyChain(c.raws) {
			at = append(at, b.Index)
			if !strings.Contains(b.Cause, c.says) {
				t.Errorf("%s: %q does not say %q", c.name, b.Cause, c.says)
			}
		}
		if !reflect.DeepEqual(at, c.at) {
			t.Errorf("%s: breaks at %v, want %v", c.name, at, c.at)
		}
	}
}

// TestFormatIsPinned keeps old receipts verifiable: the bytes of version 1 do not change any more.
func TestFormatIsPinned(t *testing.T) {
	const pinned = `{"version":1,"kind":"degraded","name":"the claim","attachment":{"volume":"pvc-1","node":"node-a","epoch":5},"writer":5,` +
		`"view":"7.2","clean":true,"size":1073741824,"replicas":3,"expected":{"algorithm":"sum","scope":"full","bytes":1073741824,"sum":"010203"},` +
		`"evidence":[{"id":"a","domain":"disk a","place":"/stores/\u003ca\u003e","state":"InSync","incarnation":"i",` +
		`"position":{"generation":"g","sequence":9},"positionBy":"replica","digest":{"algorithm":"sum","scope":"full","bytes":1073741824,"sum":"010203"},` +
		`"digestBy":"replica","durable":true,"lossy":true,"verified":1048576,"error":"fine"}],"verified":3145728,` +
		`"repairs":[{"replica":"b","offset":4096,"length":4096,"cause":"rot","from":"a"}],"repairCount":1,"at":"2026-11-24T08:42:01.234Z",` +
		`"previous":"` + "0000000000000000000000000000000000000000000000000000000000000000" + `","key":"`
	b := barrier(5, make([]byte, hashLen))
	b.Evidence = b.Evidence[:1]
	raw, _ := sign(t, newBook(t), b, Facts{Name: "the claim"})
	if want := `{"receipt":` + pinned; !strings.HasPrefix(string(raw), want) {
		t.Errorf("got  %s\nwant %s", raw, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, raw := range chain(f, newBook(f), 2) {
		f.Add(raw)
	}
	f.Add([]byte(`{"receipt":{},"signature":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := Parse(raw)
		if err != nil {
			return
		}
		var s sealed
		if err := json.Unmarshal(raw, &s); err != nil {
			t.Fatal(err)
		}
		if again, err := canonical(r, s.Signature); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("one receipt, two forms:\n%s\n%s", raw, again)
		}
	})
}
