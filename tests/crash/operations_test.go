package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	hist "github.com/belay-storage/belay/pkg/history"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/tests/orchestrator"
)

// operation is a call during which the server, the host or an engine is killed.
type operation struct {
	name   string
	window time.Duration // how long the call takes, about; corrected by what is seen
	fstype string
	before func(*victim)
	call   func(*victim) func(context.Context) error
	after  func(*victim) // what must hold once the repeated call is answered OK
	// unmounts: the filesystem is written back in it.
	unmounts bool
}

// victim is the volume of one kill.
type victim struct {
	*rig
	*orchestrator.Volume
	spec orchestrator.Spec
	text []byte // what was synced to its file; nil: nothing
	room int64  // the size of its filesystem, before it grew
	// doubt: its device was lost, or the server died while it wrote back. Its receipt may say that it is not clean.
	doubt bool
}

var operations = []operation{
	{name: "CreateVolume", window: 80 * time.Millisecond, before: nothing, call: creating, after: isMade},
	{name: "ControllerPublishVolume", window: 60 * time.Millisecond, before: made, after: worksThenLeaves,
		call: func(v *victim) func(context.Context) error { return v.ControllerPublish }},
	{name: "NodeStageVolume, first", window: 400 * time.Millisecond, before: published, call: staging, after: worksThenLeaves},
	{name: "NodeStageVolume, first, xfs", fstype: "xfs", window: 600 * time.Millisecond, before: published, call: staging, after: worksThenLeaves},
	{name: "NodeStageVolume, with data", window: 200 * time.Millisecond, before: publishedWithData, call: staging, after: worksThenLeaves},
	{name: "NodeStageVolume, in doubt", window: 300 * time.Millisecond, before: inDoubt, call: staging, after: isChecked},
	{name: "NodeStageVolume, in doubt, xfs", fstype: "xfs", window: 500 * time.Millisecond, before: inDoubt, call: staging, after: isChecked},
	{name: "NodePublishVolume", window: 50 * time.Millisecond, before: staged, after: worksThenLeaves,
		call: func(v *victim) func(context.Context) error { return v.Publish }},
	{name: "NodeUnpublishVolume", window: 50 * time.Millisecond, before: used, after: leaves,
		call: func(v *victim) func(context.Context) error { return v.Unpublish }},
	{name: "NodeUnstageVolume", window: 500 * time.Millisecond, before: unpublished, after: isProven, unmounts: true,
		call: func(v *victim) func(context.Context) error { return v.Unstage }},
	{name: "NodeUnstageVolume, of a lost device", window: 300 * time.Millisecond, before: orphaned, after: isProven,
		call: func(v *victim) func(context.Context) error { return v.Unstage }},
	{name: "ControllerUnpublishVolume", window: 60 * time.Millisecond, before: unstaged, after: isDetached,
		call: func(v *victim) func(context.Context) error { return v.ControllerUnpublish }},
	// xfs: the kernel lets ext4 grow while mounted only with CAP_SYS_RESOURCE.
	{name: "ControllerExpandVolume, online", fstype: "xfs", window: 60 * time.Millisecond, before: used, call: expanding, after: hasGrown},
	{name: "ControllerExpandVolume, offline", fstype: "xfs", window: 60 * time.Millisecond, before: detached, call: expanding, after: hasGrown},
	{name: "NodeExpandVolume", fstype: "xfs", window: 100 * time.Millisecond, before: expanded, after: hasGrown,
		call: func(v *victim) func(context.Context) error { return v.Expand }},
	{name: "DeleteVolume", window: 80 * time.Millisecond, before: detached, after: isGone,
		call: func(v *victim) func(context.Context) error { return v.Delete }},
}

// whom are those who die during a call. The device, where there is one, is kept by those who are left.
var whom = []struct {
	name string
	kill func(*victim)
}{
	{"server", func(v *victim) { v.kill() }},
	{"host", func(v *victim) { v.must("kill", v.KillHost(v.Context())) }},
	{"engine", func(v *victim) { v.must("kill", v.KillEngines(v.Context())) }},
	{"server and host", func(v *victim) { v.kill(); v.must("kill", v.KillHost(v.Context())) }},
}

// TestKillDuringOperations kills the server, the host or the engine at a random instant of every call. The call, repeated
// until it is answered OK, finishes the work; nothing is half done or left.
func TestKillDuringOperations(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	n := kills(t, 1, fullKills/10)
	for i := range n {
		for k := range operations {
			o := &operations[k]
			t.Run(fmt.Sprintf("%s/%d", o.name, i), func(t *testing.T) {
				one := *r
				one.T = t
				o.try(&one, fmt.Sprintf("op-%d-%d", k, i))
			})
			if t.Failed() {
				return // the machine is in no known state
			}
		}
	}
}

func (o *operation) try(r *rig, name string) {
	r.Helper()
	v := &victim{rig: r, spec: orchestrator.Spec{Name: name, FSType: "ext4", Size: 64 * mib}}
	if o.fstype == "xfs" {
		v.spec.FSType, v.spec.Size = "xfs", 320*mib
	}
	o.before(v)
	after := time.Duration(r.random.Int64N(int64(o.window)))
	dies := whom[r.random.IntN(len(whom))]
	err := o.interrupt(v, after, dies.kill)
	if r.PID() == 0 {
		v.doubt = v.doubt || o.unmounts
		r.start()
	}
	refused := r.eventually(o.name+" repeated", o.call(v))
	r.Logf("%s killed after %v (the call: %v); repeated: %d times \"not yet\", then OK", dies.name, after.Round(time.Millisecond/10), err, refused)
	o.after(v)
	if o.name != "DeleteVolume" {
		r.do("delete", v.Delete)
	}
	isGone(v)
	r.settled()
}

// interrupt kills in the middle of the call. A call that ends before corrects the window.
func (o *operation) interrupt(v *victim, after time.Duration, kill func(*victim)) error {
	ctx, cancel := context.WithTimeout(v.Context(), callWithin)
	defer cancel()
	answered := make(chan error, 1)
	began := time.Now()
	go func() {
		err := o.call(v)(ctx)
		if took := time.Since(began); err == nil {
			o.window = max(took*11/10, time.Millisecond)
		}
		answered <- err
	}()
	time.Sleep(after)
	kill(v)
	return <-answered
}

// How far a volume is before the call.

func nothing(*victim) {}

func made(v *victim) { v.Volume = v.create(v.spec) }

func published(v *victim) {
	made(v)
	v.do("controller-publish", v.ControllerPublish)
}

func staged(v *victim) {
	published(v)
	v.do("stage", v.Stage)
}

func used(v *victim) {
	staged(v)
	v.do("publish", v.Publish)
	v.room = v.statfs()
	v.text = bytes.Repeat([]byte(v.ID+" was here. "), 4*mib/(len(v.ID)+11))
	v.must("write", writeFile(filepath.Join(v.Target, "file"), v.text))
}

func unpublished(v *victim) {
	used(v)
	v.do("unpublish", v.Unpublish)
}

// orphaned is unpublished, with a server and a host that have just started and a device that nobody kept.
func orphaned(v *victim) {
	used(v)
	v.must("kill", v.KillAll())
	v.start()
	v.do("unpublish", v.Unpublish)
	v.doubt = true
}

// inDoubt is published, and its last writer died: the filesystem has to be checked before it is mounted.
func inDoubt(v *victim) {
	orphaned(v)
	v.do("unstage", v.Unstage)
	v.do("controller-unpublish", v.ControllerUnpublish)
	v.do("controller-publish", v.ControllerPublish)
	v.doubt = false
}

func unstaged(v *victim) {
	unpublished(v)
	v.do("unstage", v.Unstage)
}

func detached(v *victim) {
	unstaged(v)
	v.do("controller-unpublish", v.ControllerUnpublish)
}

func publishedWithData(v *victim) {
	detached(v)
	v.do("controller-publish", v.ControllerPublish)
}

func expanded(v *victim) {
	used(v)
	v.do("controller-expand", func(ctx context.Context) error { return v.ControllerExpand(ctx, v.grown()) })
}

// Calls that are more than one.

func creating(v *victim) func(context.Context) error {
	return func(ctx context.Context) error {
		made, err := v.Create(ctx, v.spec)
		if err == nil {
			v.Volume = made
		}
		return err
	}
}

// staging is what kubelet does where somebody dies: it asks again. The attachment stays the same.
func staging(v *victim) func(context.Context) error { return v.Stage }

func (v *victim) grown() int64 { return v.spec.Size + 32*mib }

func expanding(v *victim) func(context.Context) error {
	return func(ctx context.Context) error { return v.ControllerExpand(ctx, v.grown()) }
}

// What must hold after the call.

func isMade(v *victim) {
	v.Helper()
	for _, s := range v.Stores {
		_, err := os.Stat(filepath.Join(s, "volumes", v.ID, "meta"))
		v.must("replica", err)
	}
	if state := v.volume(v.Volume); state.State != engine.Healthy || len(state.Replicas) != len(v.Stores) {
		v.Fatalf("volume %s is %s (%s) with %d replicas", v.ID, state.State, state.Reason, len(state.Replicas))
	}
}

// isChecked is what must hold where a filesystem was in doubt and is staged: somebody has looked, and found what was synced.
func isChecked(v *victim) {
	v.Helper()
	if d := v.volume(v.Volume).Format.Doubt; d != engine.NoDoubt {
		v.Fatalf("volume %s is staged and its filesystem %s", v.ID, d)
	}
	v.tells(v.Volume, 0, hist.Detached, hist.Checked)
	v.eventually("publish", v.Publish)
	v.must("what was synced", v.intact())
	worksThenLeaves(v)
}

// worksThenLeaves puts the volume to use, as far as it is not, and then lets go of it.
func worksThenLeaves(v *victim) {
	v.Helper()
	v.eventually("stage", v.Stage)
	v.eventually("publish", v.Publish)
	v.text = bytes.Repeat([]byte("after the kill. "), mib/16)
	v.must("write", writeFile(filepath.Join(v.Target, "file"), v.text))
	leaves(v)
}

// leaves is the way out from wherever the volume is.
func leaves(v *victim) {
	v.Helper()
	v.eventually("unpublish", v.Unpublish)
	v.eventually("unstage", v.Unstage)
	isProven(v)
}

// isProven is what must hold where NodeUnstageVolume was answered OK.
func isProven(v *victim) {
	v.Helper()
	v.proof()
	v.do("controller-unpublish", v.ControllerUnpublish)
	isDetached(v)
}

// isDetached is what must hold where ControllerUnpublishVolume was answered OK: a receipt, and everything that was synced.
func isDetached(v *victim) {
	v.Helper()
	v.proof()
	if at := v.volume(v.Volume).Attachment; at != nil {
		v.Fatalf("volume %s is attached to %s still", v.ID, at.Node)
	}
	v.settled()
	v.verify(v.Volume)
	v.do("attach again", v.Attach)
	v.must("what was synced", v.intact())
	v.do("detach", v.Detach)
	v.newest(v.Volume, receipt.Clean)
	v.verify(v.Volume)
	v.identical(v.Volume, v.spec.FSType)
}

// proof wants a receipt: a clean one, where nothing stands against it.
func (v *victim) proof() {
	v.Helper()
	kinds := []receipt.Kind{receipt.Clean}
	if v.doubt {
		kinds = append(kinds, receipt.Fenced)
	}
	v.newest(v.Volume, kinds...)
}

func (v *victim) intact() error {
	have, err := os.ReadFile(filepath.Join(v.Target, "file"))
	if err == nil && !bytes.Equal(have, v.text) {
		err = fmt.Errorf("the file has %d bytes and is not what was synced (%d bytes)", len(have), len(v.text))
	}
	return err
}

func hasGrown(v *victim) {
	v.Helper()
	if size := int64(v.volume(v.Volume).Size); size != v.grown() || v.Size != v.grown() {
		v.Fatalf("volume %s has %d bytes (%d were answered), want %d", v.ID, size, v.Size, v.grown())
	}
	leaves(v)
	v.do("attach", v.Attach)
	v.do("node-expand", v.Expand)
	if got, least := v.statfs()-v.room, (v.grown()-v.spec.Size)*9/10; got < least {
		v.Fatalf("the filesystem on %s has grown by %d bytes, want at least %d", v.ID, got, least)
	}
	v.do("detach", v.Detach)
}

func (v *victim) statfs() int64 {
	v.Helper()
	var st unix.Statfs_t
	v.must("statfs", unix.Statfs(v.Target, &st))
	return int64(st.Blocks) * st.Bsize
}

// isGone wants no trace of the volume.
func isGone(v *victim) {
	v.Helper()
	var all []admin.Volume
	v.do("belay volumes", func(ctx context.Context) error { return v.AskJSON(ctx, &all, "volumes") })
	for _, one := range all {
		if string(one.ID) == v.ID {
			v.Fatalf("volume %s is still listed, as %s (%s)", v.ID, one.State, one.Reason)
		}
	}
	v.do("removal of its history", func(ctx context.Context) error {
		return orchestrator.Until(ctx, "it", func() (bool, error) {
			names, err := filepath.Glob(filepath.Join(v.State(), "history", v.ID+".*"))
			return len(names) == 0, err
		})
	})
	for _, s := range v.Stores {
		if _, err := os.Stat(filepath.Join(s, "volumes", v.ID)); !errors.Is(err, os.ErrNotExist) {
			v.Fatalf("store %s has a replica of %s still (%v)", s, v.ID, err)
		}
	}
}
