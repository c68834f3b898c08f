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

// Lost says which nodes are lost: that is the permission to fence their writers, and no proof that they are gone. Safe for concurrent use.
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

// Lost implements detach.GateConfig.Lost: it says whether the node is lost, and why. It asks the API server, and where that does not answer or
// anything is in doubt the node is not lost. A node that is merely not ready is not.
func (l *Lost) Lost(ctx context.Context, node volume.NodeID) (string, bool) {
	reason, err := l.reason(ctx, node)
	if err != nil {
		l.cluster.Log.Info("nobody can say whether the node is lost", "node", node, "error", err)
		return "", false
	}
	if reason != "" {
		l.reporter.tell(about{node: node}, corev1.EventTypeWarning, ReasonNodeFenced, "volumes of the node that does not answer are fenced: "+reason)
	}
	return reason, reason != ""
}

// reason is why the node is lost, "" where it is not.
func (l *Lost) reason(ctx context.Context, node volume.NodeID) (string, error) {
	if node == "" || !l.cluster.read() {
		return "", ErrNotRead
	}
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
	if l.leases == nil || ready(n) {
		return "", nil
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
