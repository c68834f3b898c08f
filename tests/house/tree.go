// Package house holds the rules of this tree as plain tests: which package may know which, and what every file keeps to.
package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const module = "github.com/belay-storage/belay"

// File is one Go file of the tree.
type File struct {
	Path  string // below the root, with slashes
	Dir   string // its package's directory, below the root
	Test  bool   // compiled for tests only
	Text  []byte
	AST   *ast.File
	Lines int
	fset  *token.FileSet
}

// Imports lists what the file imports.
func (f File) Imports() []string {
	out := make([]string, 0, len(f.AST.Imports))
	for _, spec := range f.AST.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil {
			out = append(out, path)
		}
	}
	return out
}

// At says where n is, for a message.
func (f File) At(n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.Path, f.fset.Position(n.Pos()).Line)
}

// Root returns the directory of go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return "", fmt.Errorf("no go.mod above %s", dir)
	}
}

// skipped are directories that are not part of the tree: made by make, or Git's own.
var skipped = map[string]bool{".git": true, "bin": true, "out": true}

// Walk calls visit for every file of the tree with its path below root.
func Walk(root string, visit func(path string) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipped[rel] {
				return filepath.SkipDir
			}
			return nil
		}
		return visit(filepath.ToSlash(rel))
	})
}

// Parse reads every Go file of the tree. What is under testdata is not part of it.
func Parse(root string) ([]File, error) {
	var files []File
	err := Walk(root, func(path string) error {
		if !strings.HasSuffix(path, ".go") || strings.Contains(path, "testdata/") {
			return nil
		}
		f, err := parse(root, path)
		if err == nil {
			files = append(files, f)
		}
		return err
	})
	return files, err
}

func parse(root, path string) (File, error) {
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		return File{}, err
	}
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return File{}, err
	}
	return File{
		Path: path, Dir: filepath.ToSlash(filepath.Dir(path)), Test: strings.HasSuffix(path, "_test.go"),
		Text: text, AST: tree, Lines: strings.Count(string(text), "\n"), fset: fset,
	}, nil
}
