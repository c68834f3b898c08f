package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// node is a machine of the lab, "n1" or "n2"; its commands want the number.
func number(node string) string { return strings.TrimPrefix(node, "n") }

// onNode runs a shell script on the node.
func (c *cluster) onNode(node, script string) (string, error) {
	return labTry("in", number(node), "sh", "-c", script)
}

// kill ends all processes on the node whose command line begins with the words, and says whether there were any.
func (c *cluster) kill(node, words string) bool {
	_, err := c.onNode(node, fmt.Sprintf(`pkill -KILL -f '^(/usr/bin/)?%s'`, words))
	return err == nil
}

// id is the volume's own name, without its node.
func id(handle string) string {
	head, _, _ := strings.Cut(handle, "@")
	return head
}

// unharmed fails where the pod was replaced or a container of it was started again.
func (w writer) unharmed(p pod) func() error {
	return func() error {
		now, err := w.pod()
		switch {
		case err != nil:
			return err
		case now.Metadata.UID != p.Metadata.UID:
			return errors.New("the pod was replaced")
		case now.restarts() != p.restarts():
			return fmt.Errorf("its container was started %d times again", now.restarts()-p.restarts())
		}
		return nil
	}
}

// otherVersion builds Belay as the version and returns the program.
func (c *cluster) otherVersion(version string) string {
	c.Helper()
	path := filepath.Join(c.TempDir(), "belay")
	build := exec.CommandContext(c.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version="+version, "-o", path, "./cmd/belay")
	build.Dir, build.Env = checkout, append(os.Environ(), "CGO_ENABLED=0") // as the Makefile does: most of it is built already
	if out, err := build.CombinedOutput(); err != nil {
		c.Fatalf("build: %v: %s", err, out)
	}
	return path
}

// TestEngineKilledDuringLiveUpgrade: the engine of a volume under a Deployment is killed while it is upgraded, again and again. Longhorn lost data there (its
// issue 10751, test_engine_crash_during_live_upgrade): its pod controller deleted the VolumeAttachment under a live mount. Here the file is whole and the
// pod is not even restarted.
func TestEngineKilledDuringLiveUpgrade(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle := w.running(), w.handle()
	next := c.otherVersion("next")
	if out, err := c.onNode(p.Spec.NodeName, fmt.Sprintf("mkdir -p /var/lib/belay/bin && cp %s /var/lib/belay/bin/belay-next", next)); err != nil {
		t.Fatal(err, out)
	}
	versions := []string{"/var/lib/belay/bin/belay-next", "/var/lib/belay/bin/belay-" + c.version()}
	for round := range 6 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		upgraded := make(chan error, 1)
		go func() {
			_, err := run(ctx, nil, lab, "kubectl", "-n", system, "exec", "deploy/belay-controller", "-c", "belay", "--",
				"/usr/bin/belay", "upgrade", handle, "--to", versions[round%2], "--socket", "/csi/admin/admin.sock")
			upgraded <- err
		}()
		time.Sleep(time.Duration(150*round) * time.Millisecond)
		killed := c.kill(p.Spec.NodeName, "belay engine "+id(handle))
		t.Logf("round %d: engine killed: %t; upgrade: %v", round, killed, <-upgraded)
		cancel()
		w.goesOn()
		if err := w.unharmed(p)(); err != nil {
			t.Fatal(err)
		}
	}
	said := w.told(p)
	w.intact(said)
	w.scale("Deployment", 0)
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
}

// version is that of the controller's program.
func (c *cluster) version() string {
	c.Helper()
	var v struct{ Version string }
	if err := c.belay(&v, "version"); err != nil {
		c.Fatal(err)
	}
	return v.Version
}

// TestNodePodKilledDuringUnstage: the server of a machine is killed in the middle of NodeUnstageVolume. The stage journal has the work, and the next one
// ends it.
func TestNodePodKilledDuringUnstage(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	for round := range 4 {
		p := w.running()
		w.fill(p, 60)
		said := w.told(p)
		w.scale("Deployment", 0)
		c.eventually("the pod ends", func() error {
			if n := len(w.pods()); n > 0 {
				return fmt.Errorf("%d pods", n)
			}
			return nil
		})
		time.Sleep(time.Duration(100*round) * time.Millisecond)
		t.Logf("round %d: killed: %t", round, c.kill(p.Spec.NodeName, "belay node"))
		c.eventually("a clean receipt", c.newestReceipt(w.handle(), round+1, "clean"))
		c.eventually("detached", c.detached(c.volumeName("data")))
		w.again(said)
	}
}

// fill writes as many MiB to a file beside the numbers, not synced, so that the detach has something to do.
func (w writer) fill(p pod, mib int) {
	w.Helper()
	w.kubectl("exec", p.Metadata.Name, "--", "dd", "if=/dev/urandom", "of=/data/ballast", "bs=1M", fmt.Sprintf("count=%d", mib))
}

// TestControllerKilledDuringUnpublish: every controller is killed while a volume is detached. They keep nothing, and the sidecars ask again.
func TestControllerKilledDuringUnpublish(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	for round := range 3 {
		said := w.told(w.running())
		w.scale("Deployment", 0)
		time.Sleep(time.Duration(2+round) * time.Second) // the pod has 2 s; more kills than these, and kubelet would wait longer each time
		for _, node := range []string{"n1", "n2"} {
			c.kill(node, "belay controller")
		}
		c.eventually("detached", c.detached(c.volumeName("data")))
		c.eventually("a clean receipt", c.newestReceipt(w.handle(), round+1, "clean"))
		w.again(said)
	}
}

// TestAPIServerAwayDuringDetach: the API server is away for a minute while a volume is detached. What runs on the machine needs no API server, and what does
// waits for it.
func TestAPIServerAwayDuringDetach(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	w.fill(p, 60)
	said := w.told(p)
	w.scale("Deployment", 0)
	c.eventually("kubelet is told", func() error {
		for _, p := range w.pods() {
			if p.Metadata.DeletionTimestamp == nil {
				return errors.New("the pod is to stay")
			}
		}
		return nil
	})
	c.lab("apiserver-stop")
	t.Cleanup(func() { _, _ = labTry("apiserver-start") })
	time.Sleep(time.Minute)
	c.lab("apiserver-start")
	c.eventually("detached", c.detached(volume))
	c.eventually("a clean receipt", c.newestReceipt(handle, 1, "clean"))
	w.again(said)
}

// TestStoreCorrupted: bytes of one copy rot under a volume in use. The detach reads back what was written, finds and mends them, and the receipt says so.
func TestStoreCorrupted(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle := w.running(), w.handle()
	w.fill(p, 16)
	w.kubectl("exec", p.Metadata.Name, "--", "sync")
	said := w.told(p)
	rot := fmt.Sprintf(`f=/var/lib/belay/stores/b/volumes/%s/data; n=0
for at in $(filefrag -b4096 -e -s $f 2>/dev/null | awk '/^ *[0-9]+:/{gsub("[.:]"," "); print $2}'); do
  dd if=/dev/urandom of=$f bs=4096 seek=$((at + 1)) count=1 conv=notrunc 2>/dev/null; n=$((n + 1)); [ $n -lt 5 ] || break
done; sync $f; echo $n`, id(handle))
	out, err := c.onNode(p.Spec.NodeName, rot)
	if err != nil || strings.TrimSpace(out) == "0" {
		t.Fatalf("nothing rots: %q %v", out, err)
	}
	w.scale("Deployment", 0)
	c.eventually("detached", c.detached(c.volumeName("data")))
	var found struct {
		Receipts []struct {
			Receipt struct {
				Kind        string `json:"kind"`
				RepairCount int    `json:"repairCount"`
			} `json:"receipt"`
		} `json:"receipts"`
	}
	if err := c.belay(&found, "receipts", handle); err != nil || len(found.Receipts) == 0 {
		t.Fatalf("%v: %d receipts", err, len(found.Receipts))
	}
	if r := found.Receipts[len(found.Receipts)-1].Receipt; r.Kind != "clean" || r.RepairCount == 0 {
		t.Errorf("%+v: nothing was mended", r)
	}
	w.again(said)
	// What was not written since the volume was last verified no detach reads back. A verification reads all, and mends what nobody has read and so mended before.
	if err := c.belay(&struct{}{}, "verify", handle); err != nil {
		t.Logf("the verification: %v", err)
	}
	w.scale("Deployment", 0)
	c.eventually("detached", c.detached(c.volumeName("data")))
	var seen struct{ Comparison string }
	if err := c.belay(&seen, "verify", handle); err != nil || seen.Comparison != "equal" {
		t.Errorf("verify says %q, %v", seen.Comparison, err)
	}
}

// TestHostKilledInItsContainer: the host of a machine is killed, and then an engine. Another host takes its place within the container, before whose end the runtime
// would have killed every engine too, and brings up the next engine: the workload sees a pause.
func TestHostKilledInItsContainer(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{})
	p, handle := w.running(), w.handle()
	for range 3 {
		if !c.killExactly(p.Spec.NodeName, "belay host") {
			t.Fatal("no host runs")
		}
		w.goesOn()
		if !c.killExactly(p.Spec.NodeName, "belay engine "+id(handle)) {
			t.Fatal("no engine runs")
		}
		w.goesOn()
		if err := w.unharmed(p)(); err != nil {
			t.Fatal(err)
		}
	}
	said := w.told(p)
	w.intact(said)
}

// killExactly is kill of processes that call themselves so, without a path.
func (c *cluster) killExactly(node, words string) bool {
	_, err := c.onNode(node, fmt.Sprintf(`pkill -KILL -f '^%s'`, words))
	return err == nil
}

const restartClass = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: belay-restart}
provisioner: csi.belay.storage
parameters: {restartOnDeviceLoss: "true"}
volumeBindingMode: WaitForFirstConsumer
`

// TestDeviceLost: host and engine of a volume die at once, and its device with them. The StorageClass has opted in, so the pod is asked, by an ordinary delete, to
// make room for another one, which finds all that was synced. Nothing is deleted by force, and no VolumeAttachment at all.
func TestDeviceLost(t *testing.T) {
	c := start(t)
	c.apply(restartClass)
	t.Cleanup(func() { _, _ = labTry("kubectl", "delete", "storageclass", "belay-restart") })
	w := c.write("data", shape{class: "belay-restart"})
	p := w.running()
	said := w.told(p)
	if !c.killExactly(p.Spec.NodeName, "belay (host|engine)") {
		t.Fatal("nothing to kill")
	}
	c.eventually("people are told", c.told("PersistentVolumeClaim", "data", "RestartRequested", "was lost"))
	c.eventually("the pod is asked to make room", c.told("Pod", p.Metadata.Name, "RestartRequested"))
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
