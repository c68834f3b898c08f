package house

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

func tree(t *testing.T) (root string, files []File) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err = Parse(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	return root, files
}

func TestImportsPointDown(t *testing.T) {
	_, files := tree(t)
	for _, f := range files {
		if f.Test || !strings.HasPrefix(f.Dir, "pkg/") {
			continue
		}
		allowed, known := Below[f.Dir]
		if !known {
			t.Errorf("%s: package %s has no place in the list Below of walls.go; give it one, with the reason", f.Path, f.Dir)
			continue
		}
		for _, imported := range f.Imports() {
			if rest, own := strings.CutPrefix(imported, module+"/"); own && !slices.Contains(allowed, rest) {
				t.Errorf("%s imports %s: imports point down, and %s may import only %v", f.Path, rest, f.Dir, allowed)
			}
		}
	}
}

func TestBelowHasNoCycle(t *testing.T) {
	state := map[string]int{}
	var visit func(dir string, trail []string)
	visit = func(dir string, trail []string) {
		if state[dir] == 1 {
			t.Fatalf("cycle: %v", append(trail, dir))
		}
		if state[dir] == 2 {
			return
		}
		state[dir] = 1
		for _, next := range Below[dir] {
			visit(next, append(trail, dir))
		}
		state[dir] = 2
	}
	for dir := range Below {
		visit(dir, nil)
	}
}

func TestWalls(t *testing.T) {
	_, files := tree(t)
	for _, f := range files {
		for _, imported := range f.Imports() {
			for _, w := range Walls {
				if w.what(imported) && !mayImport(f, w) {
					t.Errorf("%s imports %s: %s", f.Path, imported, w.reason)
				}
			}
		}
	}
}

func mayImport(f File, w wall) bool {
	if within(f.Dir, "tests") {
		return true
	}
	return slices.ContainsFunc(w.within, func(dir string) bool { return within(f.Dir, dir) })
}

func TestDecisionsArePure(t *testing.T) {
	_, files := tree(t)
	seen := 0
	for _, f := range files {
		if !Pure(f) {
			continue
		}
		seen++
		for _, imported := range f.Imports() {
			if impure(imported) {
				t.Errorf("%s imports %s: code that decides has no clock, goroutine, disk or network", f.Path, imported)
			}
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if concurrent(n) {
				t.Errorf("%s: code that decides has no goroutine or channel", f.At(n))
			}
			return true
		})
	}
	if seen == 0 {
		t.Error("no pure file found: the rule checks nothing")
	}
}

func concurrent(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt, *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
		return true
	case *ast.UnaryExpr:
		return n.Op == token.ARROW
	}
	return false
}
