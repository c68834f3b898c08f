package house

import (
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// onlyDelete is the one place that deletes an object of a cluster: a pod, with its own grace period.
const onlyDelete = "pkg/kube/pods.go"

// TestNobodyDeletesAttachments: no code of the project can delete a VolumeAttachment or take a finalizer away. What reaches the API server is in pkg/kube
// alone (see Walls); there a single delete is written, of pods; every way around that is named below; and pkg/kube's guard, which every request passes, says
// the same again where the program runs, as the roles in the manifests do.
func TestNobodyDeletesAttachments(t *testing.T) {
	_, files := tree(t)
	deletes := 0
	for _, f := range files {
		if f.Test || within(f.Dir, "tests") || f.Dir == "pkg/kube/kubetest" {
			continue
		}
		cluster := slices.ContainsFunc(f.Imports(), under("k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io")) || within(f.Dir, "pkg/kube")
		ast.Inspect(f.AST, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if cluster && deleter(n.Sel.Name) {
					deletes++
					checkDelete(t, f, n)
				}
				if cluster && slices.Contains([]string{"SetFinalizers", "Finalizers", "Verb", "MethodDelete", "GracePeriodSeconds", "NewDeleteOptions"}, n.Sel.Name) && f.Path != "pkg/kube/guard.go" {
					t.Errorf("%s: %s has no place here: see pkg/kube/DESIGN.md", f.At(n), n.Sel.Name)
				}
			case *ast.BasicLit:
				checkWords(t, f, n, cluster)
			}
			return true
		})
	}
	if deletes != 1 {
		t.Errorf("%d deletes of objects, want the one of %s", deletes, onlyDelete)
	}
}

func deleter(name string) bool {
	return strings.HasPrefix(name, "Delete") && !slices.Contains([]string{"DeleteFunc", "DeleteOptions", "DeletedFinalStateUnknown"}, name)
}

// checkDelete sees that the delete is that of pods.
func checkDelete(t *testing.T, f File, n *ast.SelectorExpr) {
	t.Helper()
	if f.Path != onlyDelete {
		t.Errorf("%s deletes: objects of a cluster are deleted in %s, and nowhere else", f.At(n), onlyDelete)
	}
	pods := false
	ast.Inspect(f.AST, func(m ast.Node) bool {
		call, ok := m.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		sel, isSel := call.Fun.(*ast.SelectorExpr)
		lit, isLit := call.Args[0].(*ast.BasicLit)
		if isSel && sel.Sel.Name == "Resource" {
			pods = isLit && lit.Value == `"pods"`
		}
		return true
	})
	if !pods {
		t.Errorf("%s: only pods are deleted", f.At(n))
	}
}

// ways are what a command or a raw request to do it would look like.
var ways = regexp.MustCompile(`(?i)delete +(volumeattachments?|va)\b|volumeattachments?/finalizers|remove-?finalizers`)

func checkWords(t *testing.T, f File, lit *ast.BasicLit, cluster bool) {
	t.Helper()
	if lit.Kind != token.STRING {
		return
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		t.Fatalf("%s: %v", f.At(lit), err)
	}
	if ways.MatchString(s) || cluster && (strings.Contains(strings.ToLower(s), "finalizer") || s == "DELETE") {
		t.Errorf("%s: %s: attachments and their finalizers are Kubernetes' own", f.At(lit), lit.Value)
	}
}

// TestNoScriptDeletesAttachments: neither does what is shipped beside the program.
func TestNoScriptDeletesAttachments(t *testing.T) {
	root, _ := tree(t)
	seen := 0
	err := Walk(root, func(path string) error {
		if !strings.HasPrefix(path, "deploy/") && path != "Dockerfile" && path != "Makefile" || strings.HasSuffix(path, ".md") {
			return nil
		}
		seen++
		text, err := os.ReadFile(filepath.Join(root, path))
		if err == nil && ways.Match(text) {
			t.Errorf("%s deletes a VolumeAttachment or reaches for finalizers", path)
		}
		return err
	})
	if err != nil || seen < 5 {
		t.Errorf("%d files read: %v", seen, err)
	}
}
