package kube

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/belay-storage/belay/pkg/volume"
)

// Lost says which nodes are lost: that is the permission to fence their writers, and no proof that they are gone. Somebody has decided it, by the
// out-of-service taint or by deleting the Node, or the opt-in policy of expired Leases believes it. Safe for concurrent use.
type Lost struct {
	cluster  *Cluster
	reporter *Reporter
	leases   *Leases // nil: a Lease never makes a node lost

	mu   sync.Mutex
	seen map[volume.NodeID]bool // nodes that the cluster has had
}

// NewLost returns it. leases is the opt-in policy, nil for none: then only the out-of-service taint and a deleted Node count.
func NewLost(k *Cluster, r *Reporter, leases *Leases) *Lost {
	l := &Lost{cluster: k, reporter: r, leases: leases, seen: map[volume.NodeID]bool{}}
	subscribe(context.Background(), k.nodes, func(o any) {
		if n, ok := o.(*corev1.Node); ok {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.seen[volume.NodeID(n.Name)] = true
		}
	})
	return l
}

// Lost implements detach.GateConfig.Lost: it says whether somebody has decided that the node is lost, and how. It asks the API server, and where that
// does not answer or anything is in doubt the node is not lost. A node that is merely not ready is not.
func (l *Lost) Lost(ctx context.Context, node volume.NodeID) (string, bool) {
	return l.ask(ctx, node, l.decided)
}

// Presumed implements detach.GateConfig.Presumed: it says whether the policy, where it is on, believes that the node is lost, and why.
func (l *Lost) Presumed(ctx context.Context, node volume.NodeID) (string, bool) {
	if l.leases == nil {
		return "", false
	}
	return l.ask(ctx, node, l.expired)
}

func (l *Lost) ask(ctx context.Context, node volume.NodeID, why func(context.Context, volume.NodeID) (string, error)) (string, bool) {
	reason, err := "", ErrNotRead
	if node != "" && l.cluster.read() {
		reason, err = why(ctx, node)
	}
	if err != nil {
		l.cluster.Log.Info("nobody can say whether the node is lost", "node", node, "error", err)
		return "", false
	}
	if reason != "" {
		l.reporter.tell(about{node: node}, corev1.EventTypeWarning, ReasonNodeFenced, "volumes of the node that does not answer are fenced: "+reason)
	}
	return reason, reason != ""
}

// decided is why the node is lost, "" where nobody has said so.
func (l *Lost) decided(ctx context.Context, node volume.NodeID) (string, error) {
	n, err := l.cluster.API.nodes().get(ctx, string(node))
	switch {
	case apierrors.IsNotFound(err):
		return l.deleted(node)
	case err != nil:
		return "", err
	}
	for _, t := range n.Spec.Taints {
		if t.Key == TaintOutOfService {
			return fmt.Sprintf("it is tainted %s", t.ToString()), nil
		}
	}
	return "", nil
}

// expired is why the policy believes that the node is lost, "" where it does not.
func (l *Lost) expired(ctx context.Context, node volume.NodeID) (string, error) {
	n, err := l.cluster.API.nodes().get(ctx, string(node))
	if err != nil || ready(n) {
		return "", err
	}
	return l.leases.expired(ctx, node)
}

// deleted needs more than the server's word now: the cache's, which is of the same server in a moment before and follows soon where it still has
// the Node; and a sign that there was one, from an attachment to it or from before. A node that Belay and Kubernetes call by different names is not lost.
func (l *Lost) deleted(node volume.NodeID) (string, error) {
	if _, there := one[*corev1.Node](l.cluster.nodes, string(node)); there {
		return "", fmt.Errorf("node %s: the API server has no such Node any more, and the cache still has it", node)
	}
	if !l.known(node) {
		return "", fmt.Errorf("node %s: the cluster has no such Node, and nothing says that it ever had", node)
	}
	return "the cluster has no such Node any more", nil
}

func (l *Lost) known(node volume.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[node] || len(some[*storagev1.VolumeAttachment](l.cluster.attachments, byNode, string(node))) > 0
}

func ready(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
