package kube

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/volume"
)

// Times of the long poll.
const (
	// pollLength is how long one may wait for news; then the connection is made anew, so that one that has died unnoticed is not waited on for ever.
	pollLength = 5 * time.Minute
	// noticesLook is how often the list of nodes is looked at besides when it changes.
	noticesLook = 30 * time.Second
	// noticesFresh is how old a notice may be that is told at the first contact: older ones have been told, by the leader before.
	noticesFresh = 2 * time.Minute
)

// Notices hears what happens on every node, and tells it. Only one process should: two tell everything twice.
type Notices struct {
	fleet    Fleet
	reporter *Reporter
	peers    Peers
	// lost is given every notice of a lost device, however old.
	lost func(admin.Notice)

	mu      sync.Mutex
	hearing map[volume.NodeID]context.CancelFunc
}

// news says how the kinds of notices are told. Of a lost device Restarts tells, who knows what comes of it; of the rest nothing is told.
var news = map[admin.NoticeKind]told{
	admin.Refused:     {corev1.EventTypeWarning, ReasonRefused},
	admin.Waiting:     {corev1.EventTypeNormal, ReasonWaiting},
	admin.Finished:    {corev1.EventTypeNormal, ReasonFinished},
	admin.Fenced:      {corev1.EventTypeWarning, ReasonFenced},
	admin.Forced:      {corev1.EventTypeWarning, ReasonForced},
	admin.Quarantined: {corev1.EventTypeWarning, ReasonQuarantined},
	admin.Unclean:     {corev1.EventTypeWarning, ReasonUnclean},
	admin.Damaged:     {corev1.EventTypeWarning, ReasonDamaged},
}

// told is how something is told: type and reason of the Event.
type told struct{ kind, reason string }

// NewNotices returns a controller. lost may be nil, and must not block.
func NewNotices(f Fleet, r *Reporter, p Peers, lost func(admin.Notice)) *Notices {
	if lost == nil {
		lost = func(admin.Notice) {}
	}
	return &Notices{fleet: f, reporter: r, peers: p, lost: lost, hearing: map[volume.NodeID]context.CancelFunc{}}
}

// Run hears the nodes until ctx ends.
func (n *Notices) Run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	changed := make(chan struct{}, 1)
	n.fleet.Changed(ctx, func(volume.NodeID) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	for ctx.Err() == nil {
		n.follow(ctx, &all)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(noticesLook):
		}
	}
}

// follow starts hearing nodes that have come and stops hearing those that have gone.
func (n *Notices) follow(ctx context.Context, all *sync.WaitGroup) {
	nodes, err := n.fleet.List(ctx)
	if err != nil {
		return // not read yet
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	gone := n.hearing
	n.hearing = map[volume.NodeID]context.CancelFunc{}
	for _, node := range nodes {
		if stop, known := gone[node]; known {
			n.hearing[node] = stop
			delete(gone, node)
			continue
		}
		own, stop := context.WithCancel(ctx)
		n.hearing[node] = stop
		all.Go(func() { n.hear(own, node) })
	}
	for _, stop := range gone {
		stop()
	}
}

// hear tells what happens on the node until ctx ends.
func (n *Notices) hear(ctx context.Context, node volume.NodeID) {
	var at admin.Cursor
	late, again := true, retryFirst
	for ctx.Err() == nil {
		page, err := n.poll(ctx, node, at)
		if err == nil {
			n.tell(node, page, late)
			at, again = page.Next, retryFirst
			late = late && page.More
			continue
		}
		n.fleet.Log.Debug("node is not heard", "node", node, "error", err)
		pause(ctx, again)
		again = min(2*again, retryMax)
	}
}

// poll returns the notices after the cursor; none where there was no news for as long as one may wait, which is no failure.
func (n *Notices) poll(ctx context.Context, node volume.NodeID, at admin.Cursor) (admin.NoticePage, error) {
	own, cancel := context.WithTimeout(ctx, pollLength)
	defer cancel()
	page, err := n.peers(node).Notices(own, at)
	if err != nil && own.Err() != nil && ctx.Err() == nil {
		return admin.NoticePage{Next: at}, nil
	}
	return page, err
}

// tell tells the page; late says that it is of the time before this process listened.
func (n *Notices) tell(node volume.NodeID, page admin.NoticePage, late bool) {
	if page.Missed && !late {
		n.fleet.Log.Info("node has started anew or has said more than it keeps; some of it was not heard", "node", node)
	}
	for _, notice := range page.Notices {
		notice.Node = node
		if notice.Kind == admin.Lost {
			n.lost(notice)
		}
		how, told := news[notice.Kind]
		if told && (!late || time.Since(notice.Time) <= noticesFresh) {
			n.reporter.tell(n.fleet.aboutVolume(notice.Volume, node), how.kind, how.reason, notice.Message)
		}
	}
}
