package kube

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/volume"
)

func (w *world) controllers(identity string) (k *Controllers, stop func()) {
	k = must(NewControllers(ControllersConfig{
		Config: Config{API: w.api, Driver: driver, Namespace: space}, Peers: w.dial, Identity: identity, Certificates: true, FenceExpiredLeases: true,
	}))
	return k, w.run(k.Run)
}

// TestControllersTogether: two replicas, of which one writes; the other one goes on when that one dies, and nothing is said or done twice.
func TestControllersTogether(t *testing.T) {
	objects := append(append(overridden(goodOverride), shipped()...), class("true"), pod("web"))
	inCluster(t, objects, func(w *world) {
		w.peer("n1").why = lostReport(3, 7)
		w.peer("n1").volumes = attachedTo("n1")
		first, stop := w.controllers("a")
		settle()
		second, _ := w.controllers("b")
		w.peer("n1").Post(admin.Notice{Kind: admin.Refused, Volume: vol, Epoch: 3, Message: held})
		w.peer("n1").Post(admin.Notice{Kind: admin.Lost, Volume: vol, Epoch: 3, Message: "the device was lost"})
		time.Sleep(time.Minute)
		w.wantsResult("", "done: forced receipt")
		w.wantsCondition("n1", "False VolumesAttached")
		w.wantsGood()
		before := w.server.Writes()
		stop()
		time.Sleep(5 * time.Minute)
		w.peer("n1").Post(admin.Notice{Kind: admin.Quarantined, Volume: vol, Message: "copies disagree"})
		settle()
		told := strings.Join(w.told(), "\n")
		for _, want := range []string{"DetachRefused VolumeAttachment/csi-1 x1", "RestartRequested Pod/web x1", "OverrideDone VolumeAttachment/csi-1 x1", "VolumeQuarantined PersistentVolumeClaim/data x1"} {
			if !strings.Contains(told, want) {
				t.Errorf("not told: %s in\n%s", want, told)
			}
		}
		if got := w.server.Writes(); len(got) != len(before) || !slices.Equal(w.deleted(), []string{"web"}) || len(w.peer("n1").fenced) != 1 {
			t.Errorf("written after the change of leaders: %v", got[len(before):])
		}
		for _, k := range []*Controllers{first, second} {
			if got, err := k.Fleet.Address(w.ctx, "n1"); err != nil || got != "10.0.0.1:9811" {
				t.Errorf("address: %q, %v", got, err)
			}
		}
	})
}

// TestControllersStartBeforeTheAPIServer, and work when it comes.
func TestControllersStartBeforeTheAPIServer(t *testing.T) {
	inCluster(t, append(oneNode(), shipped()...), func(w *world) {
		w.server.SetAway(true)
		w.controllers("a")
		time.Sleep(10 * time.Minute)
		w.server.SetAway(false)
		time.Sleep(5 * time.Minute)
		w.wantsGood()
		w.wantsCondition("n1", "False VolumesAttached")
	})
}

// TestControllersStopBeforeTheAPIServerWasHeard, and leave nothing running: synctest fails the test otherwise.
func TestControllersStopBeforeTheAPIServerWasHeard(t *testing.T) {
	inCluster(t, oneNode(), func(w *world) {
		w.server.SetAway(true)
		k := must(NewControllers(ControllersConfig{Config: Config{API: w.api, Driver: driver, Namespace: space}, Peers: w.dial, Identity: "a", Alone: true}))
		stop := w.run(k.Run)
		settle()
		stop()
	})
}

// TestUnfinishedConfigurationsAreRefused.
func TestUnfinishedConfigurationsAreRefused(t *testing.T) {
	api := &API{}
	for _, c := range []ControllersConfig{
		{}, {Config: Config{API: api, Driver: driver, Namespace: space}}, {Config: Config{API: api, Namespace: space}, Identity: "a", Peers: func(volume.NodeID) Peer { return nil }},
	} {
		if _, err := NewControllers(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if _, err := Connect(Options{Kubeconfig: t.TempDir() + "/none"}); err == nil || !strings.Contains(err.Error(), "kubeconfig") {
		t.Errorf("a kubeconfig that is not there: %v", err)
	}
}
