package kube

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

func lease(node string, renewed time.Time) *coordinationv1.Lease {
	seconds, at := int32(40), metav1.NewMicroTime(renewed)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: node, Namespace: leaseNamespace},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &node, LeaseDurationSeconds: &seconds, RenewTime: &at},
	}
}

// TestLost: every combination of what the cluster can say of a node, with the policy and without.
func TestLost(t *testing.T) {
	const outOfService = "tainted node.kubernetes.io/out-of-service"
	nodes := []struct {
		name   string
		node   *corev1.Node // nil: deleted
		lost   string       // without the policy; empty: not lost
		policy bool         // lost by the policy where the Lease is old
	}{
		{"ready", node("n1"), "", false},
		{"not ready", node("n1", notReadyNode), "", true},
		{"says nothing of ready", node("n1", func(n *corev1.Node) { n.Status.Conditions = nil }), "", true},
		{"unreachable taint", node("n1", notReadyNode, taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)), "", true},
		{"shutdown taint", node("n1", notReadyNode, taint("node.cloudprovider.kubernetes.io/shutdown", corev1.TaintEffectNoSchedule)), "", true},
		{"out of service, NoExecute", node("n1", notReadyNode, taint(TaintOutOfService, corev1.TaintEffectNoExecute)), outOfService, true},
		{"out of service, NoSchedule", node("n1", notReadyNode, taint(TaintOutOfService, corev1.TaintEffectNoSchedule)), outOfService, true},
		{"out of service though ready", node("n1", taint(TaintOutOfService, corev1.TaintEffectNoExecute)), outOfService, false},
		{"deleted", nil, "no such Node", false},
	}
	leases := map[string]*coordinationv1.Lease{"no lease": nil, "old lease": lease("n1", time.Unix(0, 0)), "lease of another": withHolder(lease("n1", time.Unix(0, 0)), "n2")}
	for _, n := range nodes {
		for leaseName, l := range leases {
			for _, policy := range []bool{false, true} {
				t.Run(n.name+", "+leaseName+map[bool]string{true: ", policy"}[policy], func(t *testing.T) {
					want := n.lost
					if want == "" && policy && n.policy && leaseName == "old lease" {
						want = "Lease, good for 40s, was not renewed in"
					}
					lostIn(t, n.node, l, policy, want)
				})
			}
		}
	}
}

func withHolder(l *coordinationv1.Lease, holder string) *coordinationv1.Lease {
	l.Spec.HolderIdentity = &holder
	return l
}

// lostIn asks in a world with the node, after a time in which a policy would have seen enough.
func lostIn(t *testing.T, n *corev1.Node, l *coordinationv1.Lease, policy bool, want string) {
	objects := []kubetest.Object{csiNode("n1", driver), node("n2"), persistent("pv-1", "pvc-1@n1"), attachment("csi-1", "pv-1", "n1", nil)}
	if n != nil {
		objects = append(objects, n)
	}
	if l != nil {
		objects = append(objects, l)
	}
	inCluster(t, objects, func(w *world) {
		ask := w.lost(policy)
		time.Sleep(5 * time.Minute)
		reason, lost := either(w.ctx, ask, "n1")
		if lost != (want != "") || !strings.Contains(reason, want) {
			t.Errorf("lost: %q, %v; want %q", reason, lost, want)
		}
		settle()
		fenced := strings.Contains(strings.Join(w.told(), "\n"), ReasonNodeFenced+" Node/n1")
		if fenced != (lost && n != nil) {
			t.Errorf("told: %q", w.told())
		}
	})
}

// either asks whether the node is lost by a decision, and then by the policy. Only a decision allows to end a writer that lives.
func either(ctx context.Context, l *Lost, node volume.NodeID) (string, bool) {
	reason, lost := l.Lost(ctx, node)
	switch {
	case !lost:
		return l.Presumed(ctx, node)
	case strings.Contains(reason, "Lease"):
		return "a Lease decides: " + reason, false
	}
	return reason, lost
}

func (w *world) lost(policy bool) *Lost {
	if !policy {
		return NewLost(w.cluster, w.report, nil)
	}
	leases := NewLeases(w.fleet)
	w.run(leases.Run)
	return NewLost(w.cluster, w.report, leases)
}

// TestNobodyIsLostWithoutTheAPIServer: neither by what the cache says, nor by silence.
func TestNobodyIsLostWithoutTheAPIServer(t *testing.T) {
	objects := []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode, taint(TaintOutOfService, corev1.TaintEffectNoExecute)), lease("n1", time.Unix(0, 0))}
	inCluster(t, objects, func(w *world) {
		ask := w.lost(true)
		w.server.SetAway(true)
		time.Sleep(10 * time.Minute)
		for _, n := range []volume.NodeID{"n1", "unknown", ""} {
			if reason, lost := either(w.ctx, ask, n); lost {
				t.Errorf("node %q is lost: %s", n, reason)
			}
		}
	})
}

// TestNobodyIsLostByAColdCache: before anything was read, a Node that is not there says nothing.
func TestNobodyIsLostByAColdCache(t *testing.T) {
	inCluster(t, nil, func(w *world) {
		cold := must(NewCluster(Config{API: w.api, Driver: driver, Namespace: space}))
		if reason, lost := NewLost(cold, w.report, nil).Lost(w.ctx, "n1"); lost {
			t.Errorf("lost: %s", reason)
		}
	})
}

// TestTheServersWordCountsNotTheCaches: the taint is taken away in the moment of the question; the Node comes back.
func TestTheServersWordCountsNotTheCaches(t *testing.T) {
	objects := []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode, taint(TaintOutOfService, corev1.TaintEffectNoExecute))}
	inCluster(t, objects, func(w *world) {
		w.server.Before(func(r kubetest.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/nodes/n1") {
				w.server.Put(node("n1", notReadyNode))
			}
		})
		if reason, lost := NewLost(w.cluster, w.report, nil).Lost(w.ctx, "n1"); lost {
			t.Errorf("lost: %s", reason)
		}
	})
}

// TestALeaseThatIsRenewedIsNotLost: also one that is renewed seldom, by a clock that is years behind.
func TestALeaseThatIsRenewedIsNotLost(t *testing.T) {
	inCluster(t, []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode), lease("n1", time.Unix(0, 0))}, func(w *world) {
		ask := w.lost(true)
		for i := range 20 {
			time.Sleep(100 * time.Second)
			w.server.Put(lease("n1", time.Unix(int64(i+1), 0)))
			if reason, lost := either(w.ctx, ask, "n1"); lost {
				t.Fatalf("lost: %s", reason)
			}
		}
	})
}

// TestTheOutageOfTheAPIServerIsNotTheNodes: after it every Lease is old, and the observation begins anew.
func TestTheOutageOfTheAPIServerIsNotTheNodes(t *testing.T) {
	inCluster(t, []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode), lease("n1", time.Unix(0, 0))}, func(w *world) {
		ask := w.lost(true)
		time.Sleep(100 * time.Second)
		w.server.SetAway(true)
		time.Sleep(10 * time.Minute)
		w.server.SetAway(false)
		if reason, lost := either(w.ctx, ask, "n1"); lost {
			t.Errorf("at once after the outage: %s", reason)
		}
		time.Sleep(100 * time.Second)
		if reason, lost := either(w.ctx, ask, "n1"); lost {
			t.Errorf("soon after the outage: %s", reason)
		}
		time.Sleep(2 * time.Minute)
		if _, lost := either(w.ctx, ask, "n1"); !lost {
			t.Error("a Lease that is not renewed after the outage either does not count")
		}
	})
}

// TestReadsFarApartAreNoObservation: between them the kubelet may have lived.
func TestReadsFarApartAreNoObservation(t *testing.T) {
	inCluster(t, []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode), lease("n1", time.Unix(0, 0))}, func(w *world) {
		ask := NewLost(w.cluster, w.report, NewLeases(w.fleet)) // which nobody runs
		for range 5 {
			if reason, lost := either(w.ctx, ask, "n1"); lost {
				t.Fatalf("lost: %s", reason)
			}
			time.Sleep(5 * time.Minute)
		}
	})
}

// TestAFlickeringAPIServerIsNoObservation: in each of its short outages the kubelet may have tried in vain.
func TestAFlickeringAPIServerIsNoObservation(t *testing.T) {
	inCluster(t, []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode), lease("n1", time.Unix(0, 0))}, func(w *world) {
		ask := w.lost(true)
		for range 40 {
			w.server.SetAway(true)
			time.Sleep(leaseLook + time.Second)
			w.server.SetAway(false)
			time.Sleep(leaseLook)
			if reason, lost := either(w.ctx, ask, "n1"); lost {
				t.Fatalf("lost: %s", reason)
			}
		}
	})
}

// TestANodeThatHasJustComeBackIsNotLost, though its Lease is still the old one.
func TestANodeThatHasJustComeBackIsNotLost(t *testing.T) {
	inCluster(t, []kubetest.Object{csiNode("n1", driver), node("n1", notReadyNode), lease("n1", time.Unix(0, 0))}, func(w *world) {
		ask := w.lost(true)
		time.Sleep(10 * time.Minute)
		w.server.Before(func(r kubetest.Request) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/nodes/n1") {
				w.server.Put(node("n1"))
			}
		})
		if reason, lost := either(w.ctx, ask, "n1"); lost {
			t.Errorf("lost: %s", reason)
		}
	})
}

// TestANodeThatNeverWasIsNotLost: Belay may call a node otherwise than Kubernetes does. One that was is, also without an attachment.
func TestANodeThatNeverWasIsNotLost(t *testing.T) {
	inCluster(t, []kubetest.Object{node("n1")}, func(w *world) {
		ask := w.lost(false)
		settle()
		w.server.Remove(node("n1"))
		settle()
		if reason, lost := either(w.ctx, ask, "n1.example.com"); lost {
			t.Errorf("lost: %s", reason)
		}
		if _, lost := either(w.ctx, ask, "n1"); !lost {
			t.Error("a deleted Node is not lost")
		}
		if reason, lost := either(w.ctx, w.lost(false), "n1"); lost {
			t.Errorf("who has never seen it says that it is lost: %s", reason)
		}
	})
}
