package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

func (w *world) hear(lost func(admin.Notice)) (stop func()) {
	return w.run(NewNotices(w.fleet, w.report, w.dial, lost).Run)
}

const held = "volume pvc-1: node n1 holds it: staged; next: NodeUnstageVolume on that node"

// TestRefusalsAreVisible: on claim, attachment and node, in the words of belay why.
func TestRefusalsAreVisible(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.hear(nil)
		w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: vol, Epoch: 3, Message: held})
		time.Sleep(time.Millisecond) // Events are named by the time
		w.peer("n1").Post(admin.Notice{Kind: admin.Started, Volume: vol, Epoch: 3, Message: "not for people"})
		w.peer("n1").Post(admin.Notice{Kind: admin.Forced, Volume: vol, Epoch: 3, Message: "forced"})
		settle()
		w.wants("told", w.told(), []string{
			"DetachForced Node/n1 x1: forced", "DetachForced PersistentVolumeClaim/data x1: forced", "DetachForced VolumeAttachment/csi-1 x1: forced",
			"DetachRefused Node/n1 x1: " + held, "DetachRefused PersistentVolumeClaim/data x1: " + held, "DetachRefused VolumeAttachment/csi-1 x1: " + held,
		})
		for _, e := range w.server.Events() {
			if e.InvolvedObject.Kind == "PersistentVolumeClaim" && (e.Namespace != "shop" || e.InvolvedObject.UID != "claim-1") {
				t.Errorf("event of the claim: %s, %v", e.Namespace, e.InvolvedObject)
			}
			if e.InvolvedObject.Kind == "Node" && (e.Namespace != "default" || e.InvolvedObject.UID != "node-n1") {
				t.Errorf("event of the node: %s, %v", e.Namespace, e.InvolvedObject)
			}
		}
	})
}

// TestTheSameRefusalIsOneSeries: though each text differs; and another volume on the same node is another one.
func TestTheSameRefusalIsOneSeries(t *testing.T) {
	objects := append(oneNode(), persistent("pv-2", "pvc-2@n1"))
	inCluster(t, objects, func(w *world) {
		w.hear(nil)
		for i := range 5 {
			w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: vol, Message: fmt.Sprintf("unstaged %ds ago", i)})
			settle()
		}
		w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: "pvc-2", Message: "two"})
		settle()
		w.wants("told", w.told(), []string{
			"DetachRefused Node/n1 x1: two", "DetachRefused Node/n1 x5: unstaged 4s ago", "DetachRefused PersistentVolumeClaim/data x1: two",
			"DetachRefused PersistentVolumeClaim/data x5: unstaged 4s ago", "DetachRefused VolumeAttachment/csi-1 x5: unstaged 4s ago",
		})
	})
}

// TestManyVolumesOfOneNode are told of each, on the Node too: that one volume has been told of a lot keeps no other quiet.
func TestManyVolumesOfOneNode(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.hear(nil)
		for i := range 3 * eventBurst {
			w.peer("n1").Post(admin.Notice{Kind: admin.Finished, Volume: volume.ID(fmt.Sprintf("v-%d", i)), Message: "clean receipt"})
			settle()
		}
		of := map[string]int{}
		for _, e := range w.server.Events() {
			of[e.InvolvedObject.Kind+" "+e.Annotations[annotationVolume]+e.InvolvedObject.FieldPath]++
		}
		if len(of) != 3*eventBurst || of["Node v-0@n1"] != 1 || of["Node v-29@n1"] != 1 {
			t.Errorf("told: %v", of)
		}
	})
}

// TestRefusalsAreRateLimited: a thousand tries are a few writes, and the tries of an hour are no more than one a minute.
func TestRefusalsAreRateLimited(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.hear(nil)
		events := func() int {
			return len(w.server.Requests(func(r kubetest.Request) bool { return r.Resource == "events" && strings.Contains(r.Path, "/shop/") }))
		}
		for i := range 1000 {
			w.report.Refused("pvc-1@n1", "n1", fmt.Errorf("try %d", i))
			time.Sleep(time.Millisecond)
		}
		settle()
		if n := events(); n != eventBurst {
			t.Errorf("1000 tries were %d writes, want %d", n, eventBurst)
		}
		for range 60 {
			time.Sleep(time.Minute)
			w.report.Refused("pvc-1@n1", "n1", errors.New("again"))
		}
		settle()
		if n := events(); n < eventBurst+50 || n > eventBurst+60 {
			t.Errorf("after an hour of tries: %d writes", n)
		}
	})
}

// TestManyRefusalsAreRateLimited: each of the volumes of a cluster on all three of its objects; a limit that forgets one in favour of another limits none.
func TestManyRefusalsAreRateLimited(t *testing.T) {
	c, written := record.NewEventCorrelatorWithOptions(limits()), 0
	const volumes = 1500
	for range eventBurst + 5 {
		for i := range 3 * volumes {
			e := &corev1.Event{Reason: ReasonRefused, InvolvedObject: corev1.ObjectReference{Kind: fmt.Sprint(i % 3), FieldPath: fmt.Sprint("volume-", i/3)}}
			if r, err := c.EventCorrelate(e); err == nil && !r.Skip {
				written++
			}
		}
	}
	if most := 3 * volumes * (eventBurst + 1); written > most { // and one, where the test takes a minute
		t.Errorf("%d writes, want %d at most", written, most)
	}
}

// TestEventsWaitForTheAPIServer: what happens during an outage is told afterwards.
func TestEventsWaitForTheAPIServer(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.hear(nil)
		w.server.SetAway(true)
		w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: vol, Message: held})
		time.Sleep(time.Minute)
		w.server.SetAway(false)
		time.Sleep(time.Minute)
		if got := w.told(); len(got) != 3 {
			t.Errorf("told: %q", got)
		}
	})
}

// TestEventsWaitAsLongAsTheAPIServerIsAway: those that are told first are not given up for those that follow.
func TestEventsWaitAsLongAsTheAPIServerIsAway(t *testing.T) {
	var objects []kubetest.Object
	for i := range 50 {
		objects = append(objects, persistent(fmt.Sprint("pv-", i), fmt.Sprintf("v-%d@n1", i), func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.Name = fmt.Sprint("c-", i) }))
	}
	inCluster(t, objects, func(w *world) {
		w.server.SetAway(true)
		for i := range objects {
			w.report.Refused(fmt.Sprintf("v-%d@n1", i), "n1", errors.New(held))
		}
		time.Sleep(6 * time.Hour)
		w.server.SetAway(false)
		time.Sleep(time.Minute)
		if got := w.told(); len(got) != len(objects) {
			t.Errorf("%d of %d were told", len(got), len(objects))
		}
	})
}

// TestWhatTheAPIServerSaysInATroubleIsNoLastWord: record gives up at once what is refused, and these refusals pass.
func TestWhatTheAPIServerSaysInATroubleIsNoLastWord(t *testing.T) {
	status := func(err error) bool { _, is := errors.AsType[*apierrors.StatusError](err); return is }
	for _, err := range []error{
		apierrors.NewInternalError(errors.New("etcdserver: leader changed")), apierrors.NewServiceUnavailable("shutting down"),
		apierrors.NewTooManyRequests("later", 1), apierrors.NewServerTimeout(schema.GroupResource{Resource: "events"}, "create", 1), apierrors.NewTimeoutError("later", 1),
	} {
		if got := (&sink{}).tried(err); got == nil || status(got) || !strings.Contains(got.Error(), err.Error()) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "x", nil), apierrors.NewBadRequest("x"), apierrors.NewConflict(schema.GroupResource{}, "x", nil)} {
		if got := (&sink{}).tried(err); !status(got) {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestOldNoticesAreNotToldAgain by a leader that comes late, but for lost devices, which are looked into.
func TestOldNoticesAreNotToldAgain(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		for range 1000 { // some pages of them
			w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: vol, Message: "old"})
		}
		w.peer("n1").Post(admin.Notice{Kind: admin.Lost, Volume: vol, Epoch: 2, Message: "lost"})
		time.Sleep(time.Hour)
		w.peer("n1").Post(admin.Notice{Kind: admin.Quarantined, Volume: vol, Message: "new"})
		var lost []admin.Notice
		stop := w.hear(func(n admin.Notice) { lost = append(lost, n) })
		settle()
		stop()
		if len(lost) != 1 || lost[0].Epoch != 2 || lost[0].Node != "n1" {
			t.Errorf("lost: %v", lost)
		}
		for _, e := range w.told() {
			if !strings.HasPrefix(e, ReasonQuarantined) {
				t.Errorf("told: %s", e)
			}
		}
		if len(w.told()) != 3 {
			t.Errorf("told: %q", w.told())
		}
	})
}

// attended is a node that knows how many wait for its news.
type attended struct {
	Peer
	waiting atomic.Int32
}

func (a *attended) Notices(ctx context.Context, at admin.Cursor) (admin.NoticePage, error) {
	a.waiting.Add(1)
	defer a.waiting.Add(-1)
	return a.Peer.Notices(ctx, at)
}

// TestAQuietNodeIsListenedTo all the time: that nothing happens is no failure after which one waits.
func TestAQuietNodeIsListenedTo(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		a, deaf := &attended{Peer: w.peer("n1")}, 0
		w.run(NewNotices(w.fleet, w.report, func(volume.NodeID) Peer { return a }, nil).Run)
		for range 1000 {
			if settle(); a.waiting.Load() != 1 {
				deaf++
			}
		}
		if deaf > 0 {
			t.Errorf("nobody listened at %d of 1000 looks", deaf)
		}
	})
}

// TestNodesComeAndGo: a node that comes later is heard, one that does not answer is asked again, and one that has gone is not.
func TestNodesComeAndGo(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.peer("n2").away = errors.New("connection refused")
		w.hear(nil)
		settle()
		w.server.Put(node("n2"))
		w.server.Put(csiNode("n2", driver))
		settle()
		w.peer("n2").set(func(p *peer) { p.away = nil })
		time.Sleep(2 * retryMax)
		w.peer("n2").Post(admin.Notice{Kind: admin.Damaged, Volume: "pvc-9", Message: "of n2"})
		settle()
		w.wants("told", w.told(), []string{"FilesystemDamaged Node/n2 x1: of n2"})
		w.server.Remove(csiNode("n2"))
		settle()
		w.peer("n2").Post(admin.Notice{Kind: admin.Quarantined, Volume: "pvc-9", Message: "nobody listens"})
		settle()
		w.wants("told", w.told(), []string{"FilesystemDamaged Node/n2 x1: of n2"})
	})
}

// TestWhatTheRouterSaw: it knows the handle, and not always the node.
func TestWhatTheRouterSaw(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.report.Refused("pvc-1@n1", "", Waiting(errors.New("node n1 does not answer")))
		w.report.Refused("pvc-unknown@n9", "n9", errors.New("nobody to tell"))
		settle()
		w.wants("told", w.told(), []string{
			"DetachWaiting Node/n1 x1: node n1 does not answer", "DetachWaiting PersistentVolumeClaim/data x1: node n1 does not answer",
			"DetachWaiting VolumeAttachment/csi-1 x1: node n1 does not answer",
		})
	})
}

// TestVolumesOfNoOneMachine are found by their ID alone.
func TestVolumesOfNoOneMachine(t *testing.T) {
	objects := append(oneNode(), persistent("pv-3", "pvc-3"), attachment("csi-3", "pv-3", "n1", nil))
	inCluster(t, objects, func(w *world) {
		if got := w.cluster.aboutVolume("pvc-3", "n1"); got.handle != "pvc-3" {
			t.Errorf("found %q", got.handle)
		}
		if got := w.cluster.aboutVolume(vol, volume.NodeID("n1")); got.handle != "pvc-1@n1" {
			t.Errorf("found %q", got.handle)
		}
	})
}
