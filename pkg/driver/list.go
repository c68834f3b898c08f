package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// tokenPrefix begins a token of ListVolumes; the ID of the last volume of the page before follows. So volumes that
// come and go between two pages neither repeat nor hide others.
const tokenPrefix = "after:"

// ListVolumes implements csi.ControllerServer.
func (d *Driver) ListVolumes(ctx context.Context, r *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	page, next, err := d.page(ctx, r, func(engine.Volume) bool { return true })
	if err != nil {
		return nil, err
	}
	response := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range page {
		message, err := d.volumeMessage(v)
		if err != nil {
			return nil, err
		}
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{
			Volume: message,
			Status: &csi.ListVolumesResponse_VolumeStatus{PublishedNodeIds: publishedTo(v)},
		})
	}
	return response, nil
}

// page returns the volumes that a list is asked for, of those wanted, and the token of what follows.
func (d *Driver) page(ctx context.Context, r listRequest, wanted func(engine.Volume) bool) ([]engine.Volume, string, error) {
	if r.GetMaxEntries() < 0 {
		return nil, "", invalid("max_entries: %d is negative", r.GetMaxEntries())
	}
	after, err := parseToken(r.GetStartingToken())
	if err != nil {
		return nil, "", err
	}
	all, err := d.Control.List(ctx)
	if err != nil {
		return nil, "", err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(v engine.Volume) bool { return !wanted(v) })
	list, next := paginate(all, after, int(r.GetMaxEntries()))
	return list, next, nil
}

// listRequest is a request for a list in pages.
type listRequest interface {
	GetMaxEntries() int32
	GetStartingToken() string
}

func parseToken(token string) (volume.ID, error) {
	if token == "" {
		return "", nil
	}
	s, ok := strings.CutPrefix(token, tokenPrefix)
	id, err := volume.ParseID(s)
	if !ok || err != nil {
		return "", answer(codes.Aborted, "starting_token %q: not one of ours; list again from the start", token)
	}
	return id, nil
}

// paginate returns at most n volumes (0: all) after the one named, and the token of the next page. all is ordered by ID.
func paginate(all []engine.Volume, after volume.ID, n int) (page []engine.Volume, next string) {
	first, found := slices.BinarySearchFunc(all, after, func(v engine.Volume, id volume.ID) int { return strings.Compare(string(v.ID), string(id)) })
	if found {
		first++
	}
	page = all[first:]
	if n > 0 && n < len(page) {
		page = page[:n]
		next = tokenPrefix + string(page[n-1].ID)
	}
	return page, next
}
