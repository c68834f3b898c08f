package distributed

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/vfs"
	"github.com/belay-storage/belay/pkg/volume"
)

// ghost is a node that is Node and CSINode objects, and Belay's agent with a journal. There is no kubelet: its Lease is never renewed, and what a kubelet would
// have the driver do the test does.
type ghost struct {
	name   string
	agent  *detach.Agent
	silent atomic.Bool // its agent does not answer
}

// kernel lets go of everything: what it would refuse is for the tests of real nodes.
type kernel struct{}

func (kernel) Release(context.Context, detach.Entry, detach.DeviceState) error { return nil }
func (kernel) Holders(context.Context, detach.Entry) []string                  { return nil }

func newGhost(p *plant, name string) *ghost {
	p.Helper()
	disk := vfs.NewMem()
	g := &ghost{name: name, agent: must(detach.NewAgent(detach.AgentConfig{
		Node: volume.NodeID(name), Engine: p.mem.On(volume.NodeID(name)), Control: p.mem, Journal: must(detach.OpenJournal(disk, "/stages")),
		Releaser: kernel{}, Book: p.book, Log: p.log, Boot: "boot",
	}))}
	p.Cleanup(g.agent.Close)
	p.api.gone(g.path())
	p.api.gone("/apis/storage.k8s.io/v1/csinodes/" + name)
	var node struct{ Metadata struct{ UID string } }
	p.api.do(p.T, http.MethodPost, "/api/v1/nodes", obj{
		"metadata": obj{"name": name, "annotations": obj{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
		"spec":     obj{"taints": []obj{{"key": "belay.storage/ghost", "effect": "NoSchedule"}}},
	}, &node)
	p.Cleanup(func() { p.api.gone(g.path()); p.api.gone("/apis/storage.k8s.io/v1/csinodes/" + name) })
	p.api.do(p.T, http.MethodPost, "/apis/storage.k8s.io/v1/csinodes", obj{
		"metadata": obj{"name": name, "ownerReferences": []obj{{"apiVersion": "v1", "kind": "Node", "name": name, "uid": node.Metadata.UID}}},
		"spec":     obj{"drivers": []obj{{"name": driverName, "nodeID": name}}},
	}, nil)
	return g
}

func (g *ghost) path() string { return "/api/v1/nodes/" + g.name }

// agent is the gate's way to a node.
func (p *plant) agent(n volume.NodeID) (detach.AgentClient, error) {
	g := p.ghosts[n]
	if g == nil {
		return nil, fmt.Errorf("node %s: nobody knows it", n)
	}
	if g.silent.Load() {
		return nil, errors.New("connection refused")
	}
	return g.agent, nil
}

// taint puts the node out of service, as an operator does who knows that it is off.
func (p *plant) taint(g *ghost) {
	p.Helper()
	var n struct{ Spec struct{ Taints []obj } }
	p.api.do(p.T, http.MethodGet, g.path(), nil, &n)
	taints := append(n.Spec.Taints, obj{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"})
	p.api.do(p.T, http.MethodPatch, g.path(), obj{"spec": obj{"taints": taints}}, nil)
}

// lease is what a kubelet left behind that renewed every second and has stopped.
func (p *plant) lease(g *ghost) {
	p.Helper()
	path := "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
	p.api.gone(path + "/" + g.name)
	p.api.do(p.T, http.MethodPost, path, obj{
		"metadata": obj{"name": g.name},
		"spec":     obj{"holderIdentity": g.name, "leaseDurationSeconds": 1, "renewTime": "2026-01-01T00:00:00.000000Z"},
	}, nil)
	p.Cleanup(func() { p.api.gone(path + "/" + g.name) })
}
