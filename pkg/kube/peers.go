package kube

import (
	"context"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
)

// How long a node may take: to answer a question, and to fence, which goes on without the caller and is asked for again.
const (
	answerWait = 10 * time.Second
	fenceWait  = time.Minute
)

// Peer is what is asked of a node; *admin.Client is one.
type Peer interface {
	// Notices waits until there are notices after the cursor.
	Notices(ctx context.Context, since admin.Cursor) (admin.NoticePage, error)
	// Volumes lists the node's volumes.
	Volumes(ctx context.Context) (admin.Listing, error)
	// Why tells what holds the volume.
	Why(ctx context.Context, volume string) (admin.Why, error)
	// Receipts lists the volume's receipts, oldest first.
	Receipts(ctx context.Context, volume string) (admin.Receipts, error)
	// Fence carries an operator's override out.
	Fence(ctx context.Context, volume string, o detach.Override) (receipt.Receipt, error)
}

// Peers returns the way to a node. The empty name is the gate of this process, which decides about volumes that live on no one node: nil where it has none.
type Peers func(volume.NodeID) Peer
