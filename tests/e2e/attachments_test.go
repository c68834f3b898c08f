package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestPodForceDeletedOnLiveNode: a pod is deleted by force while its node lives, and its replacement waits on the same node: the case for which Longhorn's pod
// controller deletes VolumeAttachments (longhorn 10689, commit 509a284ec). Nobody needs to: kubelet ends the old pod, and the volume is staged still, or anew.
func TestPodForceDeletedOnLiveNode(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	for range 3 {
		p := w.running()
		said := w.told(p)
		c.kubectl("delete", "pod", p.Metadata.Name, "--grace-period=0", "--force")
		c.eventually("another pod runs", func() error {
			now, err := w.pod()
			if err == nil && now.Metadata.UID == p.Metadata.UID {
				err = errors.New("it is the old one")
			}
			return err
		})
		w.goesOn()
		w.intact(said)
	}
}

// nothingOfOursDeleted fails where the API server's log has the deletion of a VolumeAttachment by Belay, or a finalizer taken away by it.
func (c *cluster) nothingOfOursDeleted() {
	c.Helper()
	text, err := labTry("log", "audit")
	if err != nil || text == "" {
		c.Errorf("the API server's log cannot be read: %v", err)
	}
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"resource":"volumeattachments"`) && strings.Contains(line, `"verb":"delete`) && strings.Contains(line, "system:serviceaccount:"+system) {
			c.Errorf("a VolumeAttachment was deleted by Belay: %s", line)
		}
	}
}

// TestAttachmentDeletedUnderLiveMount: somebody deletes the VolumeAttachment of a volume in use, as Longhorn's and Piraeus' controllers do and people try. The
// detach is refused, says who holds the volume, and the workload goes on; it ends with the workload.
func TestAttachmentDeletedUnderLiveMount(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	a := c.attachments(volume)[0]
	c.kubectl("delete", "volumeattachment", a.Metadata.Name, "--wait=false")
	c.eventually("the attacher is refused", func() error {
		for _, a := range c.attachments(volume) {
			if a.Status.DetachError != nil && strings.Contains(a.Status.DetachError.Message, "published to") {
				return nil
			}
		}
		return errors.New("no detachError that names where it is published")
	})
	for kind, object := range map[string]string{"VolumeAttachment": a.Metadata.Name, "PersistentVolumeClaim": "data", "Node": p.Spec.NodeName} {
		c.eventually("people are told", c.told(kind, object, "DetachRefused", id(handle)))
	}
	c.meanwhile(15*time.Second, "the workload is unharmed", w.unharmed(p))
	w.goesOn()
	said := w.told(p)
	w.scale("Deployment", 0)
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	c.eventually("detached", c.detached(volume))
	w.again(said)
}

// TestFinalizerPatchedAway: somebody deletes the VolumeAttachment and takes its finalizer away, so that the driver is never asked. Safety does not rest on
// ControllerUnpublishVolume: the next attach goes by the engine's epochs.
func TestFinalizerPatchedAway(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	a := c.attachments(volume)[0]
	c.kubectl("delete", "volumeattachment", a.Metadata.Name, "--wait=false")
	c.kubectl("patch", "volumeattachment", a.Metadata.Name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	c.meanwhile(10*time.Second, "the workload is unharmed", w.unharmed(p))
	w.goesOn()
	said := w.told(p)
	c.kubectl("delete", "pod", p.Metadata.Name)
	w.goesOn()
	w.intact(said)
	if now := w.running(); now.Metadata.UID == p.Metadata.UID {
		t.Error("it is the old pod")
	}
	w.scale("Deployment", 0)
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	c.eventually("detached", c.detached(volume))
}

// TestKubeletRestartBetweenUnpublishAndUnstage: kubelet is restarted after it has unpublished a volume and before it has unstaged it, and forgets it
// (kubernetes 121937): nobody calls NodeUnstageVolume any more, and the attach-detach controller detaches. The stage journal knows.
func TestKubeletRestartBetweenUnpublishAndUnstage(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	said := w.told(p)
	node := p.Spec.NodeName
	// Somebody on the node looks into the staged volume, so that it cannot be unstaged.
	out, err := c.onNode(node, fmt.Sprintf(`d=$(grep -o '/var/lib/kubelet/plugins/[^ ]*/globalmount' /proc/self/mountinfo | while read m; do [ -e $m/log ] && grep -q %s $(dirname $m)/vol_data.json && echo $m; done | head -n 1)
cd $d && (setsid sleep 600 >/dev/null 2>&1 & echo $!)`, id(handle)))
	holder := strings.TrimSpace(out)
	if err != nil || holder == "" {
		t.Fatalf("the staged volume is not found: %q %v", out, err)
	}
	release := func() { _, _ = c.onNode(node, "kill "+holder) }
	t.Cleanup(release)
	w.scale("Deployment", 0)
	c.eventually("the unstage is refused, and says by whom", c.told("PersistentVolumeClaim", "data", "DetachRefused", "process "+holder, "sleep"))
	c.lab("kubelet-stop", number(node))
	t.Cleanup(func() { _, _ = labTry("kubelet-start", number(node)) })
	release()
	c.lab("kubelet-start", number(node))
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	c.eventually("detached", c.detached(volume))
	w.again(said)
}
