package admin

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/belay-storage/belay/pkg/receipt"
	"github.com/belay-storage/belay/pkg/volume"
	"github.com/belay-storage/belay/pkg/wire"
)

// noticesKept is how many notices a board keeps for who comes late.
const noticesKept = 4096

// noticesPage is how many are given at once: a new leader asks every node at the same time, and has all their pages in memory.
const noticesPage = 256

// NoticeKind says what a notice is of.
type NoticeKind string

// Kinds of notices.
const (
	Refused     NoticeKind = "refused"     // a detach was refused; Message says why and what to do next
	Waiting     NoticeKind = "waiting"     // a detach is not finished yet; Message says how far it is
	Started     NoticeKind = "started"     // the work that ends in a receipt began
	Finished    NoticeKind = "finished"    // a clean receipt is in force
	Fenced      NoticeKind = "fenced"      // a receipt is in force, earned without the writer
	Forced      NoticeKind = "forced"      // a receipt is in force by an operator's override
	Quarantined NoticeKind = "quarantined" // copies disagree, and nobody can tell which is right
	Lost        NoticeKind = "lost"        // the device was lost under its workload: it must be staged again
	Unclean     NoticeKind = "unclean"     // staged after a writer that had not flushed
	Damaged     NoticeKind = "damaged"     // its filesystem is damaged, and not mounted
	Restaged    NoticeKind = "restaged"    // staged on this node
)

// Notice is something that happened to a volume and that the orchestrator's people should see.
type Notice struct {
	Seq     uint64           `json:"seq"`
	Time    time.Time        `json:"time"`
	Node    volume.NodeID    `json:"node"`
	Volume  volume.ID        `json:"volume"`
	Kind    NoticeKind       `json:"kind"`
	Epoch   volume.Epoch     `json:"epoch,omitempty"` // of the attachment; 0: not known, as the host does not know it
	Message string           `json:"message"`
	Receipt *receipt.Receipt `json:"receipt,omitempty"` // with Finished, Fenced, Forced
}

// Cursor is a place between two notices of one run of a server. The zero value is before all that are kept.
type Cursor struct {
	Run string `json:"run"`
	Seq uint64 `json:"seq"`
}

// NoticePage are notices, oldest first, at most noticesPage of them, and the place after them.
type NoticePage struct {
	Notices []Notice `json:"notices"`
	Next    Cursor   `json:"next"`
	// More: others follow, and need not be waited for.
	More bool `json:"more,omitempty"`
	// Missed: there were others after the cursor, which are not kept any more.
	Missed bool `json:"missed,omitempty"`
}

// Board keeps the newest notices of a server for those who ask. Safe for concurrent use.
type Board struct {
	node volume.NodeID
	run  string

	mu    sync.Mutex
	kept  []Notice
	last  uint64
	fresh chan struct{} // closed at the next notice
}

// NewBoard returns the board of a server on the node.
func NewBoard(node volume.NodeID) *Board {
	return &Board{node: node, run: rand.Text(), fresh: make(chan struct{})}
}

// Post adds a notice, and gives it number, time and node.
func (b *Board) Post(n Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	n.Seq, n.Time, n.Node = b.last, time.Now().UTC(), b.node
	if len(b.kept) == noticesKept {
		b.kept = append(b.kept[:0:0], b.kept[noticesKept/2:]...)
	}
	b.kept = append(b.kept, n)
	close(b.fresh)
	b.fresh = make(chan struct{})
}

// after returns what follows the cursor, as far as a page goes, and a channel that is closed at the next notice.
func (b *Board) after(c Cursor) (NoticePage, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	seen := c.Seq
	if c.Run != b.run {
		seen = 0
	}
	first := b.last - uint64(len(b.kept)) // the number before the oldest that is kept
	page := NoticePage{Next: Cursor{b.run, b.last}, Missed: seen < first || c.Run != b.run && c.Run != ""}
	if from := max(seen, first) - first; from < uint64(len(b.kept)) {
		rest := b.kept[from:]
		page.Notices = append(page.Notices, rest[:min(len(rest), noticesPage)]...)
		page.Next.Seq, page.More = first+from+uint64(len(page.Notices)), len(rest) > noticesPage
	}
	return page, b.fresh
}

// Wait returns the notices after the cursor as soon as there is one.
func (b *Board) Wait(ctx context.Context, c Cursor) (NoticePage, error) {
	for {
		page, fresh := b.after(c)
		if len(page.Notices) > 0 || page.Missed {
			return page, nil
		}
		select {
		case <-ctx.Done():
			return NoticePage{}, ctx.Err()
		case <-fresh:
		}
	}
}

func (s server) notices(ctx context.Context, c Cursor, _ func(none)) (NoticePage, error) {
	return s.Board.Wait(ctx, c)
}

// Notices waits until the server has notices after the cursor, and returns them. Missed with none: the server is another one than that of the cursor.
func (c *Client) Notices(ctx context.Context, since Cursor) (NoticePage, error) {
	return wire.Call[NoticePage, none](ctx, c.wire, methodNotices, since, nil)
}
