package main

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/driver"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/host"
	"github.com/belay-storage/belay/pkg/mount"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/telemetry"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// What packages report through callbacks comes to the volume's history, in words.
func TestEventsMakeTheHistory(t *testing.T) {
	fsys := vfs.NewMem()
	if err := fsys.Mkdir("/state"); err != nil {
		t.Fatal(err)
	}
	h, err := history.Open(history.Config{FS: fsys, Dir: "/state/history", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close(context.Background()) })
	tell := teller{telemetry.New("d", "v"), h, admin.NewBoard("n1")}
	everyCallback(t, tell.driver())
	everyCallback(t, tell.detach())

	a := volume.Attachment{Volume: "pvc-1", Node: "n1", Epoch: 2}
	dev := engine.Device{Path: "/dev/loop7", Writer: 3}
	mounted := detach.Entry{Attachment: a, Access: detach.Mount, FSType: "ext4"}
	raw := detach.Entry{Attachment: a, Access: detach.Block, ReadOnly: true}
	h.Append("pvc-1", history.Entry{Kind: history.Fenced, Text: "of an older volume"})
	d, g := tell.driver(), tell.detach()
	d.Created(engine.Volume{Spec: engine.Spec{ID: "pvc-1", Size: volume.GiB}, Replicas: make([]engine.Replica, 3)})
	d.Published(a)
	d.Unclean(mounted, dev)
	d.Checked(mounted, driver.Check{Writer: 3, Report: mount.Report{Clean: true, Left: "its journal was not emptied", Took: time.Second}})
	d.Staged(mounted, dev)
	at := time.Now().Add(time.Second)
	for range 2 { // a host tells all of it again
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.Attached})
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.Died, From: "v1", Cause: "signal: killed"})
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.TakenOver, To: "v1", Pause: 31 * time.Millisecond})
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.Upgraded, From: "v1", To: "v2", Pause: 4 * time.Millisecond})
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.RolledBack, From: "v3", Cause: "it hangs"})
		tell.host(host.Event{Volume: "pvc-1", At: at, Kind: host.GivenUp, Cause: "no engine can take over"})
		tell.host(host.Event{Volume: "pvc-gone", At: at, Kind: host.Died})
	}
	d.Lost(a, errors.New("device lost: /dev/loop7"))
	g.Fenced(a, engine.FenceProof{Epoch: 8}, "its device is lost")
	g.ReceiptWritten(a, receipt.Receipt{
		Kind: receipt.Fenced, Writer: 8, Replicas: 3, Verified: volume.MiB, RepairCount: 2, Reason: "its device is lost",
		Evidence: []receipt.Replica{{State: engine.InSync}, {State: engine.InSync}, {State: engine.Stale}},
	})
	g.ReceiptWritten(a, receipt.Receipt{
		Kind: receipt.Forced, Writer: 9, Replicas: 1, Reason: "ticket 4711", Actor: "Ann",
		Salvaged: &engine.Salvaged{Epoch: 9, From: "r1", Place: "/srv/a", Configuration: "5.1", Newest: "6.2", LostBlocks: 3},
	})
	d.Unclean(raw, dev)
	d.Staged(raw, dev)
	d.Checked(mounted, driver.Check{Writer: 9, Report: mount.Report{Output: "inode 12 is gone"}})
	d.Checked(mounted, driver.Check{Writer: 9, Err: errors.New("e2fsck is not there")})
	g.Quarantined(a, "copies disagree")

	got, err := h.Read(t.Context(), "pvc-1")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range got.Entries {
		_, rest, _ := strings.Cut(e.String(), string(e.Kind))
		lines = append(lines, string(e.Kind)+rest)
	}
	want := []string{
		"created 1 GiB, 3 replicas",
		"published (epoch 2) to node n1",
		"attached-unclean (epoch 3) its last writer died or was shut out before it had flushed; ext4 is checked before it is mounted",
		"checked (epoch 3) [1s] ext4 is consistent; before: its journal was not emptied",
		"attached (epoch 3) ext4 on /dev/loop7",
		"engine-died version v1: signal: killed",
		"taken-over [31ms] version v1",
		"upgraded [4ms] from version v1 to v2",
		"upgrade-undone version v3: it hangs",
		"device-lost no engine can take over",
		"device-lost (epoch 2) device lost: /dev/loop7",
		"fenced (epoch 2) every writer before epoch 8 is shut out: its device is lost",
		"detached (epoch 8) fenced receipt: 2 of 3 replicas in sync, 1 MiB read back, 2 ranges mended: its device is lost",
		"salvaged (epoch 9) by an operator's decision it is what replica r1 at /srv/a held, configuration 5.1; the newest seen was 6.2; 3 blocks lost",
		"detached (epoch 9) forced receipt: 0 of 1 replicas in sync, 0 B read back: ticket 4711 (by Ann)",
		"attached-unclean (epoch 3) its last writer died or was shut out before it had flushed; what a raw block device holds is its workload's to check",
		"attached (epoch 3) raw block device /dev/loop7, read-only",
		"checked (epoch 9) ext4 is DAMAGED and is not mounted: inode 12 is gone",
		"checked (epoch 9) ext4 could not be checked and is not mounted: e2fsck is not there",
		"quarantined (epoch 2) copies disagree",
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("history:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if other, err := h.Read(t.Context(), "pvc-gone"); err != nil || len(other.Entries) > 0 {
		t.Errorf("of a volume that is gone: %+v, %v", other, err)
	}
	d.Deleted("pvc-1")
	if left, err := h.Read(t.Context(), "pvc-1"); err != nil || len(left.Entries) > 0 {
		t.Errorf("after the deletion: %+v, %v", left, err)
	}
}

// everyCallback wants none to be forgotten.
func everyCallback(t *testing.T, events any) {
	t.Helper()
	v := reflect.ValueOf(events)
	for i := range v.NumField() {
		if v.Field(i).IsNil() {
			t.Errorf("nobody listens to %T.%s", events, v.Type().Field(i).Name)
		}
	}
}
