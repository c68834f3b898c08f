package distributed

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/receipt"
)

// nodes of a plant by their number.
func (p *plant) node(prefix string, n string) *ghost {
	for _, g := range p.ghosts {
		if g.name == prefix+"-"+n {
			return g
		}
	}
	return nil
}

// TestCleanDetach: the pod ends, its node unstages, and the receipt is clean before the VolumeAttachment goes.
func TestCleanDetach(t *testing.T) {
	p := start(t, "clean", false)
	one, two := p.node("clean", "1"), p.node("clean", "2")
	u := p.use("clean", one)
	u.unstage()
	u.has(receipt.Clean)
	u.killPod()
	eventually(t, "detached", u.gone(one))
	u.run(two)
	u.moves(two)
	u.has(receipt.Clean)
}

// TestNotReadyIsNeverFenced: the node is not ready, its agent silent, its pod deleted by force, and its volume in use as far as anybody knows. The attach-detach
// controller waits (kubernetes pull 110721); then somebody deletes the VolumeAttachment, as Longhorn's controller does (longhorn 10751) and people do.
// The detach is refused and seen, and the writer, which lives, is left alone. The taint that says that the node is off (KEP 2268) ends it.
func TestNotReadyIsNeverFenced(t *testing.T) {
	p := start(t, "silent", false)
	one, two := p.node("silent", "1"), p.node("silent", "2")
	u := p.use("silent", one)
	p.lease(one) // which has expired: without the policy that says nothing
	u.inUse()
	one.silent.Store(true)
	u.killPod()
	meanwhile(t, 3*time.Second, "nobody detaches", func() error {
		if a := u.attached(one); a.Status.DetachError != nil {
			t.Errorf("%+v", a)
		}
		return u.unfenced()
	})
	u.run(two) // which waits for the volume
	p.api.do(t, http.MethodDelete, u.attached(one).path(), nil, nil)
	u.refused("Aborted", "silent-1 does not answer", "nothing says that it is lost", "out-of-service taint")
	u.told(kube.ReasonRefused, "silent-1 does not answer")
	meanwhile(t, 5*time.Second, "refused", u.unfenced)
	u.fencedByTaint("to VolumeAttachment gone, after refusals")
	u.told(kube.ReasonFenced, "out-of-service")
	u.moves(two)
	u.has(receipt.Fenced)
}

// fencedByTaint puts the node out of service, and waits for the fence.
func (u *use) fencedByTaint(what string) {
	u.Helper()
	began := time.Now()
	u.taint(u.on)
	if all := u.has(receipt.Fenced); !strings.Contains(all[0].Reason, "node.kubernetes.io/out-of-service") || all[0].Clean {
		u.Errorf("receipt %+v", all[0])
	}
	figure("out-of-service taint "+strings.Replace(what, "VolumeAttachment gone", "receipt", 1), time.Since(began))
	eventually(u.T, "detached", u.gone(u.on))
	figure("out-of-service taint "+what, time.Since(began))
	u.shutOut()
}

// TestOutOfService: the power is off and an operator says so (KEP 2268): the attach-detach controller forces the detach at once, which tells the driver nothing;
// the gate fences, recovers, verifies, and everything acknowledged is there on the other node. Several times, to measure.
func TestOutOfService(t *testing.T) {
	for _, name := range []string{"taint-a", "taint-b", "taint-c", "taint-d", "taint-e"} {
		t.Run(name, func(t *testing.T) {
			p := start(t, name, false)
			one, two := p.node(name, "1"), p.node(name, "2")
			u := p.use(name, one)
			u.inUse()
			one.silent.Store(true)
			u.killPod()
			u.run(two)
			u.fencedByTaint("to VolumeAttachment gone")
			u.moves(two)
			u.has(receipt.Fenced)
		})
	}
}

// TestNodeDeleted: the machine and its Node are gone for good; refusing for ever would bar the volume (kubernetes issue 77324).
func TestNodeDeleted(t *testing.T) {
	p := start(t, "deleted", false)
	one, two := p.node("deleted", "1"), p.node("deleted", "2")
	u := p.use("deleted", one)
	one.silent.Store(true)
	u.killPod() // not in use as far as the attach-detach controller knows: it asks for the detach
	u.refused("Aborted", "deleted-1 does not answer")
	meanwhile(t, time.Second, "refused", u.unfenced)
	u.run(two)
	began := time.Now()
	p.api.do(t, http.MethodDelete, one.path(), nil, nil)
	if all := u.has(receipt.Fenced); !strings.Contains(all[0].Reason, "no such Node any more") {
		t.Errorf("receipt %+v", all[0])
	}
	figure("Node deleted to receipt, after refusals", time.Since(began))
	eventually(t, "detached", u.gone(one))
	u.shutOut()
	u.moves(two)
	u.has(receipt.Fenced)
}

// TestTaintByMistake: the node that is put out of service lives, and so does its writer. Kubernetes detaches by force at once all the same. The agent answers, so
// nobody is fenced: the volume is held until the node has let go of it.
func TestTaintByMistake(t *testing.T) {
	p := start(t, "mistake", false)
	one := p.node("mistake", "1")
	u := p.use("mistake", one)
	u.inUse()
	u.killPod()
	p.taint(one)
	u.refused("FailedPrecondition", "node mistake-1 holds it", "/pod")
	u.told(kube.ReasonRefused, "node mistake-1 holds it")
	meanwhile(t, 5*time.Second, "held", u.unfenced)
	u.unstage()
	u.has(receipt.Clean)
	eventually(t, "detached", u.gone(one))
	u.has(receipt.Clean)
}

// TestExpiredLease: with the policy that the node's expired Lease is enough, a kubelet and an agent that are cut off from us say nothing of a writer that still
// reaches its replicas: while the engine finds it alive it is not fenced.
func TestExpiredLease(t *testing.T) {
	p := start(t, "lease", true)
	one, two := p.node("lease", "1"), p.node("lease", "2")
	u := p.use("lease", one)
	p.lease(one)
	one.silent.Store(true)
	u.killPod()
	u.refused("FailedPrecondition", "its writer lives after all")
	meanwhile(t, 3*time.Second, "the writer lives", u.unfenced)
	p.mem.Kill(u.id)
	if all := u.has(receipt.Fenced); !strings.Contains(all[0].Reason, "policy of expired leases") {
		t.Errorf("receipt %+v", all[0])
	}
	eventually(t, "detached", u.gone(one))
	u.run(two)
	u.moves(two)
	u.has(receipt.Fenced)
}
