package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// victim is the node that is switched off.
const victim = "n2"

func (c *cluster) powerOff() {
	c.Helper()
	c.lab("power-off", number(victim))
	c.Cleanup(func() {
		_, _ = labTry("node", number(victim))
		_, _ = labTry("kubectl", "taint", "node", victim, "node.kubernetes.io/out-of-service-")
	})
	c.eventually("the node is missed", func() error {
		text, err := c.tryKubectl("get", "node", victim, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err == nil && text == "True" {
			err = errors.New("it is Ready")
		}
		return err
	})
}

// powerOn returns when the node is Ready again.
func (c *cluster) powerOn() {
	c.Helper()
	c.lab("node", number(victim))
}

// TestPowerOff: a node is switched off, and nobody says that it is lost. Nothing is let go of: a node that is silent may live. When it is back its pod goes on
// with all that was synced.
func TestPowerOff(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{node: victim, kind: "StatefulSet"})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	said := w.told(p)
	c.powerOff()
	c.meanwhile(30*time.Second, "it stays attached", func() error {
		if err := c.detached(volume)(); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
	c.powerOn()
	w.goesOn()
	w.intact(said)
	w.scale("StatefulSet", 0)
	c.eventually("detached", c.detached(volume))
	c.eventually("a receipt", c.newestReceipt(handle, 1, "clean"))
}

// TestPowerOffOutOfService: an operator says by the taint that the node is off (KEP 2268), and Kubernetes detaches by force: an ordinary call that no driver can
// tell from a clean one. The replicas of a `mirror` volume are on the lost machine, so that nobody can fence or verify: it is UNAVAILABLE and says so. Once the
// machine is back, its writer proven dead and the replicas compared, a fenced receipt ends the detach, and the next pod has all that was synced.
func TestPowerOffOutOfService(t *testing.T) {
	c := start(t)
	w := c.write("data", shape{node: victim})
	p, handle, volume := w.running(), w.handle(), c.volumeName("data")
	said := w.told(p)
	c.powerOff()
	c.kubectl("taint", "node", victim, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
	tainted := time.Now()
	c.eventually("the detach is forced", func() error {
		for _, a := range c.attachments(volume) {
			if e := a.Status.DetachError; e != nil && strings.Contains(e.Message, "Unavailable") && strings.Contains(e.Message, victim) {
				return nil
			}
		}
		return errors.New("no detachError that names the node")
	})
	c.eventually("people are told", c.told("PersistentVolumeClaim", "data", "DetachWaiting", victim, "does not answer"))
	c.meanwhile(15*time.Second, "it stays attached", func() error {
		if err := c.detached(volume)(); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
	away := time.Since(tainted)
	c.powerOn()
	back := time.Now()
	c.kubectl("taint", "node", victim, "node.kubernetes.io/out-of-service-")
	c.eventually("a fenced receipt", func() error {
		all, err := c.receipts(handle)
		if err != nil {
			return err
		}
		for _, r := range all {
			if r.Kind == "fenced" {
				figure("power-off, out-of-service taint: receipt %.1f s after kubelet of the node was ready again (it was away for %.0f s)", r.At.Sub(back).Seconds(), away.Seconds())
				return nil
			}
		}
		return fmt.Errorf("%d receipts, none of them fenced", len(all))
	})
	w.goesOn()
	w.intact(said)
	if now := w.running(); now.Metadata.UID == p.Metadata.UID {
		t.Error("it is the old pod")
	}
}
