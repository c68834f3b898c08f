package main

import (
	"slices"
	"testing"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// TestUpgradeOfANode: the volumes of other machines are left alone, and that others are away is no matter.
func TestUpgradeOfANode(t *testing.T) {
	alone := attached("alone", "n1", 2)
	alone.At = "" // as a machine's own server lists it
	there := onNode(admin.Listing{
		Volumes: []admin.Volume{attached("a", "n1", 1), attached("b", "n2", 1), alone, detached("c", "n1")},
		Away:    []admin.Away{{Node: "n3", Cause: "refused"}},
	}, "n1")
	var got []volume.ID
	for _, v := range there.Volumes {
		got = append(got, v.ID)
	}
	if !slices.Equal(got, []volume.ID{"a", "alone", "c"}) || there.Err() != nil {
		t.Errorf("%v, %v", got, there.Err())
	}
	if err := onNode(admin.Listing{Away: []admin.Away{{Node: "n1", Cause: "refused"}}}, "n1").Err(); err == nil {
		t.Error("the machine itself is away, and that is not said")
	}

	f, book := newFake(t)
	for i, node := range []volume.NodeID{"n1", "n2"} {
		v := f.volumes[0]
		v.Spec = engine.Spec{ID: volume.ID("used-" + string(node)), Size: volume.GiB}
		v.Attachment, v.Staged, v.Sealed = &volume.Attachment{Volume: v.ID, Node: node, Epoch: volume.Epoch(i + 1)}, true, false
		f.volumes = append(f.volumes, v)
	}
	code, out, errOut := belay(t, "upgrade", "--node", "n2", "--to", "/good", "--socket", f.serve(t, book))
	if code != exitOK || out != "volume used-n2: upgraded from v1 to v2; requests waited 12ms\n" {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
}
