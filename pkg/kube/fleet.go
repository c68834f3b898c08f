package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/belay-storage/belay/pkg/volume"
)

// ErrAway is wrapped by the error of a node that has no address. The message says why, as far as the cluster knows.
var ErrAway = errors.New("no endpoint")

// Fleet knows the nodes that Belay runs on and where they are reached. It answers from the cluster's caches, so also while the API server is away.
type Fleet struct{ *Cluster }

// List names every node of ours, reachable or not: those whose CSINode lists the driver or that have an endpoint, and those that only had, and have volumes: a list
// of all volumes without theirs would be wrong. ErrNotRead.
func (f Fleet) List(context.Context) ([]volume.NodeID, error) {
	if !f.read() {
		return nil, ErrNotRead
	}
	found := map[volume.NodeID]bool{}
	for _, name := range f.slices.GetIndexer().ListIndexFuncValues(byNode) {
		found[volume.NodeID(name)] = true
	}
	for _, o := range f.csiNodes.GetStore().List() {
		if n, ok := o.(*storagev1.CSINode); ok && f.registered(n) {
			found[volume.NodeID(n.Name)] = true
		}
	}
	for _, name := range f.volumes.GetIndexer().ListIndexFuncValues(byNode) {
		if f.labelled(name) {
			found[volume.NodeID(name)] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

func (f Fleet) registered(n *storagev1.CSINode) bool {
	return slices.ContainsFunc(n.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == f.Driver })
}

// ours says that the node is one of List.
func (f Fleet) ours(node volume.NodeID) bool {
	n, ok := one[*storagev1.CSINode](f.csiNodes, string(node))
	return ok && f.registered(n) || len(some[*discoveryv1.EndpointSlice](f.slices, byNode, string(node))) > 0 ||
		f.labelled(string(node)) && len(some[*corev1.PersistentVolume](f.volumes, byNode, string(node))) > 0
}

// labelled says that there is a Node of that name that has, or had, a driver of ours.
func (f Fleet) labelled(name string) bool {
	n, ok := one[*corev1.Node](f.nodes, name)
	return ok && n.Labels[f.topologyLabel()] != ""
}

// topologyLabel is the label by which kubelet says that a driver of ours has told it the node's name. It stays when the driver goes.
func (k *Cluster) topologyLabel() string { return "topology." + k.Driver + "/node" }

// Had says that the node is one of List, or was: kubelet takes the driver from the CSINode when its pod ends, and until the next pod has an address there
// is no endpoint either. ErrNotRead.
func (f Fleet) Had(_ context.Context, node volume.NodeID) (bool, error) {
	if !f.read() {
		return false, ErrNotRead
	}
	return f.labelled(string(node)) || f.ours(node), nil
}

// Address is host:port of the node's ready endpoint. ErrAway where it has none; ErrNotRead. The errors do not name the node.
func (f Fleet) Address(_ context.Context, node volume.NodeID) (string, error) {
	var found []string
	for _, s := range some[*discoveryv1.EndpointSlice](f.slices, byNode, string(node)) {
		found = append(found, f.endpoints(s, string(node))...)
	}
	if len(found) > 0 {
		return slices.Min(found), nil
	}
	if !f.read() {
		return "", fmt.Errorf("%w; is the API server there?", ErrNotRead)
	}
	return "", fmt.Errorf("%w: %s", ErrAway, f.whyAway(node))
}

func (f Fleet) endpoints(s *discoveryv1.EndpointSlice, node string) (out []string) {
	port := slices.IndexFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
		return p.Name != nil && *p.Name == f.Port && p.Port != nil
	})
	for _, e := range s.Endpoints {
		if port < 0 || !on(e, node) || e.Conditions.Ready != nil && !*e.Conditions.Ready || len(e.Addresses) == 0 {
			continue
		}
		out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[port].Port))))
	}
	return out
}

func on(e discoveryv1.Endpoint, node string) bool { return e.NodeName != nil && *e.NodeName == node }

func nodesOfSlice(s *discoveryv1.EndpointSlice) (out []string) {
	for _, e := range s.Endpoints {
		if e.NodeName != nil && !slices.Contains(out, *e.NodeName) {
			out = append(out, *e.NodeName)
		}
	}
	return out
}

// whyAway tells what the cluster knows of a node without a ready endpoint.
func (f Fleet) whyAway(node volume.NodeID) string {
	n, ok := one[*corev1.Node](f.nodes, string(node))
	if !ok {
		return "the cluster has no such Node"
	}
	var facts []string
	if n.DeletionTimestamp != nil {
		facts = append(facts, "its Node is being deleted")
	}
	if text := notReady(n); text != "" {
		facts = append(facts, text)
	}
	for _, t := range n.Spec.Taints {
		if t.Key == TaintOutOfService {
			facts = append(facts, "it is tainted "+t.Key)
		}
	}
	facts = append(facts, "no pod of Service "+f.Namespace+"/"+f.Service+" is ready there")
	return strings.Join(facts, ", ")
}

// notReady says since when the node is not ready, "" where it is.
func notReady(n *corev1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return fmt.Sprintf("not ready since %s (%s)", c.LastTransitionTime.UTC().Format("2006-01-02 15:04:05"), c.Reason)
		}
		if c.Type == corev1.NodeReady {
			return ""
		}
	}
	return "it has not said yet that it is ready"
}

// Changed calls f whenever a node may have come, gone or changed its address, with its name, until ctx ends.
func (f Fleet) Changed(ctx context.Context, changed func(volume.NodeID)) {
	name := func(o any) {
		switch o := tombless(o).(type) {
		case *storagev1.CSINode:
			changed(volume.NodeID(o.Name))
		case *discoveryv1.EndpointSlice:
			for _, n := range nodesOfSlice(o) {
				changed(volume.NodeID(n))
			}
		}
	}
	subscribe(ctx, f.csiNodes, name)
	subscribe(ctx, f.slices, name)
}

// subscribe calls told with each object that comes, changes (before and after) or goes, until ctx ends.
func subscribe(ctx context.Context, i cache.SharedIndexInformer, told func(any)) {
	registered, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: told, UpdateFunc: func(before, after any) { told(before); told(after) }, DeleteFunc: told,
	})
	if err != nil {
		return // the informer has stopped: nothing changes any more
	}
	context.AfterFunc(ctx, func() { _ = i.RemoveEventHandler(registered) }) // an error: it has stopped
}

// tombless is the object, where the cache only knows that it is gone.
func tombless(o any) any {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}
