package mirror

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
	"github.com/belay-storage/belay/pkg/volume"
)

// FuzzParameters: parameters of a StorageClass are refused, by name, or give a layout that this engine has.
func FuzzParameters(f *testing.F) {
	f.Add("3", "168h", "4096", "", "", 3)
	f.Add("0", "1ns", "513", "fsTyp", "ext4", 0)
	f.Add("5", "off", "512", "", "", 4)
	f.Add("+2", "-1h", "4096 ", "replicas ", "2", 5)
	f.Fuzz(func(t *testing.T, replicas, verify, blockSize, other, value string, stores int) {
		all := map[string]string{}
		for k, v := range map[string]string{ParameterReplicas: replicas, ParameterVerify: verify, ParameterBlockSize: blockSize, other: value} {
			if k != "" && v != "" {
				all[k] = v
			}
		}
		stores = max(0, min(stores, 8))
		given := maps.Clone(all)
		l, err := parse(all, stores)
		if !maps.Equal(all, given) {
			t.Errorf("%v became %v", given, all)
		}
		if err != nil {
			if !errors.Is(err, engine.ErrInvalid) || len(all) == 0 {
				t.Errorf("%v: %v", all, err)
			}
			return
		}
		if l.replicas < 1 || l.replicas > quorum.ReplicasMax || l.replicas > max(stores, 1) || l.blockSize != 512 && l.blockSize != 4096 {
			t.Errorf("%v on %d stores: %+v", all, stores, l)
		}
		for k := range all {
			if !strings.Contains(known, k) {
				t.Errorf("%q is no parameter, and is taken", k)
			}
		}
		if interval, on := verifyInterval(all); on && interval < time.Second || on == (all[ParameterVerify] == verifyOff) {
			t.Errorf("%v: verified every %v, %t", all, interval, on)
		}
	})
}

// FuzzHolder: who holds a lock is read as who it is, whatever the node is called.
func FuzzHolder(f *testing.F) {
	f.Add("engine", "n1", "pvc-1", 4711, "345", "belay serve pid=1 start=2 node=x")
	f.Add("serve", "a pid=1 start=2", "", 2, "0", "belay engine pid= start=")
	f.Add("engine", "", "v", 1, "x", "rival")
	f.Fuzz(func(t *testing.T, role, node, id string, pid int, start, text string) {
		parseHolder(text)
		if strings.ContainsFunc(role+start, func(r rune) bool { return r <= ' ' || r > 0x7e }) || role == "" || start == "" || pid < 2 {
			return // ours are words, and processes
		}
		want := host.Identity{PID: pid, Start: start}
		gotRole, got, ok := parseHolder(holderText(role, node, volume.ID(id), want))
		if !ok || gotRole != role || got != want {
			t.Errorf("%s of %s %+v reads as %s %+v, %t", role, node, want, gotRole, got, ok)
		}
	})
}

// FuzzAttributes: what a configuration says of its volume is read as what it was, or is too long and refused.
func FuzzAttributes(f *testing.F) {
	f.Add("data", "replicas", "3", "pvc", "default/data", "n1", []byte(`{"name":"x"}`))
	f.Add("", "", "", "", "", "", []byte(`{"name":1}`))
	f.Add(strings.Repeat("n", 4000), "a", "b", "c", "d", "e", []byte("null"))
	f.Fuzz(func(t *testing.T, name, key, value, label, text, node string, raw []byte) {
		read := attributesOf(quorum.Config{Attributes: raw})
		var valid attributes
		if json.Unmarshal(raw, &valid) != nil && !reflect.DeepEqual(read, attributes{}) {
			t.Errorf("%q reads as %+v", raw, read)
		}
		if slices.ContainsFunc([]string{name, key, value, label, text, node}, func(s string) bool { return !utf8.ValidString(s) }) {
			return // CSI has text only
		}
		a := attributes{Name: name, Node: volume.NodeID(node), Parameters: map[string]string{key: value}, Labels: map[string]string{label: text}}
		c, err := withAttributes(quorum.Config{Epoch: 7}, a)
		if err != nil {
			if !errors.Is(err, engine.ErrInvalid) || c.Attributes != nil {
				t.Errorf("%+v: %v", a, err)
			}
			return
		}
		if len(c.Attributes) > quorum.AttributesMax {
			t.Errorf("%d bytes of attributes", len(c.Attributes))
		}
		again, err := withAttributes(c, attributesOf(c))
		if err != nil || string(again.Attributes) != string(c.Attributes) {
			t.Errorf("%s reads as %+v, %v", c.Attributes, attributesOf(c), err)
		}
	})
}

// FuzzFloor: what is remembered of a salvage is refused where it is not whole.
func FuzzFloor(f *testing.F) {
	good, err := json.MarshalIndent(floor{Volume: quorum.UUID{1}, Epoch: 1 << 20, From: quorum.Voter{Store: quorum.UUID{2}, Incarnation: quorum.UUID{3}}}, "", "  ")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("null"))
	f.Add([]byte("{}"))
	f.Add([]byte(`{"volume":null,"epoch":7}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := decodeFloor(text)
		if err == nil && (got.Volume.IsZero() || got.Epoch == 0 || got.From == quorum.Voter{}) {
			t.Errorf("%q reads as %+v", text, got)
		}
		if err != nil {
			return
		}
		again, _ := json.Marshal(got)
		if back, err := decodeFloor(again); err != nil || back != got {
			t.Errorf("%q reads as %+v, and that as %+v, %v", text, got, back, err)
		}
	})
}

// FuzzKnownStores: the table of stores is one that can be written to, or refused.
func FuzzKnownStores(f *testing.F) {
	f.Add([]byte(`{"/srv/a":"00112233445566778899aabbccddeeff"}`), "/srv/b")
	f.Add([]byte("{}"), "")
	f.Add([]byte("null"), "/srv/a")
	f.Add([]byte(`{"/srv/a":null}`), "/srv/a")
	f.Fuzz(func(t *testing.T, text []byte, path string) {
		known, err := decodeKnown(text)
		if err != nil {
			return
		}
		for p, id := range known {
			if id.IsZero() {
				t.Errorf("%q: store %s has no identity", text, p)
			}
		}
		if !utf8.ValidString(path) {
			return // no store is named so
		}
		known[path] = quorum.UUID{1}
		again, err := json.Marshal(known)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeKnown(again); err != nil || len(back) != len(known) {
			t.Errorf("%q reads as %v, and that as %v, %v", text, known, back, err)
		}
	})
}
