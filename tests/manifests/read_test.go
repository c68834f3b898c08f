package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "../../deploy/kubernetes"

// rendered are the directories whose files come from the chart.
var rendered = []string{"base", "overlays/cert-manager", "components/restart-on-device-loss", "components/fence-expired-leases"}

// everything returns the objects of all rendered files.
func everything(t *testing.T) []Object {
	t.Helper()
	var all []Object
	for _, dir := range rendered {
		objects, err := Read(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, objects...)
	}
	if len(all) < 30 {
		t.Fatalf("only %d objects: are the manifests still where they were?", len(all))
	}
	return all
}

// one returns the object of that kind and name.
func one(t *testing.T, kind, name string) Object {
	t.Helper()
	for _, o := range everything(t) {
		if o.Kind() == kind && o.Name() == name {
			return o
		}
	}
	t.Fatalf("no %s %s", kind, name)
	return nil
}

// named returns the element of that name of a list.
func named(t *testing.T, list []Object, name string) Object {
	t.Helper()
	i := slices.IndexFunc(list, func(o Object) bool { return o.Text("name") == name })
	if i < 0 {
		t.Fatalf("nothing called %s", name)
	}
	return list[i]
}

// TestBaseListsItsFiles: kustomize takes what its list names, so a file that is rendered and not listed would be left out in silence.
func TestBaseListsItsFiles(t *testing.T) {
	k, err := ReadFile(filepath.Join(root, "base", "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "base", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range files {
		if base := filepath.Base(f); base != "kustomization.yaml" {
			want = append(want, base)
		}
	}
	if got := k[0].Texts("resources"); !slices.Equal(got, want) {
		t.Errorf("kustomization.yaml lists\n%v\nand there are\n%v", got, want)
	}
}

// TestNoObjectTwice: the second would win, or be refused, depending on who applies it.
func TestNoObjectTwice(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range everything(t) {
		if o.Kind() == "" || o.Name() == "" {
			t.Errorf("an object without kind or name: %v", o)
		}
		key := o.String() + " in " + o.Text("metadata", "namespace")
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
	}
}

// TestStoresAreNamedOnce: the mirror overlay names each store three times, and a difference is a store that engines cannot open.
func TestStoresAreNamedOnce(t *testing.T) {
	mounts, args := patches(t, "stores.yaml"), patches(t, "stores-args.yaml")
	var volumes, mounted, told []string
	for _, p := range mounts {
		if strings.HasSuffix(p.Text("path"), "/volumes/-") {
			volumes = append(volumes, p.Text("value", "name")+" "+p.Text("value", "hostPath", "path"))
			continue
		}
		mounted = append(mounted, p.Text("value", "name")+" "+p.Text("value", "mountPath"))
		if p.Text("value", "mountPropagation") != "HostToContainer" {
			t.Errorf("%s: a disk that is mounted after the pod started would not be seen", p.Text("value", "mountPath"))
		}
	}
	for i, p := range args {
		told = append(told, mounts[2*i].Text("value", "name")+" "+strings.TrimPrefix(p.Text("value"), "--store="))
	}
	if len(volumes) == 0 || !slices.Equal(volumes, mounted) || !slices.Equal(volumes, told) {
		t.Errorf("stores differ:\nvolumes %v\nmounts  %v\nargs    %v", volumes, mounted, told)
	}
}

// patches returns the operations of a JSON patch of the mirror overlay.
func patches(t *testing.T, name string) []Object {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "overlays", "mirror", name))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), name)
	list := "list:\n  " + strings.ReplaceAll(string(text), "\n", "\n  ")
	if err := os.WriteFile(file, []byte(strings.TrimRight(list, " ")), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, err := ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return objects[0].Objects("list")
}
