package distributed

import (
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/belay-storage/belay/pkg/receipt"
)

// inTheMiddle brings a fence to its middle: the writer is shut out, its replicas are being read back, and no receipt is in force.
func (p *plant) inTheMiddle(name string) (u *use, release func()) {
	p.Helper()
	one := p.node(name, "1")
	u = p.use(name, one)
	u.inUse()
	one.silent.Store(true)
	u.killPod()
	reached, release := p.holdFences()
	p.taint(one)
	select {
	case <-reached:
	case <-time.After(patience):
		p.Fatal("nobody is fenced")
	}
	if all := u.receipts(); len(all) > 0 {
		p.Fatalf("a receipt before the replicas are verified: %+v", all)
	}
	u.shutOut()
	return u, release
}

// ends fails the test unless the fence ends in one receipt, and the volume can be used elsewhere.
func (u *use) ends() {
	u.Helper()
	two := u.node(strings.TrimSuffix(u.on.name, "-1"), "2")
	eventually(u.T, "detached", u.gone(u.on))
	u.has(receipt.Fenced)
	u.run(two)
	u.moves(two)
	u.has(receipt.Fenced)
}

// TestDeathsInTheMiddle: whoever dies or is restarted while a fence runs, it ends in one receipt. A restarted controller manager once detached anew what was being
// detached (kubernetes issue 120571), and an attacher may ask again what was answered (external-attacher issue 587).
func TestDeathsInTheMiddle(t *testing.T) {
	for name, dies := range map[string]func(*plant){
		"attacher": (*plant).killAttacher,
		"manager":  (*plant).restartManager,
		"belay":    func(p *plant) {}, // below: its end waits for the read-back
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, name, false)
			u, release := p.inTheMiddle(name)
			dies(p)
			if name == "belay" {
				time.AfterFunc(time.Second, release)
				p.controller.stop()
				p.startController()
			}
			time.Sleep(2 * time.Second) // in which the others come back, and ask
			release()
			u.ends()
		})
	}
}

func (p *plant) restartManager() {
	p.Helper()
	for _, command := range []string{"kcm-stop", "kcm-start"} {
		if _, err := labRun("", command); err != nil {
			p.Fatal(err)
		}
	}
}

// TestAPIServerAway: for 20 seconds in the middle of a fence. What was begun ends without it, in one receipt; nothing new is begun, since nobody can say that
// a node is lost.
func TestAPIServerAway(t *testing.T) {
	p := start(t, "away", false)
	second := p.use("away-too", p.node("away", "1"))
	u, release := p.inTheMiddle("away")
	back := p.stopAPIServer()
	began := time.Now()
	release()
	u.has(receipt.Fenced)
	meanwhile(t, 20*time.Second-time.Since(began), "without the API server", func() error {
		_, err := p.router.ControllerUnpublishVolume(t.Context(), &csi.ControllerUnpublishVolumeRequest{VolumeId: string(second.id), NodeId: "away-1"})
		if err == nil || !strings.Contains(err.Error(), "nothing says that it is lost") {
			t.Errorf("without the API server a detach is answered %v", err)
		}
		return second.unfenced()
	})
	back()
	u.ends()
	second.killPod()
	second.ends()
}

// stopAPIServer does, and returns how to start it again.
func (p *plant) stopAPIServer() (back func()) {
	p.Helper()
	done := false
	back = func() {
		if done {
			return
		}
		done = true
		if _, err := labRun("", "apiserver-start"); err != nil {
			p.Error(err)
		}
	}
	p.Cleanup(back)
	if _, err := labRun("", "apiserver-stop"); err != nil {
		p.Fatal(err)
	}
	return back
}
