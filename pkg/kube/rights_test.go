package kube

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// verbs are what the methods of the guard's table are called in a role.
var verbs = map[string]string{"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

// TestTheManifestsGrantWhatTheGuardLetsThrough: the roles of `belay controller` itself, those of the optional parts too, grant these writes and no other.
func TestTheManifestsGrantWhatTheGuardLetsThrough(t *testing.T) {
	want := map[string]bool{}
	for _, w := range writes {
		want[verbs[w.method]+" "+w.resource+" of "+w.group] = true
	}
	got := granted(t)
	for _, right := range slices.Sorted(maps.Keys(want)) {
		if !got[right] {
			t.Errorf("the guard lets through what no role grants: %s", right)
		}
	}
	for _, right := range slices.Sorted(maps.Keys(got)) {
		if !want[right] {
			t.Errorf("a role grants what the guard never lets through: %s", right)
		}
	}
}

// granted are the rights to write that the manifests give to this package.
func granted(t *testing.T) map[string]bool {
	t.Helper()
	root := filepath.Join("..", "..", "deploy", "kubernetes")
	files := slices.Concat(must(filepath.Glob(filepath.Join(root, "base", "*.yaml"))), must(filepath.Glob(filepath.Join(root, "components", "*", "*.yaml"))))
	out := map[string]bool{}
	for _, f := range files {
		for _, document := range strings.Split(string(must(os.ReadFile(f))), "\n---\n") {
			var role struct {
				Kind     string
				Metadata struct{ Name string }
				Rules    []struct{ APIGroups, Resources, Verbs []string }
			}
			if err := yaml.Unmarshal([]byte(document), &role); err != nil || !strings.HasSuffix(role.Kind, "Role") || !ownRole(role.Metadata.Name) {
				continue // what is no role of ours
			}
			for _, r := range role.Rules {
				for _, verb := range r.Verbs {
					if slices.Contains([]string{"get", "list", "watch"}, verb) {
						continue
					}
					for _, resource := range r.Resources {
						if resource == "csistoragecapacities" {
							continue // external-provisioner's, which has the same service account
						}
						for _, group := range r.APIGroups {
							out[verb+" "+resource+" of "+group] = true
						}
					}
				}
			}
		}
	}
	return out
}

func ownRole(name string) bool {
	return strings.HasPrefix(name, "belay-controller") || name == "belay-certificates"
}
