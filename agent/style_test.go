package main_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The sizes that a reader can hold in the head.
const (
	maxFileLines = 500
	maxFuncLines = 70
	maxMethods   = 6
)

// exceptions are the places that are larger than the rules say, each with the reason. The
// key is a file, or "file:function", or "file:interface", from the root of the repository.
var exceptions = map[string]string{}

// schemaFunc names functions whose body is one long literal: a schema is a table, and
// cutting it in parts hides what belongs together.
var schemaFunc = regexp.MustCompile(`(?i)(schema|attributes)$`)

// source is one Go file that people wrote.
type source struct {
	path string // from the root of the repository
	text []byte
	set  *token.FileSet
	file *ast.File
}

// sources are all of them, for every OS and tag.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk(t, func(path string) {
		if !strings.HasSuffix(path, ".go") || generated(t, filepath.Join("..", path)) {
			return
		}
		text, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, source{path, text, set, file})
	})
	return all
}

// walk visits every file of the repository that is not built or kept by Git.
func walk(t *testing.T, visit func(path string)) {
	t.Helper()
	skip := []string{".git", ".testbed", ".terraform", ".cache", "bin", "dist"}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skip, d.Name()) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() {
			visit(strings.TrimPrefix(path, "../"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var generatedMark = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

func generated(t *testing.T, path string) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return generatedMark.Match(text[:min(len(text), 2000)])
}

func (s source) isTest() bool { return strings.HasSuffix(s.path, "_test.go") }

func (s source) line(p token.Pos) int { return s.set.Position(p).Line }

// tooLarge reports a size over its limit, unless there is an exception for the place.
func tooLarge(t *testing.T, place, what string, size, limit int, advice string) {
	t.Helper()
	if size > limit && exceptions[place] == "" {
		t.Errorf("%s has %d %s, %d are allowed: %s", place, size, what, limit, advice)
	}
}

func TestRuleSizes(t *testing.T) {
	for _, s := range sources(t) {
		tooLarge(t, s.path, "lines", bytes.Count(s.text, []byte("\n")), maxFileLines, "a file is one job: give the second one its own file")
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || schemaFunc.MatchString(f.Name.Name) || s.isTest() {
				continue // a test's table may be long
			}
			tooLarge(t, s.path+":"+f.Name.Name, "lines", s.line(f.End())-s.line(f.Pos())+1, maxFuncLines, "decide in one function, do in others")
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.TypeSpec); ok {
				if i, ok := spec.Type.(*ast.InterfaceType); ok {
					tooLarge(t, s.path+":"+spec.Name.Name, "methods", i.Methods.NumFields(), maxMethods, "an interface is what one consumer needs")
				}
			}
			return true
		})
	}
}

func TestRuleNoSkippedTests(t *testing.T) {
	for _, s := range sources(t) {
		if !s.isTest() {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, f.Sel.Name) {
					t.Errorf("%s:%d: calls %s: a skipped test proves nothing; use a build tag, and let make deps install what is missing", s.path, s.line(n.Pos()), f.Sel.Name)
				}
			}
			return true
		})
	}
}

// A sleep in a loop polls. Outside of one it hopes that something has happened by then,
// which on a loaded machine it has not; with testing/synctest it costs nothing.
func TestRuleNoHopefulSleeps(t *testing.T) {
	for _, s := range sources(t) {
		if !s.isTest() || imports(s.file, "testing/synctest") {
			continue
		}
		var loops []ast.Node
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n.(type) {
			case *ast.ForStmt, *ast.RangeStmt:
				loops = append(loops, n)
			}
			return true
		})
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !isSleep(call) {
				return true
			}
			if !slices.ContainsFunc(loops, func(l ast.Node) bool { return l.Pos() <= n.Pos() && n.End() <= l.End() }) {
				t.Errorf("%s:%d: sleeps and hopes: poll in a loop with a deadline, or use testing/synctest", s.path, s.line(n.Pos()))
			}
			return true
		})
	}
}

func isSleep(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != "Sleep" {
		return false
	}
	x, ok := f.X.(*ast.Ident)
	return ok && x.Name == "time"
}

func imports(f *ast.File, path string) bool {
	return slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"`+path+`"` })
}

// Tests that need root are run with the tag, so their files must have both the tag and the
// name by which people find them.
func TestRuleRootTestsAreNamedSo(t *testing.T) {
	tag := regexp.MustCompile(`(?m)^//go:build .*\broot\b`)
	for _, s := range sources(t) {
		if named, tagged := strings.HasSuffix(s.path, "_root_test.go"), tag.Match(s.text); named && !tagged {
			t.Errorf("%s lacks its first line `//go:build linux && root`", s.path)
		}
	}
}

// What somebody's machine calls its folders is of no use to others.
func TestRuleNoPathsOfThisMachine(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	walk(t, func(path string) {
		text, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(text, []byte(root)) {
			t.Errorf("%s names %s: write paths from the root of the repository", path, root)
		}
	})
}

func TestRuleExceptionsAreNeeded(t *testing.T) {
	for place, reason := range exceptions {
		path, _, _ := strings.Cut(place, ":")
		if _, err := os.Stat(filepath.Join("..", path)); err != nil || reason == "" {
			t.Errorf("the exception for %s is for nothing or says no reason: remove it", place)
		}
	}
}
