package kube

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

func (w *world) drain() { w.run(NewDrain(w.fleet, w.dial).Run) }

func (w *world) condition(name string) string {
	n := node(name)
	w.server.Get(n)
	if c := conditionOf(n); c != nil {
		return string(c.Status) + " " + c.Reason
	}
	return ""
}

func (w *world) wantsCondition(name, want string) {
	w.Helper()
	settle()
	if got := w.condition(name); got != want {
		w.Errorf("condition of %s: %q, want %q", name, got, want)
	}
}

func attachedTo(node volume.NodeID) []admin.Volume {
	return []admin.Volume{{Volume: engine.Volume{Spec: engine.Spec{ID: vol}, Attachment: &volume.Attachment{Volume: vol, Node: node, Epoch: 3}}}}
}

// TestDrainSignalFollowsANodeThroughItsDrain, and is written when it changes and at no other time.
func TestDrainSignalFollowsANodeThroughItsDrain(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		p := w.peer("n1")
		p.volumes = attachedTo("n1")
		w.drain()
		w.wantsCondition("n1", "False VolumesAttached")
		p.set(func(p *peer) { p.volumes = nil })
		time.Sleep(2 * drainLook)
		w.wantsCondition("n1", "False VolumesAttached") // the attachment is still there
		w.server.Remove(attachment("csi-1", "pv-1", "n1", nil))
		w.wantsCondition("n1", "True AllDetached")
		p.set(func(p *peer) { p.away = errors.New("connection refused") })
		time.Sleep(2 * drainLook)
		w.wantsCondition("n1", "Unknown NodeUnreachable")
		p.set(func(p *peer) { p.away = nil })
		time.Sleep(2 * drainLook)
		w.wantsCondition("n1", "True AllDetached")
		w.server.Put(attachment("csi-1", "pv-1", "n1", nil))
		w.wantsCondition("n1", "False VolumesAttached")
		time.Sleep(time.Hour)
		if writes := w.server.Writes(); len(writes) != 5 {
			t.Errorf("%d writes: %v", len(writes), writes)
		}
		if n := node("n1"); !w.server.Get(n) || len(n.Status.Conditions) != 2 || n.Status.Conditions[0].Type != corev1.NodeReady && n.Status.Conditions[1].Type != corev1.NodeReady {
			t.Errorf("conditions: %v", n.Status.Conditions)
		}
	})
}

// TestDrainedIsTheNodesOwnWord: attachments alone do not say it, nor does a node that cannot tell.
func TestDrainedIsTheNodesOwnWord(t *testing.T) {
	for name, c := range map[string]struct {
		peer func(*peer)
		want string
	}{
		"no volumes":                      {func(*peer) {}, "True AllDetached"},
		"detached volumes":                {func(p *peer) { p.volumes = attachedTo(""); p.volumes[0].Attachment = nil }, "True AllDetached"},
		"attached, and nobody else knows": {func(p *peer) { p.volumes = attachedTo("n1") }, "False VolumesAttached"},
		"attached to another node":        {func(p *peer) { p.volumes = attachedTo("n2") }, "True AllDetached"},
		"a volume that cannot tell": {func(p *peer) {
			p.volumes = attachedTo("n1")
			p.volumes[0].Attachment = nil
			p.volumes[0].State = engine.Unavailable
		}, "False VolumesAttached"},
		"away": {func(p *peer) { p.away = errors.New("no") }, "Unknown NodeUnreachable"},
	} {
		inCluster(t, []kubetest.Object{node("n1"), csiNode("n1", driver)}, func(w *world) {
			w.peer("n1").set(c.peer)
			w.drain()
			settle()
			if got := w.condition("n1"); got != c.want {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		})
	}
}

// TestNodesOfOthersHaveNoCondition, nor those that are ours no more.
func TestNodesOfOthersHaveNoCondition(t *testing.T) {
	inCluster(t, []kubetest.Object{node("n1"), csiNode("n1", driver), node("n2"), csiNode("n2", "ebs.csi.aws.com")}, func(w *world) {
		w.drain()
		w.wantsCondition("n1", "True AllDetached")
		w.wantsCondition("n2", "")
		w.server.Put(csiNode("n1"))
		w.wantsCondition("n1", "")
		if n := node("n1"); !w.server.Get(n) || len(n.Status.Conditions) != 1 {
			t.Errorf("conditions: %v", n.Status.Conditions)
		}
	})
}

// TestNobodyKnowsOfANodeWhoseDriverIsAway: it has gone from the CSINode, and its volumes are attached all the same.
func TestNobodyKnowsOfANodeWhoseDriverIsAway(t *testing.T) {
	registered := func(n *corev1.Node) { n.Labels["topology."+driver+"/node"] = n.Name }
	inCluster(t, append(oneNode(), node("n1", registered)), func(w *world) {
		w.drain()
		w.wantsCondition("n1", "False VolumesAttached")
		w.peer("n1").set(func(p *peer) { p.away = ErrAway })
		w.server.Put(csiNode("n1"))
		w.server.Remove(endpoints("belay-node-1", nil))
		w.wantsCondition("n1", "Unknown NodeUnreachable")
		time.Sleep(time.Hour)
		w.wantsCondition("n1", "Unknown NodeUnreachable")
	})
}

// TestDrainSignalWaitsForTheAPIServer: what could not be written is written later.
func TestDrainSignalWaitsForTheAPIServer(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.server.SetAway(true)
		w.drain()
		settle()
		w.server.SetAway(false)
		time.Sleep(2 * time.Minute)
		w.wantsCondition("n1", "False VolumesAttached")
		for _, r := range w.server.Writes() {
			if r.Resource != "nodes/status" || !strings.Contains(r.Body, `"uid":"node-n1"`) {
				t.Errorf("write: %v", r)
			}
		}
	})
}
