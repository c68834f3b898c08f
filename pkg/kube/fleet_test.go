package kube

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

func TestFleetFindsNodesAndSaysWhyOneIsAway(t *testing.T) {
	deleting := func(n *corev1.Node) {
		now := metav1.Now()
		n.DeletionTimestamp, n.Finalizers = &now, []string{"x"}
	}
	objects := []kubetest.Object{
		node("n1"), node("n2"), node("n3", notReadyNode), node("n4", taint(TaintOutOfService, corev1.TaintEffectNoExecute)), node("n5", deleting), node("other"),
		csiNode("n1", driver), csiNode("n2", "ebs.csi.aws.com", driver), csiNode("n3", driver), csiNode("n4", driver), csiNode("n5", driver), csiNode("gone", driver),
		csiNode("other", "ebs.csi.aws.com"),
		endpoints("a", map[string]string{"n1": "10.0.0.1", "n2": "10.0.0.2"}, "n1"), endpoints("b", map[string]string{"n6": "fd00::6"}, "n6"),
	}
	inCluster(t, objects, func(w *world) {
		nodes, err := w.fleet.List(w.ctx)
		if err != nil || !slices.Equal(nodes, []volume.NodeID{"gone", "n1", "n2", "n3", "n4", "n5", "n6"}) {
			t.Errorf("nodes: %v, %v", nodes, err)
		}
		for name, want := range map[volume.NodeID]string{"n1": "10.0.0.1:9811", "n6": "[fd00::6]:9811"} {
			if got, err := w.fleet.Address(w.ctx, name); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", name, got, err, want)
			}
		}
		for name, want := range map[volume.NodeID]string{
			"n2": "no endpoint: no pod of Service belay-system/belay-node is ready there", "n3": "not ready since 2026-11-26 02:00:00 (NodeStatusUnknown)",
			"n4": "tainted node.kubernetes.io/out-of-service", "n5": "being deleted", "gone": "no such Node",
		} {
			if got, err := w.fleet.Address(w.ctx, name); !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q, %v, want %q", name, got, err, want)
			}
		}
	})
}

// TestFleetKnowsANodeWhosePodIsExchanged: in between it has neither a driver in its CSINode nor an endpoint, and its volumes are there all the same.
func TestFleetKnowsANodeWhosePodIsExchanged(t *testing.T) {
	registered := func(n *corev1.Node) { n.Labels["topology."+driver+"/node"] = n.Name }
	objects := []kubetest.Object{node("n1", registered), csiNode("n1"), node("n2", registered), csiNode("n2", driver), node("other"), csiNode("other", "ebs.csi.aws.com"),
		endpoints("b", map[string]string{"n6": "10.0.0.6"}),
		node("n3", registered), csiNode("n3"), persistent("pv-3", "pvc-3@n3"), persistent("pv-4", "pvc-4@gone"), persistent("pv-5", "pvc-5@other"), persistent("pv-6", "pvc-6"),
	}
	inCluster(t, objects, func(w *world) {
		// With volumes it is listed: a list of all volumes without them would have them detached.
		if got, err := w.fleet.List(w.ctx); err != nil || !slices.Equal(got, []volume.NodeID{"n2", "n3", "n6"}) {
			t.Errorf("listed: %v, %v", got, err)
		}
		for name, want := range map[volume.NodeID]bool{"n1": false, "n2": true, "n3": true, "n6": true, "gone": false, "other": false} {
			if got := w.fleet.ours(name); got != want {
				t.Errorf("%s is one of the list: %t", name, got)
			}
		}
		for name, want := range map[volume.NodeID]bool{"n1": true, "n2": true, "other": false, "n9": false} {
			if got, err := w.fleet.Had(w.ctx, name); err != nil || got != want {
				t.Errorf("%s: %t, %v", name, got, err)
			}
		}
		if _, err := w.fleet.Address(w.ctx, "n1"); !errors.Is(err, ErrAway) {
			t.Errorf("address: %v", err)
		}
	})
}

// TestFleetOutlivesTheAPIServer: what was read answers while nobody else does, and what changed meanwhile is known afterwards.
func TestFleetOutlivesTheAPIServer(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.server.SetAway(true)
		settle()
		if got, err := w.fleet.Address(w.ctx, "n1"); err != nil || got != "10.0.0.1:9811" {
			t.Errorf("while the API server is away: %q, %v", got, err)
		}
		w.server.Put(endpoints("belay-node-1", map[string]string{"n1": "10.0.0.9"}, "n1"))
		w.server.SetAway(false)
		for range 24 { // client-go's own back-off
			settle()
		}
		if got, err := w.fleet.Address(w.ctx, "n1"); err != nil || got != "10.0.0.9:9811" {
			t.Errorf("afterwards: %q, %v", got, err)
		}
	})
}

// TestFleetSaysThatNothingWasReadYet: a cold cache is not an empty cluster.
func TestFleetSaysThatNothingWasReadYet(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		cold := Fleet{must(NewCluster(Config{API: w.api, Driver: driver, Namespace: space}))}
		if _, err := cold.List(w.ctx); !errors.Is(err, ErrNotRead) {
			t.Errorf("list: %v", err)
		}
		if _, err := cold.Had(w.ctx, "n1"); !errors.Is(err, ErrNotRead) {
			t.Errorf("had: %v", err)
		}
		if _, err := cold.Address(w.ctx, "n1"); !errors.Is(err, ErrNotRead) {
			t.Errorf("address: %v", err)
		}
	})
}
