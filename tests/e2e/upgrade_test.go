package e2e

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestUpgradeOfBelay: controller and nodes are exchanged by their rollouts under a workload, then the engines one by one. The host stays, since its end would take
// the devices away; deleted by hand, it waits until nothing is staged, and only then does its successor come.
func TestUpgradeOfBelay(t *testing.T) {
	t.Cleanup(func() { restore(t) }) // when the workload is gone
	c := start(t)
	w := c.write("data", shape{})
	p, handle := w.running(), w.handle()
	before := c.version()
	c.lab("image", "belay", "next", c.otherVersion("next"))
	host := c.hostPod(p.Spec.NodeName)
	for _, what := range []string{"ds/belay-node", "ds/belay-host", "deploy/belay-controller"} {
		c.kubectl("-n", system, "set", "image", what, "belay=lab.local/belay:next")
	}
	for _, what := range []string{"ds/belay-node", "deploy/belay-controller"} {
		c.kubectl("-n", system, "rollout", "status", what, "--timeout="+patience.String())
	}
	w.goesOn()
	if v := c.engineVersion(handle); v != before {
		t.Errorf("the engine is of version %s, before the upgrade of engines", v)
	}
	c.kubectl("-n", system, "exec", "deploy/belay-controller", "-c", "belay", "--", "/usr/bin/belay", "upgrade", "--all", "--to", "/var/lib/belay/bin/belay-next", "--socket", "/csi/admin/admin.sock")
	if v := c.engineVersion(handle); v != "next" {
		t.Errorf("the engine is of version %s", v)
	}
	w.goesOn()
	if err := w.unharmed(p)(); err != nil {
		t.Error(err)
	}
	if now := c.hostPod(p.Spec.NodeName); now.Metadata.UID != host.Metadata.UID {
		t.Error("the host was replaced under a volume in use")
	}

	c.kubectl("-n", system, "delete", "pod", host.Metadata.Name, "--wait=false")
	c.meanwhile(8*time.Second, "the host waits", func() error {
		if now := c.hostPod(p.Spec.NodeName); now.Metadata.UID != host.Metadata.UID {
			return errors.New("it was replaced under a volume in use")
		}
		return w.unharmed(p)()
	})
	said := w.told(p)
	w.scale("Deployment", 0)
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	c.eventually("the next host runs", func() error {
		if now := c.hostPod(p.Spec.NodeName); now.Metadata.UID == host.Metadata.UID || !now.ready() {
			return errors.New("it is the old one, or is not ready")
		}
		return nil
	})
	w.again(said)
}

// restore brings the version under test back.
func restore(t *testing.T) {
	t.Helper()
	_, err := labTry("kubectl", "apply", "-k", filepath.Join(checkout, "tests/e2e/manifests"))
	if err == nil {
		_, err = labTry("kubectl", "-n", system, "delete", "pods", "-l", "app.kubernetes.io/component=host", "--timeout="+patience.String())
	}
	for _, what := range []string{"ds/belay-node", "deploy/belay-controller"} {
		if err == nil {
			_, err = labTry("kubectl", "-n", system, "rollout", "status", what, "--timeout="+patience.String())
		}
	}
	if err == nil {
		err = rolledOut()
	}
	if err != nil {
		t.Errorf("the version under test is not back: %v", err)
	}
}

func (c *cluster) hostPod(node string) pod {
	c.Helper()
	var all struct{ Items []pod }
	c.get(&all, "pods", "-n", system, "-l", "app.kubernetes.io/component=host", "--field-selector=spec.nodeName="+node)
	if len(all.Items) == 0 {
		return pod{}
	}
	return all.Items[0]
}

func (c *cluster) engineVersion(handle string) string {
	c.Helper()
	var all []struct {
		ID      string `json:"id"`
		Process struct {
			Version string `json:"version"`
		} `json:"process"`
	}
	if err := c.belay(&all, "volumes"); err != nil {
		c.Fatal(err)
	}
	for _, v := range all {
		if v.ID == id(handle) {
			return v.Process.Version
		}
	}
	c.Fatal(fmt.Errorf("volume %s is not listed", handle))
	return ""
}

// TestPodsOfAMachineDeletedInUse: the pods of node and host are ended together while a volume is in use, as a machine does that is shut down. Both wait until it is
// unstaged, and kubelet can still have that done: its registration stays for as long as the driver does.
func TestPodsOfAMachineDeletedInUse(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle := w.running(), w.handle()
	host := c.hostPod(p.Spec.NodeName)
	c.kubectl("-n", system, "delete", "pods", "-l", "app.kubernetes.io/component in (host,node)", "--field-selector=spec.nodeName="+p.Spec.NodeName, "--wait=false")
	c.meanwhile(10*time.Second, "the workload is unharmed", w.unharmed(p))
	said := w.told(p)
	w.scale("Deployment", 0)
	c.eventually("detached", c.detached(c.volumeName("data")))
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	c.eventually("the next host runs", func() error {
		if now := c.hostPod(p.Spec.NodeName); now.Metadata.UID == host.Metadata.UID || !now.ready() {
			return errors.New("it is the old one, or is not ready")
		}
		return nil
	})
	w.again(said)
}
