package driver

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/volume"
)

// room keeps nodes from taking more volumes than they have room for. Counting them means reading every volume's record,
// so it keeps an upper bound for each node and counts only when that is reached.
type room struct {
	max  int64 // 0: no limit
	list func(ctx context.Context) ([]engine.Volume, error)

	mu   sync.Mutex
	most map[volume.NodeID]int64 // no more than that are attached
}

// take answers RESOURCE_EXHAUSTED where the node is full. Room that is taken and not used is found again by counting.
func (r *room) take(ctx context.Context, node volume.NodeID) error {
	if r.max == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n, counted := r.most[node]
	if !counted || n >= r.max {
		var err error
		if n, err = r.count(ctx, node); err != nil {
			return fmt.Errorf("count the volumes of node %s: %w", node, err)
		}
	}
	if n >= r.max {
		return answer(codes.ResourceExhausted, "node %s has %d volumes attached and takes no more", node, n)
	}
	r.most[node] = n + 1
	return nil
}

func (r *room) count(ctx context.Context, node volume.NodeID) (n int64, err error) {
	all, err := r.list(ctx)
	for _, v := range all {
		if v.Attachment != nil && v.Attachment.Node == node {
			n++
		}
	}
	return n, err
}
