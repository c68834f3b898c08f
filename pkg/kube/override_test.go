package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

const goodOverride = "volume=pvc-1; epoch=3; by=ann@example.com; reason=disk is in the bin; really"

func TestParseOverride(t *testing.T) {
	want := detach.Override{Volume: vol, Epoch: 3, Actor: "ann@example.com", Reason: "disk is in the bin; really"}
	for _, s := range []string{goodOverride, "volume=pvc-1;epoch=3;by=ann@example.com;reason=disk is in the bin; really", " volume = pvc-1 ; epoch = 3 ; by = ann@example.com ; reason = disk is in the bin; really "} {
		if got, err := ParseOverride(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "yes", "volume=pvc-1", "epoch=3; volume=pvc-1; by=a; reason=b", "volume=pvc-1; epoch=0; by=a; reason=b", "volume=pvc-1; epoch=-1; by=a; reason=b",
		"volume=pvc-1; epoch=3x; by=a; reason=b", "volume=pvc-1; epoch=0x3; by=a; reason=b", "volume=pvc-1; epoch=3; by=; reason=b", "volume=pvc-1; epoch=3; by=a; reason= ", "volume=pvc-1; epoch=3; by=a",
		"volume=../x; epoch=3; by=a; reason=b", "volume=pvc-1; volume=pvc-2; epoch=3; by=a; reason=b", "volume=pvc-1; epoch=3; by=a; reason=b\nc",
		"volume=pvc-1; epoch=18446744073709551616; by=a; reason=b", "VOLUME=pvc-1; epoch=3; by=a; reason=b", "volume=pvc-1; epoch=3; by=a; reason=" + strings.Repeat("x", overrideMax),
	} {
		if got, err := ParseOverride(s); !errors.Is(err, detach.ErrOverride) {
			t.Errorf("%q was taken: %+v, %v", s, got, err)
		}
	}
}

func FuzzParseOverride(f *testing.F) {
	f.Add(goodOverride)
	f.Add("volume=a;epoch=1;by=b;reason=c=d;e")
	f.Fuzz(func(t *testing.T, s string) {
		o, err := ParseOverride(s)
		if err != nil {
			return
		}
		again, err := ParseOverride(fmt.Sprintf("volume=%s; epoch=%d; by=%s; reason=%s", o.Volume, o.Epoch, o.Actor, o.Reason))
		if _, idErr := volume.ParseID(string(o.Volume)); err != nil && len(s) < overrideMax-64 || err == nil && again != o || idErr != nil || o.Epoch == 0 || o.Actor == "" || o.Reason == "" {
			t.Errorf("%q: %+v, then %+v, %v", s, o, again, err)
		}
	})
}

// overridden is a cluster with an override on the attachment.
func overridden(text string) []kubetest.Object {
	return append(oneNode(), attachment("csi-1", "pv-1", "n1", map[string]string{AnnotationOverride: text, "csi.alpha.kubernetes.io/node-id": "n1"}))
}

func (w *world) override() (outcomes *[]string, stop func()) {
	outcomes = &[]string{}
	return outcomes, w.run(NewOverrides(w.cluster, w.report, w.dial, func(s string) { *outcomes = append(*outcomes, s) }).Run)
}

func (w *world) annotations(name string) (override, result string) {
	a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.server.Get(a)
	return a.Annotations[AnnotationOverride], a.Annotations[AnnotationOverrideResult]
}

func (w *world) wantsResult(override, result string) {
	w.Helper()
	settle()
	if o, r := w.annotations("csi-1"); o != override || !strings.HasPrefix(r, result) || result == "" && r != "" {
		w.Errorf("override %q, result %q; want %q, %q…", o, r, override, result)
	}
}

// TestOverrideIsCarriedOutOnce: by the node of the volume, and what became of it stands on the attachment.
func TestOverrideIsCarriedOutOnce(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		outcomes, _ := w.override()
		w.wantsResult("", "done: forced receipt of 2000-01-01")
		want := []detach.Override{{Volume: vol, Epoch: 3, Actor: "ann@example.com", Reason: "disk is in the bin; really"}}
		if got := w.peer("n1").fenced; !slices.Equal(got, want) || !slices.Equal(*outcomes, []string{"done"}) {
			t.Errorf("fenced %+v, outcomes %v", got, *outcomes)
		}
		for _, o := range []string{"Node/n1", "PersistentVolumeClaim/data", "VolumeAttachment/csi-1"} {
			if !strings.Contains(strings.Join(w.told(), "\n"), ReasonOverrideDone+" "+o+" x1: override done") {
				t.Errorf("nothing told of %s: %q", o, w.told())
			}
		}
		if writes := w.server.Writes(); len(writes) != 1 {
			t.Errorf("writes: %v", writes)
		}
	})
}

// TestOverrideThatDoesNotApplyIsRejected, once, with the reason.
func TestOverrideThatDoesNotApplyIsRejected(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		objects []kubetest.Object
		peer    func(*peer)
		want    string
	}{
		"not well formed": {text: "please", want: "rejected: override does not apply: want"},
		"another volume":  {text: "volume=pvc-2; epoch=3; by=a; reason=b", want: "rejected: override does not apply: it names volume pvc-2, and the attachment is of pvc-1"},
		"no such volume":  {text: goodOverride, peer: func(p *peer) { p.fenceErr = engine.ErrNotFound }, want: "rejected: "},
		"another epoch":   {text: goodOverride, peer: func(p *peer) { p.fenceErr = fmt.Errorf("%w: open is epoch 4", detach.ErrOverride) }, want: "rejected: override does not apply: open is epoch 4"},
		"volume of another driver": {text: goodOverride, want: "rejected: override does not apply: PersistentVolume pv-1 is not of driver",
			objects: []kubetest.Object{persistentOf("pv-1", "ebs.csi.aws.com")}},
		"inline volume": {text: goodOverride, want: "rejected: override does not apply: the attachment names no", objects: []kubetest.Object{inline(goodOverride)}},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, append(overridden(c.text), c.objects...), func(w *world) {
				if c.peer != nil {
					w.peer("n1").set(c.peer)
				}
				outcomes, _ := w.override()
				w.wantsResult("", c.want)
				if len(w.peer("n1").fenced) != 0 || !slices.Equal(*outcomes, []string{"rejected"}) {
					t.Errorf("fenced %+v, outcomes %v", w.peer("n1").fenced, *outcomes)
				}
				if !strings.Contains(strings.Join(w.told(), "\n"), ReasonOverrideRejected+" VolumeAttachment/csi-1 x1: override rejected: ") {
					t.Errorf("told: %q", w.told())
				}
			})
		})
	}
}

func inline(text string) *storagev1.VolumeAttachment {
	a := attachment("csi-1", "pv-1", "n1", map[string]string{AnnotationOverride: text})
	a.Spec.Source.PersistentVolumeName = nil
	return a
}

// TestOverrideOutlivesDeath: killed between the fence and the annotation, the next run knows by the receipt that it was done.
func TestOverrideOutlivesDeath(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		w.peer("n1").onFence = func() { w.server.SetAway(true) }
		_, stop := w.override()
		settle()
		stop()
		w.wantsResult(goodOverride, "")
		w.server.SetAway(false)
		time.Sleep(2 * time.Minute)
		outcomes, _ := w.override()
		w.wantsResult("", "done: forced receipt of ")
		if got := w.peer("n1").fenced; len(got) != 1 || !slices.Equal(*outcomes, []string{"done"}) {
			t.Errorf("fenced %+v, outcomes %v", got, *outcomes)
		}
	})
}

// TestReceiptOfAnotherIsNoSuccess: an epoch that somebody else has forced is nothing to override, and says so.
func TestReceiptOfAnotherIsNoSuccess(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		if _, err := w.peer("n1").Fence(w.ctx, "pvc-1", detach.Override{Volume: vol, Epoch: 3, Actor: "bob", Reason: "x"}); err != nil {
			t.Fatal(err)
		}
		w.override()
		w.wantsResult("", "rejected: override does not apply: volume pvc-1 needs none")
	})
}

// TestOverrideWaitsForTheNodeButNotForEver: what nobody carries out in ten minutes is not carried out in a week either.
func TestOverrideWaitsForTheNodeButNotForEver(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		w.peer("n1").away = errors.New("node n1 does not answer")
		outcomes, _ := w.override()
		time.Sleep(overridePatience / 2)
		w.wantsResult(goodOverride, "")
		time.Sleep(overridePatience)
		w.wantsResult("", "rejected: could not be carried out for 10m0s: node n1 does not answer")
		w.peer("n1").set(func(p *peer) { p.away = nil })
		time.Sleep(time.Hour)
		if len(w.peer("n1").fenced) != 0 || len(*outcomes) != 1 {
			t.Errorf("fenced %+v, outcomes %v", w.peer("n1").fenced, *outcomes)
		}
	})
}

// TestOverrideThatWasTakenBack and is set again later is tried for as long as any.
func TestOverrideThatWasTakenBack(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		w.peer("n1").away = errors.New("node n1 does not answer")
		w.override()
		time.Sleep(overridePatience / 2)
		w.server.Put(attachment("csi-1", "pv-1", "n1", nil))
		time.Sleep(time.Hour)
		w.server.Put(attachment("csi-1", "pv-1", "n1", map[string]string{AnnotationOverride: goodOverride}))
		time.Sleep(overridePatience / 2)
		w.wantsResult(goodOverride, "")
		w.peer("n1").set(func(p *peer) { p.away = nil })
		time.Sleep(2 * retryMax)
		w.wantsResult("", "done: ")
	})
}

// TestOverrideWhileOthersWrite: the attacher writes to the attachment between our read and our write.
func TestOverrideWhileOthersWrite(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		w.peer("n1").onFence = func() {
			a := attachment("csi-1", "pv-1", "n1", map[string]string{AnnotationOverride: goodOverride, "new": "x"})
			a.Status.DetachError = &storagev1.VolumeError{Message: held}
			w.server.Put(a)
		}
		w.override()
		w.wantsResult("", "done: ")
		a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "csi-1"}}
		w.server.Get(a)
		if a.Annotations["new"] != "x" || a.Status.DetachError == nil || len(w.peer("n1").fenced) != 1 {
			t.Errorf("attachment %v, fenced %v", a, w.peer("n1").fenced)
		}
	})
}

// TestOverrideOfAnAttachmentThatGoes: the detach that it made possible was faster than the annotation.
func TestOverrideOfAnAttachmentThatGoes(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		w.peer("n1").onFence = func() { w.server.Remove(attachment("csi-1", "pv-1", "n1", nil)) }
		outcomes, _ := w.override()
		settle()
		if !slices.Equal(*outcomes, []string{"done"}) {
			t.Errorf("outcomes %v, told %q", *outcomes, w.told())
		}
	})
}

// TestOverrideForAGateInThisProcess reads the API server, and gives the override to the attachment that it names only.
func TestOverrideForAGateInThisProcess(t *testing.T) {
	inCluster(t, overridden(goodOverride), func(w *world) {
		o := NewOverrides(w.cluster, w.report, w.dial, nil)
		open := volume.Attachment{Volume: vol, Node: "n1", Epoch: 3}
		if got, ok := o.Of(w.ctx, open); !ok || got.Actor != "ann@example.com" {
			t.Errorf("got %+v, %v", got, ok)
		}
		for _, other := range []volume.Attachment{{Volume: vol, Node: "n1", Epoch: 4}, {Volume: vol, Node: "n2", Epoch: 3}, {Volume: "pvc-2", Node: "n1", Epoch: 3}} {
			if got, ok := o.Of(w.ctx, other); ok {
				t.Errorf("%v: got %+v", other, got)
			}
		}
		w.server.SetAway(true)
		if got, ok := o.Of(w.ctx, open); ok {
			t.Errorf("by the cache alone: %+v", got)
		}
	})
}
