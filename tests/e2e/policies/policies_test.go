package policies

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// kubeconfigEnv names a kubeconfig of an administrator of a cluster where the manifests are applied. No kubelet is needed.
const kubeconfigEnv = "BELAY_KUBECONFIG"

const (
	attachment = "belay-policies-test"
	namespace  = "belay-system"
	controller = "system:serviceaccount:belay-system:belay-controller"
	patcher    = "belay-test-patcher"  // may patch VolumeAttachments
	overrider  = "belay-test-override" // has belay-override
	viewer     = "belay-test-viewer"   // has belay-viewer
	operator   = "belay-test-operator" // has belay-viewer and belay-operator
	override   = "belay.storage/override"
	result     = "belay.storage/override-result"
)

const objects = `
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: belay-policies-test}
spec: {attacher: csi.belay.storage, nodeName: belay-policies-test, source: {persistentVolumeName: belay-policies-test}}
---
apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {name: belay-policies-test-other}
spec: {attacher: other.example.com, nodeName: belay-policies-test, source: {persistentVolumeName: belay-policies-test}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: belay-test-patcher}
rules: [{apiGroups: [storage.k8s.io], resources: [volumeattachments], verbs: [get, create, patch, delete]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: belay-test-patcher}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: belay-test-patcher}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: belay-test-patcher}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: belay-test-override}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: belay-override}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: belay-test-override}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: belay-test-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: belay-operator}
subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: belay-test-operator}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: belay-test-viewer, namespace: belay-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: belay-viewer}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: belay-test-viewer}
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: belay-test-operator}
---
# It never runs: on a cluster without kubelets an exec ends at the missing machine, which is after admission.
apiVersion: v1
kind: Pod
metadata: {name: belay-policies-test, namespace: belay-system}
spec: {nodeName: belay-policies-test, serviceAccountName: belay-node, containers: [{name: c, image: none.invalid/none:1}]}
`

// kubectl runs as user, "" for the administrator, and returns what it printed on both outputs.
func kubectl(t *testing.T, user, stdin string, args ...string) (string, error) {
	t.Helper()
	all := []string{"--kubeconfig", os.Getenv(kubeconfigEnv)}
	if user != "" {
		all = append(all, "--as", user)
	}
	cmd := exec.Command("kubectl", append(all, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func setUp(t *testing.T) {
	t.Helper()
	if os.Getenv(kubeconfigEnv) == "" {
		t.Skipf("%s is not set: no cluster to try the policies on", kubeconfigEnv)
	}
	t.Cleanup(func() {
		if out, err := kubectl(t, "", objects, "delete", "--ignore-not-found", "--wait=false", "--grace-period=0", "--force", "-f", "-"); err != nil {
			t.Errorf("clean up: %v: %s", err, out)
		}
	})
	if out, err := kubectl(t, "", objects, "apply", "-f", "-"); err != nil {
		t.Fatalf("set up: %v: %s", err, out)
	}
	untilInForce(t)
}

// untilInForce waits until the API server has taken up policies and bindings that were just made.
func untilInForce(t *testing.T) {
	t.Helper()
	for range 200 {
		_, refused := kubectl(t, patcher, "", "annotate", "--overwrite", "--dry-run=server", "volumeattachment", attachment, override+"=x")
		_, early := kubectl(t, patcher, "", "get", "volumeattachment", attachment)
		if refused != nil && early == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("the policy belay-override refuses nothing: are the manifests applied?")
}

func by(user string) string {
	return "volume=pvc-1a2b; epoch=12; by=" + user + "; reason=ticket 4711; the machine is scrap"
}

type change struct {
	what    string
	user    string
	set     string // KEY=VALUE, or KEY- to remove
	on      string // attachment unless said otherwise
	refused string // what the refusal says; "" where it is done
}

// The steps build on one another.
var changes = []change{
	{what: "another annotation is nobody's business", user: patcher, set: "example.com/note=x"},
	{what: "a right to patch is none to override", user: patcher, set: override + "=" + by(patcher), refused: "may not override"},
	{what: "nor has the controller it", user: controller, set: override + "=" + by(controller), refused: "may not override"},
	{what: "in somebody else's name", user: overrider, set: override + "=" + by("somebody"), refused: "by= must be who asks, " + overrider},
	{what: "without a reason", user: overrider, set: override + "=volume=pvc-1; epoch=1; by=" + overrider + "; reason= ", refused: "the reason is missing"},
	{what: "without an epoch", user: overrider, set: override + "=volume=pvc-1; by=" + overrider + "; reason=x", refused: "want \"volume="},
	{what: "an epoch that is no number", user: overrider, set: override + "=volume=pvc-1; epoch=new; by=" + overrider + "; reason=x", refused: "want \"volume="},
	{what: "an epoch that never was", user: overrider, set: override + "=volume=pvc-1; epoch=0; by=" + overrider + "; reason=x", refused: "want \"volume="},
	{what: "a handle, which is not the volume's name", user: overrider, set: override + "=volume=pvc-1@n1; epoch=1; by=" + overrider + "; reason=x", refused: "want \"volume="},
	{what: "no volume", user: overrider, set: override + "=volume=; epoch=1; by=" + overrider + "; reason=x", refused: "want \"volume="},
	{what: "a result that nobody came to", user: patcher, set: result + "=done", refused: "only Belay's controller"},
	{what: "with the right, name and reason", user: overrider, set: override + "=" + by(overrider)},
	{what: "something else while it is there", user: patcher, set: "example.com/note=y"},
	{what: "taken back by somebody else", user: patcher, set: override + "-", refused: "may not take it back"},
	{what: "changed by somebody else", user: patcher, set: override + "=" + by(patcher), refused: "may not override"},
	{what: "the controller says what came of it", user: controller, set: result + "=done"},
	{what: "the controller takes it away", user: controller, set: override + "-"},
	{what: "the result stays", user: patcher, set: result + "-", refused: "only Belay's controller"},
	{what: "once more", user: overrider, set: override + "=" + by(overrider)},
	{what: "taken back by who may", user: overrider, set: override + "-"},
	{what: "the administrator has every right, in their own name", user: "", set: override + "=" + by("somebody"), refused: "by= must be who asks"},
	{what: "another driver's attachment", user: patcher, on: attachment + "-other", set: override + "=anything"},
}

func TestOverride(t *testing.T) {
	setUp(t)
	for _, c := range changes {
		on := attachment
		if c.on != "" {
			on = c.on
		}
		out, err := kubectl(t, c.user, "", "annotate", "--overwrite", "volumeattachment", on, c.set)
		check(t, c.what, out, err, c.refused)
	}
}

// check compares with what was wanted: refused in these words, or done.
func check(t *testing.T, what, out string, err error, refused string) {
	t.Helper()
	switch {
	case refused == "" && err != nil:
		t.Errorf("%s: refused: %s", what, out)
	case refused != "" && err == nil:
		t.Errorf("%s: done, want a refusal that says %q", what, refused)
	case !strings.Contains(out, refused):
		t.Errorf("%s: refused with\n%s\nwant %q", what, out, refused)
	}
}

func TestOverrideAtCreation(t *testing.T) {
	setUp(t)
	const made = `{"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
 "metadata": {"name": "belay-policies-test-made", "annotations": {"belay.storage/override": "volume=v; epoch=1; by=belay-test-patcher; reason=x"}},
 "spec": {"attacher": "csi.belay.storage", "nodeName": "n", "source": {"persistentVolumeName": "p"}}}`
	out, err := kubectl(t, patcher, made, "create", "-f", "-")
	check(t, "a VolumeAttachment that is made with an override", out, err, "may not override")
}

func TestExec(t *testing.T) {
	setUp(t)
	const denied = "ValidatingAdmissionPolicy 'belay-exec'"
	for _, c := range []struct {
		what, user string
		command    []string
		denied     bool
	}{
		{"a viewer looks", viewer, []string{"belay", "volumes", "-o", "json"}, false},
		{"a viewer asks why", viewer, []string{"/usr/bin/belay", "why", "pvc-1"}, false},
		{"a viewer has no shell", viewer, []string{"sh"}, true},
		{"a viewer has no shell by a name that looks right", viewer, []string{"/tmp/belay", "volumes"}, true},
		{"a viewer does not fence", viewer, []string{"belay", "fence", "pvc-1"}, true},
		{"a viewer does not upgrade", viewer, []string{"belay", "upgrade", "--all"}, true},
		{"a viewer does not salvage", viewer, []string{"belay", "salvage", "pvc-1"}, true},
		{"an operator does not fence: that is an override, in their own name", operator, []string{"belay", "fence", "pvc-1"}, true},
		{"an operator upgrades", operator, []string{"belay", "upgrade", "--all"}, false},
		{"an operator has no shell", operator, []string{"sh", "-c", "belay volumes"}, true},
		{"an administrator has a shell", "", []string{"sh"}, false},
	} {
		// There is no machine, so it fails in any case: the question is who said no.
		out, err := kubectl(t, c.user, "", append([]string{"-n", namespace, "exec", attachment, "-c", "c", "--"}, c.command...)...)
		if err == nil {
			t.Errorf("%s: it ran; there should be no pod to run it in", c.what)
		}
		if strings.Contains(out, "pods/exec") && strings.Contains(out, "cannot") {
			t.Errorf("%s: not even asked the policy: %s", c.what, out)
		}
		if got := strings.Contains(out, denied); got != c.denied {
			t.Errorf("%s: denied %v, want %v: %s", c.what, got, c.denied, out)
		}
	}
}
