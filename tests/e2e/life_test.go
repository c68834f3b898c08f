package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestLife: a volume is provisioned where its pod runs, used, expanded, detached with a receipt, used again and deleted.
func TestLife(t *testing.T) {
	for _, class := range []string{"belay", "belay-xfs"} {
		t.Run(class, func(t *testing.T) {
			c := start(t)
			if class != "belay" {
				c.apply(fmt.Sprintf(classManifest, class))
				t.Cleanup(func() { _, _ = labTry("kubectl", "delete", "storageclass", class) })
			}
			w := c.write("data", shape{class: class})
			p := w.running()
			volume, handle := c.volumeName("data"), w.handle()
			if want := volume + "@" + p.Spec.NodeName; handle != want {
				t.Errorf("the volume is called %s, want %s", handle, want)
			}
			if class == "belay-xfs" { // ext4 grows while mounted only where processes may have CAP_SYS_RESOURCE
				w.expand("1Gi")
				w.goesOn()
			}
			said := w.told(p)
			w.scale("Deployment", 0)
			c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
			c.eventually("detached", c.detached(volume))
			c.eventually("the claim is told", c.told("PersistentVolumeClaim", "data", "DetachFinished", "clean receipt"))
			w.again(said)
			c.kubectl("delete", "deploy/data", "pvc/data", "--timeout="+patience.String())
			c.eventually("the volume is deleted", func() error {
				if c.get(&struct{}{}, "pv", volume) {
					return fmt.Errorf("PersistentVolume %s is there", volume)
				}
				var all []struct{ ID string }
				if err := c.belay(&all, "volumes"); err != nil {
					return err
				}
				for _, v := range all {
					if strings.HasPrefix(handle, v.ID+"@") {
						return fmt.Errorf("volume %s is there", v.ID)
					}
				}
				return nil
			})
		})
	}
}

const classManifest = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: %s}
provisioner: csi.belay.storage
parameters: {replicas: "2", fsType: xfs}
volumeBindingMode: WaitForFirstConsumer
allowVolumeExpansion: true
`

// expand waits until claim and filesystem have the size. Kubelet looks at the sizes of a pod's volumes when the pod changes, and else once in a minute or so: it is
// made to look.
func (w writer) expand(size string) {
	w.Helper()
	w.kubectl("patch", "pvc", w.name, "-p", fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size))
	looks := 0
	w.eventually("expanded", func() error {
		var got claim
		if w.get(&got, "pvc", w.name); got.Status.Capacity["storage"] == size {
			return nil
		}
		looks++
		w.kubectl("annotate", "pods", "-l", "app="+w.name, "--overwrite", fmt.Sprintf("looks=%d", looks))
		return fmt.Errorf("its capacity is %s", got.Status.Capacity["storage"])
	})
}

// TestDrainSignal: a node says when every volume of Belay is durably detached, which `kubectl drain` does not wait for: the pod is gone, and the drain has
// returned, before NodeUnstageVolume runs (kubernetes pull 138454).
func TestDrainSignal(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	node := w.running().Spec.NodeName
	c.eventually("the node has volumes", c.condition(node, "False"))
	t.Cleanup(func() { _, _ = labTry("kubectl", "uncordon", node) })
	c.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=app=data", "--timeout="+patience.String())
	c.kubectl("wait", "--for=condition=BelayVolumesDetached", "node/"+node, "--timeout="+patience.String())
	if err := c.newestReceipt(w.handle(), 1, "clean")(); err != nil {
		t.Error("the node says that all is detached: ", err)
	}
}

func (c *cluster) condition(node, want string) func() error {
	return func() error {
		text, err := c.tryKubectl("get", "node", node, "-o", `jsonpath={.status.conditions[?(@.type=="BelayVolumesDetached")].status}`)
		if err == nil && text != want {
			err = fmt.Errorf("condition BelayVolumesDetached of %s is %q, want %s", node, text, want)
		}
		return err
	}
}
