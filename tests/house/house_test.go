package house

import (
	"bytes"
	"go/ast"
	"go/format"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// topLevel is what the tree's root holds: required entries are true.
var topLevel = map[string]bool{
	"cmd": true, "pkg": true, "deploy": true, "tests": true, "Dockerfile": true, "go.mod": true, "go.sum": true,
	"Makefile": true, "CHANGELOG.md": true, "README.md": true, "DESIGN.md": true, "LICENSE": true,
	".ci": true, ".golangci.yml": true, ".gitignore": true,
	".git": false, "bin": false, "out": false,
}

// linesMax is the longest a file may be before the name of the missing piece must be found. Tests are free.
const linesMax = 400

// longer are the files that may be longer, with the reason.
var longer = map[string]string{}

// functionMedianMax is the length in lines that half of all functions stay under.
const functionMedianMax = 15

func TestTopLevelIsWhatItShouldBe(t *testing.T) {
	root, _ := tree(t)
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, e := range entries {
		found[e.Name()] = true
		if _, allowed := topLevel[e.Name()]; !allowed {
			t.Errorf("%s does not belong at the top level", e.Name())
		}
	}
	for name, required := range topLevel {
		if required && !found[name] {
			t.Errorf("%s is missing at the top level", name)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	_, files := tree(t)
	docs := map[string][]string{}
	for _, f := range files {
		if f.Test {
			continue
		}
		docs[f.Dir] = append(docs[f.Dir], "")
		if f.AST.Doc != nil {
			docs[f.Dir][len(docs[f.Dir])-1] = f.AST.Doc.Text()
		}
	}
	for dir, texts := range docs {
		texts = slices.DeleteFunc(texts, func(s string) bool { return s == "" })
		if len(texts) != 1 {
			t.Errorf("%s: %d files open with a package comment, want one", dir, len(texts))
			continue
		}
		first, _, _ := strings.Cut(texts[0], "\n\n")
		first = strings.TrimSpace(first)
		if !regexp.MustCompile(`^(Package|Command) \w+ .{15,}`).MatchString(strings.ReplaceAll(first, "\n", " ")) || !strings.HasSuffix(first, ".") && !strings.HasSuffix(first, ":") {
			t.Errorf("%s: the package comment opens with %q, want a sentence that says what it is for", dir, first)
		}
	}
}

func TestEveryExportedThingHasItsContract(t *testing.T) {
	_, files := tree(t)
	for _, f := range files {
		if f.Test || !strings.HasPrefix(f.Dir, "pkg/") {
			continue
		}
		for _, d := range f.AST.Decls {
			for _, bare := range undocumented(d) {
				t.Errorf("%s: %s is exported and says nothing of what it promises", f.At(d), bare)
			}
		}
	}
}

// obvious are methods whose contract is that of a standard interface.
var obvious = []string{"Error", "String", "Unwrap", "Is", "Len", "Less", "Swap", "MarshalText", "UnmarshalText", "MarshalJSON", "UnmarshalJSON"}

func undocumented(d ast.Decl) (bare []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && !slices.Contains(obvious, d.Name.Name) {
			bare = append(bare, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			bare = append(bare, undocumentedSpec(d, s)...)
		}
	}
	return bare
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	exported := false
	ast.Inspect(d.Recv.List[0].Type, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			exported = exported || id.IsExported()
			return false
		}
		return true
	})
	return exported
}

func undocumentedSpec(d *ast.GenDecl, s ast.Spec) (bare []string) {
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
			bare = append(bare, s.Name.Name)
		}
	case *ast.ValueSpec:
		for _, name := range s.Names {
			if name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
				bare = append(bare, name.Name)
			}
		}
	}
	return bare
}

func TestFilesAndFunctionsStayShort(t *testing.T) {
	_, files := tree(t)
	var lengths []int
	for _, f := range files {
		if f.Test || within(f.Dir, "tests") {
			continue
		}
		if f.Lines > linesMax && longer[f.Path] == "" {
			t.Errorf("%s has %d lines, at most %d: look for the name of the missing piece", f.Path, f.Lines, linesMax)
		}
		for _, d := range f.AST.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
				lengths = append(lengths, f.fset.Position(fn.End()).Line-f.fset.Position(fn.Pos()).Line+1)
			}
		}
	}
	slices.Sort(lengths)
	if median := lengths[len(lengths)/2]; median >= functionMedianMax {
		t.Errorf("half of the functions have %d lines or more, want under %d", median, functionMedianMax)
	}
}

// TestNoGlobalLogger: a logger is passed in, so that what it says carries its volume and goes where cmd decided.
func TestNoGlobalLogger(t *testing.T) {
	_, files := tree(t)
	global := []string{"Debug", "Info", "Warn", "Error", "Log", "LogAttrs", "DebugContext", "InfoContext", "WarnContext", "ErrorContext", "Default", "SetDefault", "With"}
	for _, f := range files {
		if f.Test || within(f.Dir, "tests") {
			continue
		}
		if slices.Contains(f.Imports(), "log") {
			t.Errorf("%s imports log: a *slog.Logger is passed in", f.Path)
		}
		ast.Inspect(f.AST, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(global, sel.Sel.Name) {
				if id, ok := sel.X.(*ast.Ident); ok && id.Name == "slog" {
					t.Errorf("%s: slog.%s is the global logger; one is passed in", f.At(sel), sel.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestFormatted(t *testing.T) {
	_, files := tree(t)
	for _, f := range files {
		formatted, err := format.Source(f.Text)
		if err != nil {
			t.Errorf("%s: %v", f.Path, err)
		} else if !bytes.Equal(formatted, f.Text) {
			t.Errorf("%s is not as gofmt writes it", f.Path)
		}
	}
}

// TestNothingOfTheWorkplace: the tree stands alone; no path or host of the place where it was written is in it.
func TestNothingOfTheWorkplace(t *testing.T) {
	root, _ := tree(t)
	bad := []*regexp.Regexp{
		regexp.MustCompile(`(^|[^\w.-])/wo` + `rk/`),
		regexp.MustCompile(`\.\./shar` + `ed\b`),
		regexp.MustCompile(`/root/\.`),
	}
	for _, host := range registryHosts(t, root) {
		bad = append(bad, regexp.MustCompile(regexp.QuoteMeta(host)))
	}
	err := Walk(root, func(path string) error {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, re := range bad {
				if re.MatchString(line) {
					t.Errorf("%s:%d names a place of the workplace (%s)", path, i+1, re)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// registryHosts are the module proxies that this machine uses, but for the public one.
func registryHosts(t *testing.T, root string) (hosts []string) {
	t.Helper()
	cmd := exec.Command("go", "env", "GOPROXY")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	for _, proxy := range strings.FieldsFunc(strings.TrimSpace(string(out)), func(r rune) bool { return r == ',' || r == '|' }) {
		if u, err := url.Parse(proxy); err == nil && u.Host != "" && u.Host != "proxy.golang.org" {
			hosts = append(hosts, u.Host)
		}
	}
	return hosts
}
