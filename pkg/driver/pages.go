package driver

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/volume"
)

// nodeToken begins a token of a Router's lists: the machine whose turn it is and a tab follow, then that machine's own token.
const nodeToken = "node:"

// pager walks through the machines' lists as through one.
type pager[T any] struct {
	r    *Router
	page func(ctx context.Context, node volume.NodeID, token string, most int32) (list []T, next string, err error)
}

// ListVolumes implements csi.ControllerServer. A machine that does not answer makes it UNAVAILABLE: who asks takes a volume that is not listed for one that
// is published nowhere.
func (r *Router) ListVolumes(ctx context.Context, q *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	p := pager[*csi.ListVolumesResponse_Entry]{r, func(ctx context.Context, node volume.NodeID, token string, most int32) ([]*csi.ListVolumesResponse_Entry, string, error) {
		a, err := ask(ctx, r, node, &csi.ListVolumesRequest{StartingToken: token, MaxEntries: most}, csi.ControllerClient.ListVolumes)
		return a.GetEntries(), a.GetNextToken(), err
	}}
	list, next, err := p.list(ctx, q.GetStartingToken(), q.GetMaxEntries())
	return &csi.ListVolumesResponse{Entries: list, NextToken: next}, err
}

// ControllerListVolumeHealth implements csi.ControllerServer.
func (r *Router) ControllerListVolumeHealth(ctx context.Context, q *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	p := pager[*csi.VolumeHealth]{r, func(ctx context.Context, node volume.NodeID, token string, most int32) ([]*csi.VolumeHealth, string, error) {
		a, err := ask(ctx, r, node, &csi.ControllerListVolumeHealthRequest{StartingToken: token, MaxEntries: most}, csi.ControllerClient.ControllerListVolumeHealth)
		return a.GetEntries(), a.GetNextToken(), err
	}}
	list, next, err := p.list(ctx, q.GetStartingToken(), q.GetMaxEntries())
	return &csi.ControllerListVolumeHealthResponse{Entries: list, NextToken: next}, err
}

// list returns at most most entries, 0 for all, from the token on, and the token of what follows.
func (p pager[T]) list(ctx context.Context, token string, most int32) (list []T, next string, err error) {
	if most < 0 {
		return nil, "", invalid("max_entries: %d is negative", most)
	}
	nodes, token, err := p.begin(ctx, token)
	if err != nil {
		return nil, "", err
	}
	for i := 0; i < len(nodes); {
		some, rest, err := p.page(ctx, nodes[i], token, left(most, len(list)))
		if err != nil {
			return nil, "", unlisted(nodes[i], err)
		}
		list = append(list, some...)
		if token = rest; token == "" {
			i++
		}
		if most > 0 && len(list) >= int(most) && i < len(nodes) {
			return list, nodeToken + string(nodes[i]) + "\t" + token, nil
		}
	}
	return list, "", nil
}

func left(most int32, have int) int32 {
	if most == 0 {
		return 0
	}
	return most - int32(have)
}

func unlisted(node volume.NodeID, err error) error {
	if away, ok := errors.AsType[*awayError](err); ok {
		return answer(codes.Unavailable, "node %s %w; a list without its volumes would be wrong", node, away)
	}
	return err
}

// begin returns the machines whose turn it is or is to come, and the token of the first.
func (p pager[T]) begin(ctx context.Context, token string) ([]volume.NodeID, string, error) {
	nodes, err := p.r.Machines.List(ctx)
	if err != nil {
		return nil, "", answer(codes.Unavailable, "the nodes cannot be listed: %v", err)
	}
	nodes = slices.Sorted(slices.Values(nodes))
	if p.r.Beyond != nil {
		nodes = slices.Insert(nodes, 0, beyond)
	}
	if token == "" {
		return nodes, "", nil
	}
	rest, ours := strings.CutPrefix(token, nodeToken)
	node, inner, whole := strings.Cut(rest, "\t")
	if !ours || !whole {
		return nil, "", answer(codes.Aborted, "starting_token %q: not one of ours; list again from the start", token)
	}
	at, found := slices.BinarySearch(nodes, volume.NodeID(node))
	if !found {
		inner = "" // that machine is gone; the next one begins
	}
	return nodes[at:], inner, nil
}
