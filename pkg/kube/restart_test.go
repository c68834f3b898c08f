package kube

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/belay-storage/belay/pkg/admin"
	"github.com/belay-storage/belay/pkg/detach"
	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/kube/kubetest"
	"github.com/belay-storage/belay/pkg/volume"
)

// pod runs on n1, uses the claim and is a ReplicaSet's.
func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	yes, grace := true, int64(45)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "web", Controller: &yes}}}}
	p.Spec.NodeName, p.Spec.TerminationGracePeriodSeconds = "n1", &grace
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	p.Status.Phase = corev1.PodRunning
	for _, f := range change {
		f(p)
	}
	return p
}

func class(value string) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "belay"}, Provisioner: driver, Parameters: map[string]string{ParameterRestart: value}}
}

// losing is a cluster with pods whose device the node has lost.
func losing(t *testing.T, value string, objects []kubetest.Object, test func(w *world)) {
	objects = append(append(oneNode(), class(value)), objects...)
	inCluster(t, objects, func(w *world) {
		w.peer("n1").why = lostReport(3, 7)
		test(w)
	})
}

func lostReport(epoch, writer volume.Epoch) detach.Report {
	return detach.Report{
		Volume: engine.Volume{Spec: engine.Spec{ID: vol}, Attachment: &volume.Attachment{Volume: vol, Node: "n1", Epoch: epoch}, Staged: true, Writer: writer},
		Node:   &detach.NodeStatus{Node: "n1", Device: detach.DeviceLost},
	}
}

func (w *world) lose(epoch volume.Epoch) (stop func()) {
	r := NewRestarts(w.cluster, w.report, w.dial)
	stop = w.run(r.Run)
	r.Lost(admin.Notice{Kind: admin.Lost, Node: "n1", Volume: vol, Epoch: epoch, Message: "the device was lost"})
	settle()
	return stop
}

// deleted lists the pods that a delete was sent for.
func (w *world) deleted() (out []string) {
	for _, r := range w.server.Requests(func(r kubetest.Request) bool { return r.Method == http.MethodDelete }) {
		out = append(out, r.Path[strings.LastIndex(r.Path, "/")+1:])
	}
	return out
}

// TestOnlyPodsOfTheDeviceAreAskedToRestart: those that use the claim on that node, live, and have an owner; with their own grace period.
func TestOnlyPodsOfTheDeviceAreAskedToRestart(t *testing.T) {
	objects := []kubetest.Object{
		pod("web"), pod("sidekick", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("elsewhere", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }), pod("other-claim", func(p *corev1.Pod) { p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = "logs" }),
		pod("other-space", func(p *corev1.Pod) { p.Namespace = "bank" }), pod("done", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
		pod("ending", func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }),
	}
	losing(t, "true", objects, func(w *world) {
		w.lose(3)
		got := w.deleted()
		slices.Sort(got)
		if !slices.Equal(got, []string{"sidekick", "web"}) {
			t.Errorf("deleted %v; told %q", got, w.told())
		}
		left := pod("web")
		if !w.server.Get(left) || left.DeletionTimestamp == nil || *left.DeletionGracePeriodSeconds != 45 {
			t.Errorf("web: %v", left.ObjectMeta)
		}
		if told := strings.Join(w.told(), "\n"); !strings.Contains(told, ReasonRestart+" Pod/web x1: the device of pod shop/web was lost (the device was lost)") ||
			!strings.Contains(told, ReasonRestart+" PersistentVolumeClaim/data") || !strings.Contains(told, "ReplicaSet web replaces it") {
			t.Errorf("told: %q", w.told())
		}
	})
}

// TestPodsThatNobodyWouldReplaceAreLeftAlone, and people are told.
func TestPodsThatNobodyWouldReplaceAreLeftAlone(t *testing.T) {
	zero := int64(0)
	for why, change := range map[string]func(*corev1.Pod){
		"nothing would replace it":  func(p *corev1.Pod) { p.OwnerReferences = nil },
		"nothing would replace it;": func(p *corev1.Pod) { p.OwnerReferences[0].Controller = nil },
		"it is a static pod":        func(p *corev1.Pod) { p.OwnerReferences[0].Kind = "Node" },
		"its grace period is 0":     func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = &zero },
	} {
		losing(t, "true", []kubetest.Object{pod("web", change)}, func(w *world) {
			w.lose(3)
			if len(w.deleted()) != 0 || len(w.server.Writes()) != 0 || !strings.Contains(strings.Join(w.told(), "\n"), "DeviceLost PersistentVolumeClaim/data x1: the device was lost; next: pod shop/web is not asked: "+why) {
				t.Errorf("%s: deleted %v, told %q", why, w.deleted(), w.told())
			}
		})
	}
}

// TestWithoutOptInPeopleAreTold.
func TestWithoutOptInPeopleAreTold(t *testing.T) {
	for _, value := range []string{"", "false", "yes"} {
		losing(t, value, []kubetest.Object{pod("web")}, func(w *world) {
			w.lose(3)
			if len(w.deleted()) != 0 || !strings.Contains(strings.Join(w.told(), "\n"), "DeviceLost Node/n1 x1: the device was lost; next: delete the pods that use it") {
				t.Errorf("deleted %v, told %q", w.deleted(), w.told())
			}
		})
	}
}

// TestVolumesOwnWordCountsBeforeItsClasses.
func TestVolumesOwnWordCountsBeforeItsClasses(t *testing.T) {
	for value, want := range map[string]int{"true": 1, "false": 0} {
		pv := persistent("pv-1", "pvc-1@n1", func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI.VolumeAttributes = map[string]string{ParameterRestart: value}
		})
		losing(t, map[string]string{"true": "false", "false": "true"}[value], []kubetest.Object{pod("web"), pv}, func(w *world) {
			if w.lose(3); len(w.deleted()) != want {
				t.Errorf("%s: deleted %v", value, w.deleted())
			}
		})
	}
}

// TestOldNewsDeletesNothing: a device that lives again, another attachment, a volume that is gone, an attachment that ends.
func TestOldNewsDeletesNothing(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"device lives":       func(w *world) { w.peer("n1").why.Node.Device = detach.DeviceAlive },
		"nobody can tell":    func(w *world) { w.peer("n1").why.Node.Device = detach.DeviceUnknown },
		"attached anew":      func(w *world) { w.peer("n1").why = lostReport(4, 9) },
		"attached elsewhere": func(w *world) { w.peer("n1").why.Volume.Attachment.Node = "n2" },
		"detached":           func(w *world) { w.peer("n1").why.Volume.Attachment = nil },
		"no such volume":     func(w *world) { w.peer("n1").why = detach.Report{} },
		"attachment gone":    func(w *world) { w.server.Remove(attachment("csi-1", "pv-1", "n1", nil)) },
		"attachment ends": func(w *world) {
			a := attachment("csi-1", "pv-1", "n1", nil)
			now := metav1.Now()
			a.DeletionTimestamp = &now
			w.server.Put(a)
		},
		"no claim": func(w *world) {
			w.server.Put(persistent("pv-1", "pvc-1@n1", func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef = nil }))
		},
	} {
		losing(t, "true", []kubetest.Object{pod("web")}, func(w *world) {
			change(w)
			w.lose(3)
			if len(w.deleted()) != 0 || len(w.server.Writes()) != 0 {
				t.Errorf("%s: %v", name, w.server.Writes())
			}
		})
	}
}

// TestAPodIsAskedOnceForALostDevice: by whoever leads, however often the notice comes; and its replacement is not asked. A device that is lost
// again, of the next writer, is another one.
func TestAPodIsAskedOnceForALostDevice(t *testing.T) {
	losing(t, "true", []kubetest.Object{pod("web")}, func(w *world) {
		w.lose(3)
		w.lose(3)
		w.server.Remove(pod("web"))
		w.server.Put(pod("web"))
		w.lose(3)
		if got := w.deleted(); len(got) != 1 {
			t.Fatalf("deleted %v", got)
		}
		w.peer("n1").why = lostReport(3, 8)
		w.lose(3)
		if got := w.deleted(); len(got) != 2 {
			t.Errorf("deleted %v", got)
		}
	})
}

// TestRestartOutlivesDeath: killed when it was written down who is to be asked, the next leader asks those and nobody else.
func TestRestartOutlivesDeath(t *testing.T) {
	losing(t, "true", []kubetest.Object{pod("web"), pod("web-2")}, func(w *world) {
		w.server.Before(func(r kubetest.Request) {
			if r.Method == http.MethodPatch && r.Resource == "volumeattachments" {
				w.server.SetAway(true) // it is stored, and the answer is lost
			}
		})
		stop := w.lose(3)
		stop()
		w.server.Before(nil)
		w.server.SetAway(false)
		if got := w.deleted(); len(got) != 0 {
			t.Fatalf("deleted %v", got)
		}
		w.server.Remove(pod("web-2"))
		w.server.Put(pod("web-2"))
		w.server.Put(pod("web-3"))
		time.Sleep(2 * time.Minute)
		w.lose(3)
		if got := w.deleted(); !slices.Equal(got, []string{"web"}) {
			t.Errorf("deleted %v", got)
		}
	})
}

// TestAPodThatChangesIsLookedAtAgain: the delete says which pod was looked at; one that changes meanwhile is read again.
func TestAPodThatChangesIsLookedAtAgain(t *testing.T) {
	losing(t, "true", []kubetest.Object{pod("web")}, func(w *world) {
		first := true
		w.server.Before(func(r kubetest.Request) {
			if r.Method == http.MethodDelete && first {
				first = false
				w.server.Put(pod("web", func(p *corev1.Pod) { p.Labels = map[string]string{"new": "x"} }))
			}
		})
		w.lose(3)
		if got := w.server.Requests(func(r kubetest.Request) bool { return r.Method == http.MethodDelete }); len(got) != 2 || got[0].Code != http.StatusConflict || got[1].Code != http.StatusOK {
			t.Errorf("deletes %v", got)
		}
	})
}

// TestTheNodeIsAskedAgain while it does not answer.
func TestTheNodeIsAskedAgain(t *testing.T) {
	losing(t, "true", []kubetest.Object{pod("web")}, func(w *world) {
		w.peer("n1").away = errors.New("node n1 does not answer")
		w.lose(3)
		w.peer("n1").set(func(p *peer) { p.away = nil })
		time.Sleep(2 * retryMax)
		if got := w.deleted(); len(got) != 1 {
			t.Errorf("deleted %v", got)
		}
	})
}

// TestALossThatIsToldAgainMeanwhile is looked into again: the host tells of its losses again after each start, and a page has both.
func TestALossThatIsToldAgainMeanwhile(t *testing.T) {
	losing(t, "false", nil, func(w *world) {
		looked := 0
		var r *Restarts
		tell := func(text string) {
			r.Lost(admin.Notice{Kind: admin.Lost, Node: "n1", Volume: vol, Message: text})
		}
		r = NewRestarts(w.cluster, w.report, func(node volume.NodeID) Peer {
			if node != "n1" {
				t.Errorf("asked of a loss on node %q", node)
			}
			if looked++; looked == 1 {
				tell("lost again")
			}
			return w.dial(node)
		})
		w.run(r.Run)
		tell("lost")
		settle()
		if told := strings.Join(w.told(), "\n"); looked != 2 || !strings.Contains(told, "DeviceLost PersistentVolumeClaim/data x2: lost again;") {
			t.Errorf("looked into %d times; told %q", looked, told)
		}
	})
}

func TestRestartsAreWrittenAndRead(t *testing.T) {
	want := restart{7, []podName{{"web-0", "uid-1"}, {"web-1", "uid-2"}}}
	got, err := parseRestart(want.String())
	if err != nil || got.writer != 7 || !slices.Equal(got.pods, want.pods) {
		t.Errorf("%q: %v, %v", want, got, err)
	}
	for _, s := range []string{"", "x", "epoch=; pods=a/b"} {
		if _, err := parseRestart(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// The host of a machine knows its devices by their volumes, and no attachment.
func TestRestartWhereTheEpochIsNotTold(t *testing.T) {
	losing(t, "true", []kubetest.Object{pod("web-1")}, func(w *world) {
		stop := w.lose(0)
		defer stop()
		if got := w.deleted(); !slices.Equal(got, []string{"web-1"}) {
			t.Errorf("deleted: %v", got)
		}
	})
}
