package manifests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCSIDriver(t *testing.T) {
	d := one(t, "CSIDriver", "csi.belay.storage")
	for key, want := range map[string]any{"attachRequired": true, "storageCapacity": true, "fsGroupPolicy": "File", "seLinuxMount": true, "requiresRepublish": false} {
		if got := d.At("spec", key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if got := d.Texts("spec", "volumeLifecycleModes"); !slices.Equal(got, []string{"Persistent"}) {
		t.Errorf("volumeLifecycleModes %v", got)
	}
}

// classParameters are what the driver and its engine know; another is refused.
var classParameters = []string{"replicas", "fsType", "verify", "blockSize", "restartOnDeviceLoss"}

func TestStorageClasses(t *testing.T) {
	examples, err := Read(filepath.Join(root, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, c := range append(everything(t), examples...) {
		if c.Kind() != "StorageClass" {
			continue
		}
		found++
		if c.Text("provisioner") != "csi.belay.storage" || c.Text("volumeBindingMode") != "WaitForFirstConsumer" || c.At("allowVolumeExpansion") != true {
			t.Errorf("%s: %v", c, c)
		}
		parameters, _ := c.At("parameters").(Object)
		for key, value := range parameters {
			if _, text := value.(string); !text || !slices.Contains(classParameters, key) {
				t.Errorf("%s: parameter %s: %v", c, key, value)
			}
		}
	}
	if found < 4 {
		t.Errorf("%d classes, want belay and three examples", found)
	}
}

// TestDefaultClassFitsAll: with csi.storage.k8s.io/fstype beside fsType the provisioner refuses the class, and where there are fewer stores than replicas
// asked for, as with two disks, no volume is made.
func TestDefaultClassFitsAll(t *testing.T) {
	c := one(t, "StorageClass", "belay")
	parameters, _ := c.At("parameters").(Object)
	for key := range parameters {
		if strings.EqualFold(key, "fsType") || strings.EqualFold(key, "csi.storage.k8s.io/fstype") || key == "replicas" {
			t.Errorf("parameter %s", key)
		}
	}
	if c.Text("parameters", "verify") == "" {
		t.Errorf("parameters %v", parameters)
	}
}

// TestNodeService: the controller finds machines by the endpoints of this Service.
func TestNodeService(t *testing.T) {
	s := one(t, "Service", "belay-node")
	if s.Text("spec", "clusterIP") != "None" || s.At("spec", "publishNotReadyAddresses") == true {
		t.Errorf("%v: must be headless and have only machines that are ready", s.At("spec"))
	}
	port := named(t, s.Objects("spec", "ports"), "cluster")
	if port.At("port") != 9811 {
		t.Errorf("port %v", port)
	}
	w := one(t, "DaemonSet", "belay-node")
	named(t, named(t, containers(w.Pod()), "belay").Objects("ports"), port.Text("targetPort"))
	selects(t, s, w, "spec", "selector")
}

// selects wants the selector at the path to match the pods of w and of no other workload.
func selects(t *testing.T, o, w Object, path ...string) {
	t.Helper()
	selector, _ := o.At(path...).(Object)
	for _, other := range workloads(t) {
		matches := len(selector) > 0
		for key, value := range selector {
			matches = matches && other.At("spec", "template", "metadata", "labels", key) == value
		}
		if matches != (other.String() == w.String()) {
			t.Errorf("%s: selects pods of %s: %v", o, other, matches)
		}
	}
}

func TestSelectors(t *testing.T) {
	for _, w := range workloads(t) {
		selects(t, w, w, "spec", "selector", "matchLabels")
		selects(t, one(t, "NetworkPolicy", w.Name()), w, "spec", "podSelector", "matchLabels")
	}
	selects(t, one(t, "PodDisruptionBudget", "belay-controller"), one(t, "Deployment", "belay-controller"), "spec", "selector", "matchLabels")
}

// TestOnlyTheControllerReachesNodes, by the network policies; certificates say it again.
func TestOnlyTheControllerReachesNodes(t *testing.T) {
	found := false
	for _, rule := range one(t, "NetworkPolicy", "belay-node").Objects("spec", "ingress") {
		if !slices.ContainsFunc(rule.Objects("ports"), func(p Object) bool { return p.Text("port") == "cluster" }) {
			if len(rule.Objects("ports")) == 0 {
				t.Error("a rule without ports lets everything in")
			}
			continue
		}
		found = true
		from := rule.Objects("from")
		if len(from) != 1 || from[0].At("namespaceSelector") != nil {
			t.Fatalf("the cluster port is open to %v", from)
		}
		selects(t, Object{"kind": "rule", "from": from[0].At("podSelector")}, one(t, "Deployment", "belay-controller"), "from", "matchLabels")
	}
	if !found {
		t.Error("nobody reaches the nodes")
	}
	for _, name := range []string{"belay-node", "belay-host"} {
		p := one(t, "NetworkPolicy", name)
		if !slices.Equal(p.Texts("spec", "policyTypes"), []string{"Ingress", "Egress"}) || len(p.Objects("spec", "egress")) != 0 {
			t.Errorf("%s may call others", name)
		}
	}
}

func TestNamespace(t *testing.T) {
	for _, o := range everything(t) {
		if n := o.Text("metadata", "namespace"); n != "" && n != "belay-system" && n != "kube-node-lease" {
			t.Errorf("%s is in namespace %s", o, n)
		}
	}
	if one(t, "Namespace", "belay-system").Text("metadata", "labels", "pod-security.kubernetes.io/enforce") != "privileged" {
		t.Error("pod security would refuse node and host")
	}
}

// TestNothingWithoutTheCapability: a class that nobody serves leaves claims and snapshots pending.
func TestNothingWithoutTheCapability(t *testing.T) {
	for _, o := range everything(t) {
		if strings.HasPrefix(o.Kind(), "VolumeSnapshot") || o.Kind() == "VolumeAttributesClass" {
			t.Errorf("%s, and the driver has no such capability", o)
		}
	}
}
