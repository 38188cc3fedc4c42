package client_test

import (
	"flag"
	"go/ast"
	"go/build"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the exported API to testdata/api.txt")

// The exported API is in a file, so that each change of it is deliberate.
func TestExportedAPIMatchesFile(t *testing.T) {
	var listing strings.Builder
	for _, dir := range []string{".", "brokertest"} {
		listing.WriteString(exported(t, dir))
	}
	const path = "testdata/api.txt"
	if *update {
		write(t, path, listing.String())
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), listing.String()); diff != "" {
		t.Errorf("the exported API changed (-file +code). If the change is intended: go test ./client -run Exported -update\n%s", diff)
	}
	if n := strings.Count(listing.String(), "\n"); n < 120 {
		t.Errorf("the API has only %d lines", n)
	}
}

// exported lists the exported declarations of a package, without their comments
// and bodies.
func exported(t *testing.T, dir string) string {
	t.Helper()
	pkg, err := build.ImportDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	files := token.NewFileSet()
	var texts []string
	for _, name := range pkg.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if !ast.FileExports(file) {
			continue
		}
		for _, declared := range file.Decls {
			if imports, ok := declared.(*ast.GenDecl); ok && imports.Tok == token.IMPORT || !reachable(declared) {
				continue
			}
			if function, ok := declared.(*ast.FuncDecl); ok {
				function.Body = nil
			}
			var text strings.Builder
			if err := format.Node(&text, files, declared); err != nil {
				t.Fatal(err)
			}
			texts = append(texts, text.String()+"\n")
		}
	}
	slices.Sort(texts)
	return "package " + pkg.Name + "\n\n" + strings.Join(texts, "") + "\n"
}

// reachable reports whether a declaration is not a method of an unexported type.
func reachable(declared ast.Decl) bool {
	method, ok := declared.(*ast.FuncDecl)
	if !ok || method.Recv == nil {
		return true
	}
	receiver := method.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	name, ok := receiver.(*ast.Ident)
	return !ok || name.IsExported()
}
