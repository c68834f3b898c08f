package manifests

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// roles returns all Roles and ClusterRoles, those of the optional parts too.
func roles(t *testing.T) (out []Object) {
	t.Helper()
	for _, o := range everything(t) {
		if strings.HasSuffix(o.Kind(), "Role") {
			out = append(out, o)
		}
	}
	return out
}

// TestNoRightToDeleteAttachments: nothing of Belay's deletes a VolumeAttachment, and nothing of Belay's could.
func TestNoRightToDeleteAttachments(t *testing.T) {
	allowed := []string{"get", "list", "watch", "patch"}
	found := 0
	for _, role := range roles(t) {
		for _, rule := range role.Objects("rules") {
			if !slices.Contains(rule.Texts("apiGroups"), "storage.k8s.io") || !mentions(rule, "volumeattachments") {
				continue
			}
			found++
			for _, verb := range rule.Texts("verbs") {
				if !slices.Contains(allowed, verb) {
					t.Errorf("%s may %s VolumeAttachments", role, verb)
				}
			}
		}
	}
	if found < 4 {
		t.Errorf("only %d rules speak of VolumeAttachments: does this test still read the roles?", found)
	}
}

func mentions(rule Object, resource string) bool {
	return slices.ContainsFunc(rule.Texts("resources"), func(r string) bool { return r == resource || strings.HasPrefix(r, resource+"/") })
}

// TestRightsAreNamed: no wildcard; Secrets and leases only by name, since one that is listed is read.
func TestRightsAreNamed(t *testing.T) {
	for _, role := range roles(t) {
		if role.At("aggregationRule") != nil {
			t.Errorf("%s grows by the labels of others", role)
		}
		for _, rule := range role.Objects("rules") {
			checkNamed(t, role, rule)
		}
	}
}

func checkNamed(t *testing.T, role, rule Object) {
	t.Helper()
	for _, key := range []string{"apiGroups", "resources", "verbs"} {
		if len(rule.Texts(key)) == 0 || slices.ContainsFunc(rule.Texts(key), func(s string) bool { return strings.Contains(s, "*") }) {
			t.Errorf("%s: %s %v: a wildcard, or nothing", role, key, rule.Texts(key))
		}
	}
	if mentions(rule, "secrets") && (len(rule.Texts("resourceNames")) == 0 || !slices.Equal(rule.Texts("verbs"), []string{"get", "update"})) {
		t.Errorf("%s reads Secrets that it does not name, or does more with them than get and update", role)
	}
	if role.Text("metadata", "namespace") == "belay-system" && mentions(rule, "leases") && len(rule.Texts("resourceNames")) == 0 &&
		!slices.Equal(rule.Texts("verbs"), []string{"create"}) {
		t.Errorf("%s may do more with leases it does not name than create them: %v", role, rule.Texts("verbs"))
	}
	for _, r := range rule.Texts("resources") {
		if slices.Contains([]string{"nodes/proxy", "pods/attach", "serviceaccounts/token", "pods/ephemeralcontainers"}, r) {
			t.Errorf("%s: %s is as good as root on every machine", role, r)
		}
	}
}

// TestOnlyTheControllerHasRights: node and host run on every machine, so whatever they may do, whoever takes over one machine may.
func TestOnlyTheControllerHasRights(t *testing.T) {
	bound := map[string]bool{}
	for _, o := range everything(t) {
		if !strings.HasSuffix(o.Kind(), "RoleBinding") {
			continue
		}
		bound[o.Text("roleRef", "name")] = true
		for _, s := range o.Objects("subjects") {
			if s.Text("kind") != "ServiceAccount" || s.Text("name") != "belay-controller" || s.Text("namespace") != "belay-system" {
				t.Errorf("%s gives rights to %v", o, s)
			}
		}
	}
	for _, people := range []string{"belay-viewer", "belay-operator", "belay-override"} {
		if bound[people] {
			t.Errorf("%s is for people, and is bound", people)
		}
	}
	for _, role := range roles(t) {
		if strings.HasPrefix(role.Name(), "belay-controller") && !bound[role.Name()] {
			t.Errorf("%s is bound to nobody", role)
		}
	}
	for _, name := range []string{"belay-node", "belay-host"} {
		if one(t, "ServiceAccount", name).At("automountServiceAccountToken") != false ||
			one(t, "DaemonSet", name).Pod().At("automountServiceAccountToken") != false {
			t.Errorf("%s carries a token for the API server, which it never asks", name)
		}
	}
}

// TestBaseHasNoOptionalRights: deleting pods and reading kubelets' leases are switched on by who wants them.
func TestBaseHasNoOptionalRights(t *testing.T) {
	objects, err := Read(filepath.Join(root, "base"))
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range objects {
		for _, rule := range role.Objects("rules") {
			if mentions(rule, "pods") && slices.Contains(rule.Texts("verbs"), "delete") {
				t.Errorf("%s may delete pods", role)
			}
		}
		if role.Text("metadata", "namespace") == "kube-node-lease" {
			t.Errorf("%s reaches into kube-node-lease", role)
		}
	}
}

// TestSecretsComeEmpty: one with data would be put back over the certificates each time the manifests are applied.
func TestSecretsComeEmpty(t *testing.T) {
	found := 0
	for _, o := range everything(t) {
		if o.Kind() != "Secret" {
			continue
		}
		found++
		if o.At("data") != nil || o.At("stringData") != nil {
			t.Errorf("%s has data", o)
		}
	}
	if found != 3 {
		t.Errorf("%d Secrets, want belay-ca, belay-controller-tls and belay-node-tls", found)
	}
}

// TestPoliciesRefuse: a policy without a binding, or one that only warns, guards nothing.
func TestPoliciesRefuse(t *testing.T) {
	for _, name := range []string{"belay-override", "belay-exec"} {
		if p := one(t, "ValidatingAdmissionPolicy", name); p.Text("spec", "failurePolicy") != "Fail" {
			t.Errorf("%s lets pass what it cannot judge", p)
		}
		b := one(t, "ValidatingAdmissionPolicyBinding", name)
		if b.Text("spec", "policyName") != name || !slices.Contains(b.Texts("spec", "validationActions"), "Deny") {
			t.Errorf("%s does not deny by %s", b, name)
		}
	}
}
