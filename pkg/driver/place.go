package driver

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/belay-storage/belay/pkg/volume"
)

// CreateVolume implements csi.ControllerServer. The volume is made on the first machine that can have it: in the order of the topology that is asked for, or
// else where there is most room. Where several will do, one that has the volume already, from a call that was cut short, is taken. A machine that
// does not answer is passed over, unless there is no other; what such a call has left on it is not looked for.
func (r *Router) CreateVolume(ctx context.Context, q *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if _, err := parseCreation(q); err != nil {
		return nil, err
	}
	nodes, err := r.candidates(ctx, q)
	if err != nil {
		return nil, err
	}
	if len(nodes) > 1 {
		nodes = r.firstWhereItIs(ctx, q.GetName(), nodes)
	}
	for _, node := range nodes {
		var made *csi.CreateVolumeResponse
		if made, err = ask(ctx, r, node, q, csi.ControllerClient.CreateVolume); err == nil || !elsewhereMayDo(err) {
			return made, err
		}
		if away, ok := errors.AsType[*awayError](err); ok {
			err = answer(codes.Unavailable, "volume %s: node %s %w", q.GetName(), node, away)
		}
		r.Log.Info("a volume cannot be made there", "volume", q.GetName(), "node", node, "error", err)
	}
	return nil, err
}

// elsewhereMayDo says that another machine may answer otherwise.
func elsewhereMayDo(err error) bool {
	return Away(err) || codeOf(err) == codes.ResourceExhausted || codeOf(err) == codes.OutOfRange
}

// candidates are the machines that may have the volume, best first; never none.
func (r *Router) candidates(ctx context.Context, q *csi.CreateVolumeRequest) ([]volume.NodeID, error) {
	known, err := r.Machines.List(ctx)
	if err != nil {
		return nil, answer(codes.Unavailable, "volume %s: the nodes cannot be listed: %v", q.GetName(), err)
	}
	known = slices.Clone(known)
	slices.Sort(known)
	where := q.GetAccessibilityRequirements()
	if len(where.GetRequisite())+len(where.GetPreferred()) == 0 {
		known = r.roomiest(ctx, q, known)
	} else if known, err = r.allowed(ctx, where, known); err != nil {
		return nil, err
	}
	if len(known) == 0 {
		return nil, answer(codes.ResourceExhausted, "volume %s: no node of the requested topology has the driver %s (key %s)", q.GetName(), r.Name, topologyKey(r.Name))
	}
	return known, nil
}

// allowed are the machines of the requirement, and of those that it names also such as are not listed while their driver is exchanged: a call before
// this one may have made the volume there, so that it must not be given up.
func (r *Router) allowed(ctx context.Context, where *csi.TopologyRequirement, known []volume.NodeID) ([]volume.NodeID, error) {
	for _, t := range slices.Concat(where.GetPreferred(), where.GetRequisite()) {
		n := volume.NodeID(t.GetSegments()[topologyKey(r.Name)])
		if n == beyond || slices.Contains(known, n) {
			continue
		}
		had, err := r.Machines.Had(ctx, n)
		if err != nil {
			return nil, answer(codes.Unavailable, "the nodes cannot be listed: %v", err)
		}
		if had {
			known = append(known, n)
		}
	}
	return r.within(where, known), nil
}

// within are the machines of the requirement, in its order. A topology that does not speak of nodes allows every one.
func (r *Router) within(where *csi.TopologyRequirement, known []volume.NodeID) (list []volume.NodeID) {
	for _, t := range slices.Concat(where.GetPreferred(), where.GetRequisite()) {
		wanted, names := t.GetSegments()[topologyKey(r.Name)]
		for _, n := range known {
			if (!names || volume.NodeID(wanted) == n) && !slices.Contains(list, n) {
				list = append(list, n)
			}
		}
	}
	return list
}

// roomiest orders machines by the room they have; those that do not answer come last.
func (r *Router) roomiest(ctx context.Context, q *csi.CreateVolumeRequest, nodes []volume.NodeID) []volume.NodeID {
	room := map[volume.NodeID]int64{}
	for _, n := range nodes {
		a, err := ask(ctx, r, n, &csi.GetCapacityRequest{Parameters: q.GetParameters()}, csi.ControllerClient.GetCapacity)
		room[n] = a.GetAvailableCapacity()
		if err != nil {
			room[n] = -1
		}
	}
	slices.SortStableFunc(nodes, func(a, b volume.NodeID) int { return cmp.Compare(room[b], room[a]) })
	return nodes
}

// firstWhereItIs puts the machine first that has a volume of that name already.
func (r *Router) firstWhereItIs(ctx context.Context, name string, nodes []volume.NodeID) []volume.NodeID {
	id, err := volume.IDForName(name)
	if err != nil {
		return nodes
	}
	for i, n := range nodes {
		handle, err := volume.Handle(id, n)
		if err != nil {
			continue
		}
		if _, err = ask(ctx, r, n, &csi.ControllerGetVolumeRequest{VolumeId: handle}, csi.ControllerClient.ControllerGetVolume); err == nil {
			return slices.Insert(slices.Delete(slices.Clone(nodes), i, i+1), 0, n)
		}
	}
	return nodes
}

// GetCapacity implements csi.ControllerServer: of the machine that the topology names, or of all that answer.
func (r *Router) GetCapacity(ctx context.Context, q *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	known, err := r.Machines.List(ctx)
	if err != nil {
		return nil, answer(codes.Unavailable, "the nodes cannot be listed: %v", err)
	}
	if t := q.GetAccessibleTopology(); t != nil {
		known = r.within(&csi.TopologyRequirement{Requisite: []*csi.Topology{t}}, known)
	}
	all := &csi.GetCapacityResponse{}
	for _, n := range known {
		a, err := ask(ctx, r, n, q, csi.ControllerClient.GetCapacity)
		switch {
		case err == nil:
			addCapacity(all, a)
		case len(known) == 1:
			return nil, answer(codes.Unavailable, "node %s: %v", n, err)
		}
	}
	return all, nil
}

func addCapacity(all, one *csi.GetCapacityResponse) {
	all.AvailableCapacity += one.GetAvailableCapacity()
	if m := one.GetMaximumVolumeSize(); m.GetValue() > all.GetMaximumVolumeSize().GetValue() {
		all.MaximumVolumeSize = m
	}
	if m := one.GetMinimumVolumeSize(); m != nil {
		all.MinimumVolumeSize = wrapperspb.Int64(max(m.GetValue(), all.GetMinimumVolumeSize().GetValue()))
	}
}
