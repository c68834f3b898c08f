package distributed

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/kube"
	"github.com/belay-storage/belay/pkg/receipt"
)

// ann may override, by the manifests' ClusterRole.
const ann = "ann@example.com"

const inTheBin = "the machine is in the bin"

// override has the user annotate the volume's attachment.
func (u *use) override(user string, epoch uint64, by, reason string) error {
	text := fmt.Sprintf("volume=%s; epoch=%d; by=%s; reason=%s", u.id, epoch, by, reason)
	return u.api.as(user).try(http.MethodPatch, u.attached(u.on).path(), obj{"metadata": obj{"annotations": obj{kube.AnnotationOverride: text}}}, nil)
}

// settled waits for what became of the override.
func (u *use) settled(words ...string) {
	u.Helper()
	eventually(u.T, "the override is settled", func() error {
		a := u.attached(u.on).Metadata.Annotations
		if a[kube.AnnotationOverride] != "" || !containsAll(a[kube.AnnotationOverrideResult], words) {
			return fmt.Errorf("%v, want a result with %q", a, words)
		}
		return nil
	})
}

// TestOverride: an operator lets go of a volume although the gate says no: with the right to, in their own name, for the open epoch, once. The writer lives, and
// is fenced.
func TestOverride(t *testing.T) {
	p := start(t, "override", false)
	one, two := p.node("override", "1"), p.node("override", "2")
	u := p.use("override", one)
	one.silent.Store(true)
	epoch := uint64(u.open.Epoch)
	for user, by := range map[string]string{"bob@example.com": "bob@example.com", ann: "bob@example.com"} {
		err := u.override(user, epoch, by, "curiosity")
		if refused, ok := errors.AsType[apiError](err); !ok || refused.code != http.StatusForbidden && refused.code != http.StatusUnprocessableEntity {
			t.Errorf("an override by %s in the name of %s: %v", user, by, err)
		}
	}
	if err := u.override(ann, epoch+1, ann, "a slip of the finger"); err != nil {
		t.Fatal(err)
	}
	u.settled("rejected: ", fmt.Sprintf("at epoch %d", epoch+1))
	meanwhile(t, 2*time.Second, "rejected", u.unfenced)
	began := time.Now()
	if err := u.override(ann, epoch, ann, inTheBin); err != nil {
		t.Fatal(err)
	}
	all := u.has(receipt.Forced)
	figure("override to receipt", time.Since(began))
	if r := all[0]; r.Actor != ann || r.Reason != inTheBin {
		t.Errorf("receipt %+v", r)
	}
	u.shutOut()
	u.settled("done: ", "forced receipt", ann)
	u.told(kube.ReasonForced, "in the bin")
	u.killPod()
	eventually(t, "detached", u.gone(one))
	u.run(two)
	u.moves(two)
	for reason, result := range map[string]string{"again": "rejected: ", inTheBin: "done: "} { // of an epoch that is over; the same words were carried out then
		if err := u.override(ann, epoch, ann, reason); err != nil {
			t.Fatal(err)
		}
		u.settled(result)
		u.mustWrite()
	}
	u.has(receipt.Forced)
}

// TestFinalizerPatchedAway: somebody deletes the VolumeAttachment and takes its finalizer away, as Longhorn's and others' runbooks say, so that the driver is
// never asked. The next attach elsewhere is refused while nobody knows that the old writer is gone, and fences it once somebody says so.
func TestFinalizerPatchedAway(t *testing.T) {
	p := start(t, "patched", false)
	one, two := p.node("patched", "1"), p.node("patched", "2")
	u := p.use("patched", one)
	one.silent.Store(true)
	path := u.attached(one).path()
	u.killPod()
	u.refused("patched-1 does not answer")
	p.api.gone(path)
	eventually(t, "the cluster has forgotten", u.gone(one))
	u.run(two)
	eventually(t, "the next attach is refused", u.attachRefused("no record of that", "patched-1 does not answer"))
	meanwhile(t, 5*time.Second, "refused", u.unfenced)
	p.taint(one)
	old := *u
	u.moves(two)
	if all := u.has(receipt.Fenced); !strings.Contains(all[0].Reason, "out-of-service") {
		t.Errorf("receipt %+v", all[0])
	}
	if err := old.write(); !errors.Is(err, engine.ErrStaleEpoch) {
		t.Errorf("the old writer writes: %v", err)
	}
}

// attachRefused fails until the attach to another node was refused with all the words.
func (u *use) attachRefused(words ...string) func() error {
	return func() error {
		var all struct {
			Items []struct {
				Status struct{ AttachError *struct{ Message string } }
				Spec   struct {
					Source struct{ PersistentVolumeName string }
				}
			}
		}
		if err := u.api.try(http.MethodGet, attachmentsPath, nil, &all); err != nil {
			return err
		}
		for _, a := range all.Items {
			if e := a.Status.AttachError; a.Spec.Source.PersistentVolumeName == string(u.id) && e != nil && containsAll(e.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	}
}
