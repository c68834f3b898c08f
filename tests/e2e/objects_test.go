package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The parts of the cluster's objects that the tests look at.
type (
	meta struct {
		Name              string            `json:"name"`
		UID               string            `json:"uid"`
		DeletionTimestamp *time.Time        `json:"deletionTimestamp"`
		Annotations       map[string]string `json:"annotations"`
		Finalizers        []string          `json:"finalizers"`
	}
	pod struct {
		Metadata meta `json:"metadata"`
		Spec     struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
		Status struct {
			Phase      string `json:"phase"`
			Conditions []struct {
				Type, Status       string
				LastTransitionTime time.Time
			} `json:"conditions"`
			ContainerStatuses []struct {
				RestartCount int `json:"restartCount"`
			} `json:"containerStatuses"`
		} `json:"status"`
	}
	attachment struct {
		Metadata meta `json:"metadata"`
		Spec     struct {
			NodeName string `json:"nodeName"`
			Source   struct {
				PersistentVolumeName string `json:"persistentVolumeName"`
			} `json:"source"`
		} `json:"spec"`
		Status struct {
			Attached    bool `json:"attached"`
			DetachError *struct {
				Message string `json:"message"`
			} `json:"detachError"`
		} `json:"status"`
	}
	claim struct {
		Spec struct {
			VolumeName string `json:"volumeName"`
		} `json:"spec"`
		Status struct {
			Phase    string            `json:"phase"`
			Capacity map[string]string `json:"capacity"`
		} `json:"status"`
	}
	event struct {
		Reason         string `json:"reason"`
		Message        string `json:"message"`
		InvolvedObject struct {
			Kind, Name string
		} `json:"involvedObject"`
	}
)

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True" && p.Metadata.DeletionTimestamp == nil
		}
	}
	return false
}

func (p pod) restarts() (n int) {
	for _, s := range p.Status.ContainerStatuses {
		n += s.RestartCount
	}
	return n
}

// volumeName is the name of the claim's PersistentVolume.
func (c *cluster) volumeName(name string) string {
	c.Helper()
	var got claim
	if !c.get(&got, "pvc", name) || got.Spec.VolumeName == "" {
		c.Fatalf("claim %s is not bound", name)
	}
	return got.Spec.VolumeName
}

// attachments are those of the PersistentVolume.
func (c *cluster) attachments(volume string) (out []attachment) {
	c.Helper()
	var all struct{ Items []attachment }
	c.get(&all, "volumeattachments")
	for _, a := range all.Items {
		if a.Spec.Source.PersistentVolumeName == volume {
			out = append(out, a)
		}
	}
	return out
}

// detached fails while the volume has a VolumeAttachment.
func (c *cluster) detached(volume string) func() error {
	return func() error {
		for _, a := range c.attachments(volume) {
			if a.Status.DetachError != nil {
				return fmt.Errorf("%s: %s", a.Metadata.Name, a.Status.DetachError.Message)
			}
			return fmt.Errorf("%s is there, attached %t", a.Metadata.Name, a.Status.Attached)
		}
		return nil
	}
}

// told fails until there is an Event of the reason on an object of the kind, with all the words in its message.
func (c *cluster) told(kind, object, reason string, words ...string) func() error {
	return func() error {
		args := []string{"get", "events", "-o", "json"}
		if kind != "PersistentVolumeClaim" && kind != "Pod" {
			args = append(args, "-n", "default") // where Events of objects without a namespace are
		}
		text, err := c.tryKubectl(args...)
		if err != nil {
			return err
		}
		var all struct{ Items []event }
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			return err
		}
		for _, e := range all.Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == object && e.Reason == reason && containsAll(e.Message, words) {
				return nil
			}
		}
		return fmt.Errorf("no Event %s on %s %s with %q", reason, kind, object, words)
	}
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// belay asks the controller, as `kubectl belay` does.
func (c *cluster) belay(out any, args ...string) error {
	text, err := c.tryKubectl(append([]string{"-n", system, "exec", "deploy/belay-controller", "-c", "belay", "--", "/usr/bin/belay"}, append(args, "--socket", "/csi/admin/admin.sock", "-o", "json")...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), out)
}

// receiptOf is what the tests look at of a receipt.
type receiptOf struct {
	Kind   string    `json:"kind"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason"`
	Actor  string    `json:"actor"`
}

// receipts are the volume's, oldest first; every one must be signed, and the chain whole.
func (c *cluster) receipts(volume string) ([]receiptOf, error) {
	var all struct {
		Receipts []struct {
			Receipt receiptOf `json:"receipt"`
			Error   string    `json:"error"`
		} `json:"receipts"`
		Breaks []any `json:"breaks"`
	}
	if err := c.belay(&all, "receipts", volume); err != nil {
		return nil, err
	}
	var out []receiptOf
	for _, r := range all.Receipts {
		if r.Error != "" || len(all.Breaks) > 0 {
			return nil, fmt.Errorf("receipts of %s: %v %s", volume, all.Breaks, r.Error)
		}
		out = append(out, r.Receipt)
	}
	return out, nil
}

// newestReceipt fails until the volume has n receipts, and then the newest is of the kind.
func (c *cluster) newestReceipt(volume string, n int, kind string) func() error {
	return func() error {
		all, err := c.receipts(volume)
		if err != nil {
			return err
		}
		if len(all) < n {
			return fmt.Errorf("%d receipts of %s, want %d", len(all), volume, n)
		}
		if got := all[len(all)-1]; got.Kind != kind {
			return fmt.Errorf("the newest receipt of %s is %s (%s), want %s", volume, got.Kind, got.Reason, kind)
		}
		return nil
	}
}
