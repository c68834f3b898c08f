package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// FuzzEntry: an entry of any content is told as damaged and stays, or is of an earlier kernel and goes, or is one that is kept as it is.
func FuzzEntry(f *testing.F) {
	good, err := json.Marshal(entry{
		Boot: "now", Volume: "pvc-1", Name: "pvc-1@00112233", BlockSize: 512, Key: "7", Order: json.RawMessage(`{"volume":"pvc-1"}`),
		First: json.RawMessage(`{}`), Info: json.RawMessage(`{"writer":7}`), Deaths: 2, Since: time.Unix(5, 6).UTC(), Spawned: 3,
		Engines: []running{{PID: 12, Start: "345", Version: "v1", Formats: [2]int{1, 1}, Socket: "/s", Words: "/w", Since: time.Unix(7, 0).UTC()}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.Replace(good, []byte("now"), []byte("then"), 1))
	f.Add(bytes.Replace(good, []byte("boot"), []byte("bood"), 1))
	f.Add(bytes.Replace(good, []byte(`"pvc-1"`), []byte(`"pvc-2"`), 1))
	f.Add([]byte("{}"))
	f.Add([]byte("null"))
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, text []byte) {
		b := book{vfs.NewMem(), "/devices"}
		if err := errors.Join(b.files.MkdirAll(b.dir), write(b.files, b.path("pvc-1"), text)); err != nil {
			t.Fatal(err)
		}
		all, err := b.list("now")
		_, statErr := b.files.Stat(b.path("pvc-1"))
		var says struct {
			Boot   string
			Volume volume.ID
		}
		valid := json.Unmarshal(text, &says)
		switch {
		case err != nil:
			if statErr != nil || len(all) > 0 {
				t.Errorf("%q: %v, %v, %v", text, all, err, statErr)
			}
		case len(all) == 0:
			if statErr == nil || valid != nil || says.Boot == "" || says.Boot == "now" || says.Volume != "pvc-1" {
				t.Errorf("%q was taken for one of an earlier kernel", text)
			}
		default:
			if all[0].Volume != "pvc-1" || all[0].Boot != "now" {
				t.Fatalf("%q reads as %+v", text, all)
			}
			keepsEntry(t, b, all[0])
		}
	})
}

func keepsEntry(t *testing.T, b book, e entry) {
	t.Helper()
	if err := b.put(e); err != nil {
		t.Fatal(err)
	}
	first, err := b.read("pvc-1")
	if err != nil {
		t.Fatalf("%+v is kept, and reads as %v", e, err)
	}
	if err := b.put(first); err != nil {
		t.Fatal(err)
	}
	if again, err := b.read("pvc-1"); err != nil || !reflect.DeepEqual(again, first) {
		t.Errorf("%+v is kept as %+v, %v", first, again, err)
	}
}

// FuzzHello: what a new engine process says first is a hello of a protocol that this host speaks, or a reason to end it; nobody reads on for ever.
func FuzzHello(f *testing.F) {
	good, err := json.Marshal(hello{Protocol: Protocol, Version: "v1", FormatMin: 1, FormatMax: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(good, '\n'))
	f.Add([]byte(`{"protocol":99,"version":"v9"}`))
	f.Add([]byte(`{"protocol":1,"error":"no"}`))
	f.Add([]byte("panic: no\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, out []byte) {
		p, r := &process{}, bytes.NewReader(out)
		err := p.listen(r)
		var h hello
		line, _, _ := bytes.Cut(out, []byte("\n"))
		good := json.Unmarshal(line, &h) == nil && h.Error == "" && h.Protocol >= protocolOldest && h.Protocol <= Protocol
		if long := len(line) > 60<<10; !long && good != (err == nil) {
			t.Errorf("%q: %v", out, err)
		}
		if err == nil && (p.version != h.Version || p.formats != [2]int{h.FormatMin, h.FormatMax}) {
			t.Errorf("%q: version %q, formats %v", out, p.version, p.formats)
		}
		if err != nil && len(err.Error()) > 2000+len(h.Error)+len(h.Version) {
			t.Errorf("%q: an error of %d bytes", out, len(err.Error()))
		}
	})
}

// FuzzOpening: an engine process that is told anything else than an opening ends, and where its host speaks another protocol it says so
// in a hello.
func FuzzOpening(f *testing.F) {
	f.Add([]byte(`{"protocol":99,"volume":"pvc-1","socket":"/s","words":"/w"}`))
	f.Add([]byte(`{"protocol":0}`))
	f.Add([]byte("x"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		var o opening
		err := json.NewDecoder(bytes.NewReader(in)).Decode(&o)
		if err == nil && o.Protocol >= protocolOldest && o.Protocol <= Protocol {
			return // it would serve
		}
		var out bytes.Buffer
		ended := EngineProcess{In: bytes.NewReader(in), Out: &out}.Run(t.Context(), Program{Version: "v1"}, nil)
		if ended == nil {
			t.Fatalf("%q: it ends as if all were well", in)
		}
		var h hello
		if said := out.Len() > 0; said != (err == nil) || said && (json.Unmarshal(out.Bytes(), &h) != nil || !strings.Contains(h.Error, "protocol")) {
			t.Errorf("%q: it says %q, and ends: %v", in, out.String(), ended)
		}
	})
}
