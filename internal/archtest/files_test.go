package archtest_test

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each file that readers copy from or rely on is in the list of tested files.
func TestEachFileHasItsTest(t *testing.T) {
	page, err := os.ReadFile("../../docs/tested-files.md")
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	used := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .+ \\|$").FindAllStringSubmatch(string(page), -1) {
		patterns = append(patterns, row[1])
	}
	for _, dir := range []string{"docs", "deploy", "examples"} {
		err := fs.WalkDir(os.DirFS("../.."), dir, func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.Contains(file, "node_modules/") || strings.Contains(file, "__pycache__") {
				return err
			}
			if pattern := covering(patterns, file); pattern != "" {
				used[pattern] = true
			} else {
				t.Errorf("%s has no row", file)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, pattern := range patterns {
		if !used[pattern] {
			t.Errorf("the row %s is for no file", pattern)
		}
	}
}

// covering returns the longest pattern for the file or for a directory that contains it.
func covering(patterns []string, file string) (longest string) {
	for _, pattern := range patterns {
		for at := file; at != "."; at = path.Dir(at) {
			if ok, _ := filepath.Match(pattern, at); ok && len(pattern) > len(longest) {
				longest = pattern
			}
		}
	}
	return longest
}
