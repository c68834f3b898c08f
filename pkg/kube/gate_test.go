package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// anywhere is a cluster with a volume that lives on no one node, attached to n1.
func anywhere(annotations map[string]string) []kubetest.Object {
	return []kubetest.Object{node("n1"), csiNode("n1", driver), node("n2"), csiNode("n2", driver), persistent("pv-1", "pvc-1"), attachment("csi-1", "pv-1", "n1", annotations)}
}

// TestGateOfThisProcessIsHeard: on the claim, the attachment and the node, as if it were a node's gate.
func TestGateOfThisProcessIsHeard(t *testing.T) {
	inCluster(t, anywhere(nil), func(w *world) {
		e, a := w.report.Gate(), volume.Attachment{Volume: vol, Node: "n1", Epoch: 3}
		e.DetachRefused(vol, "n1", fmt.Errorf("%w: it is off", detach.ErrNodeSilent))
		settle() // Events are named by the time
		e.DetachRefused(vol, "n1", fmt.Errorf("%w: half of it", detach.ErrInProgress))
		settle()
		e.Quarantined(a, "two contents")
		for _, k := range []receipt.Kind{receipt.Fenced, receipt.Forced, receipt.Clean} {
			settle()
			e.ReceiptWritten(a, receipt.Receipt{Kind: k, Attachment: a, Reason: "because", Actor: "ann"})
		}
		settle()
		told := strings.Join(w.told(), "\n")
		for reason, text := range map[string]string{
			ReasonRefused: "it is off", ReasonWaiting: "half of it", ReasonQuarantined: "two contents", ReasonFenced: "fenced receipt of epoch 3: because (by ann)",
			ReasonForced: "forced receipt of epoch 3", ReasonFinished: "clean receipt of epoch 3",
		} {
			for _, o := range []string{"PersistentVolumeClaim/data", "VolumeAttachment/csi-1", "Node/n1"} {
				if !slices.ContainsFunc(strings.Split(told, "\n"), func(s string) bool {
					return strings.HasPrefix(s, reason+" "+o+" ") && strings.Contains(s, text)
				}) {
					t.Errorf("no %s on %s with %q:\n%s", reason, o, text, told)
				}
			}
		}
	})
}

// TestForgotten: an attachment that the API server has no record of, and nothing that is in doubt.
func TestForgotten(t *testing.T) {
	open := volume.Attachment{Volume: vol, Node: "n1", Epoch: 3}
	for name, c := range map[string]struct {
		attached kubetest.Object
		want     bool
	}{
		"recorded":                {attachment("csi-1", "pv-1", "n1", nil), false},
		"recorded elsewhere":      {attachment("csi-1", "pv-1", "n2", nil), true},
		"recorded of another":     {attachment("csi-1", "pv-2", "n1", nil), true},
		"recorded without a name": {inline(""), false},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, append(anywhere(nil), c.attached), func(w *world) {
				if got, err := w.cluster.Forgotten(w.ctx, open); got != c.want || err != nil {
					t.Errorf("forgotten %t, %v; want %t", got, err, c.want)
				}
				w.server.SetAway(true)
				if got, err := w.cluster.Forgotten(w.ctx, open); got || err == nil {
					t.Errorf("without the API server: %t, %v", got, err)
				}
			})
		})
	}
	inCluster(t, []kubetest.Object{node("n1")}, func(w *world) {
		if got, err := w.cluster.Forgotten(w.ctx, open); got || err == nil {
			t.Errorf("of a volume that the cluster does not know: %t, %v", got, err)
		}
	})
}

// TestOverrideOfAVolumeOfNoNode is carried out by the gate of this process, and rejected where there is none.
func TestOverrideOfAVolumeOfNoNode(t *testing.T) {
	for _, gate := range []bool{true, false} {
		inCluster(t, anywhere(map[string]string{AnnotationOverride: goodOverride}), func(w *world) {
			peers := Peers(w.dial)
			if !gate {
				peers = func(n volume.NodeID) Peer {
					if n == "" {
						return nil
					}
					return w.peer(n)
				}
			}
			w.run(NewOverrides(w.cluster, w.report, peers, nil).Run)
			if gate {
				w.wantsResult("", "done: forced receipt of ")
			} else {
				w.wantsResult("", "rejected: override does not apply: volume pvc-1: its handle names no node")
			}
			if got := len(w.peer("").fenced); got != map[bool]int{true: 1}[gate] || len(w.peer("n1").fenced) != 0 {
				t.Errorf("with a gate here %t: %d fenced", gate, got)
			}
		})
	}
}

// TestDrainAsksTheGateOfThisProcess: of an attachment that Kubernetes has forgotten only the gate knows.
func TestDrainAsksTheGateOfThisProcess(t *testing.T) {
	inCluster(t, anywhere(nil), func(w *world) {
		w.server.Remove(attachment("csi-1", "pv-1", "n1", nil))
		settle()
		d := NewDrain(w.fleet, w.dial)
		if c := d.state(w.ctx, "n1"); c.Reason != ReasonAllDetached {
			t.Errorf("nothing is attached, and it says %s", c.Reason)
		}
		w.peer("").set(func(p *peer) { p.volumes = attachedTo("n1") })
		if c := d.state(w.ctx, "n1"); c.Reason != ReasonVolumesAttached {
			t.Errorf("the gate has one attached, and it says %s", c.Reason)
		}
		if c := d.state(w.ctx, "n2"); c.Reason != ReasonAllDetached {
			t.Errorf("it is attached to the other node, and it says %s", c.Reason)
		}
		w.peer("").set(func(p *peer) { p.away = errors.New("starting") })
		if c := d.state(w.ctx, "n2"); c.Reason != ReasonNodeUnreachable {
			t.Errorf("the gate does not answer, and it says %s", c.Reason)
		}
	})
}

// TestEventsOutliveTheStartOfTheAPIServer: it forbids everything until it has read the roles, and record gives an Event up that the server refuses.
func TestEventsOutliveTheStartOfTheAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "data.1", errors.New("RBAC"))
		final := func(err error) bool { _, is := errors.AsType[*apierrors.StatusError](err); return is }
		s, away := &sink{ctx: t.Context()}, errors.New("connection refused")
		time.Sleep(time.Hour)
		if !final(s.tried(forbidden)) {
			t.Error("who has no right tries for ever")
		}
		_, err := s.write(func() (*corev1.Event, error) { defer func() { away = nil }(); return nil, away })
		if err != nil {
			t.Errorf("an API server that is back: %v", err)
		}
		time.Sleep(settling - eventPatience - time.Second)
		if err := s.tried(forbidden); final(err) || err == nil {
			t.Errorf("an API server that has just come back: %v", err)
		}
		time.Sleep(time.Second)
		if !final(s.tried(forbidden)) {
			t.Error("who has lost the right tries for ever")
		}
	})
}
