package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// fuzzed is a package with fuzz targets.
type fuzzed struct {
	module  string
	path    string // to import it
	dir     string
	targets []string
}

// listed is what `go list -json` says of a package, as far as it is needed.
type listed struct {
	ImportPath, Dir           string
	Module                    struct{ Path string }
	TestGoFiles, XTestGoFiles []string
}

// find returns every package of the module in root with the targets whose name, after that of the package and a dot, is wanted. None is an error.
func find(ctx context.Context, root string, wanted *regexp.Regexp) (out []fuzzed, err error) {
	list := exec.CommandContext(ctx, "go", "list", "-json=ImportPath,Dir,Module,TestGoFiles,XTestGoFiles", "./...")
	list.Dir = root
	text, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	for decoder := json.NewDecoder(bytes.NewReader(text)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		f, err := targetsOf(p, wanted)
		if err != nil {
			return nil, err
		}
		if len(f.targets) > 0 {
			out = append(out, f)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no fuzz target is wanted")
	}
	return out, nil
}

func targetsOf(p listed, wanted *regexp.Regexp) (fuzzed, error) {
	f := fuzzed{module: p.Module.Path, path: p.ImportPath, dir: p.Dir}
	for _, name := range append(p.TestGoFiles, p.XTestGoFiles...) {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return f, err
		}
		for _, d := range file.Decls {
			if is, ok := d.(*ast.FuncDecl); ok && is.Recv == nil && strings.HasPrefix(is.Name.Name, "Fuzz") && wanted.MatchString(p.ImportPath+"."+is.Name.Name) {
				f.targets = append(f.targets, is.Name.Name)
			}
		}
	}
	return f, nil
}
