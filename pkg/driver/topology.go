package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// topologyKey is the key of a node's own name in topologies.
func topologyKey(driver string) string { return "topology." + driver + "/node" }

func (d *Driver) topologyOf(node volume.NodeID) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{topologyKey(d.Name): string(node)}}
}

// accessible is where the volume can be used; none is everywhere.
func (d *Driver) accessible(v engine.Volume) []*csi.Topology {
	list := make([]*csi.Topology, 0, len(v.Nodes))
	for _, n := range v.Nodes {
		list = append(list, d.topologyOf(n))
	}
	return list
}

// reachable answers RESOURCE_EXHAUSTED where a volume must be usable only where none can be made (CSI, CreateVolume).
func (d *Driver) reachable(ctx context.Context, r *csi.TopologyRequirement) error {
	if len(r.GetRequisite()) == 0 {
		return nil
	}
	for _, t := range r.GetRequisite() {
		if ok, err := d.covers(ctx, t); err != nil || ok {
			return err
		}
	}
	return answer(codes.ResourceExhausted, "no node of the requested topology can hold the volume (key %s); this is %s", topologyKey(d.Name), d.place())
}

// covers says whether the topology has a node of ours in it. One that does not speak of nodes has.
func (d *Driver) covers(ctx context.Context, t *csi.Topology) (bool, error) {
	node, ok := t.GetSegments()[topologyKey(d.Name)]
	if !ok {
		return true, nil
	}
	return d.knows(ctx, volume.NodeID(node))
}
