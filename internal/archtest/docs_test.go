package archtest_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The documentation names tests as evidence. A name that no test has is none.
func TestDocumentedTestsExist(t *testing.T) {
	there := tests(t)
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	least := map[string]int{"verification.md": 40, "threat-model.md": 90}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(string(text), -1)
		if want := least[filepath.Base(page)]; len(named) < want {
			t.Errorf("%s names only %d tests", page, len(named))
		}
		delete(least, filepath.Base(page))
		for _, name := range named {
			if !there[name[1]] {
				t.Errorf("%s names %s, which no test is called", page, name[1])
			}
		}
	}
	if len(least) > 0 {
		t.Errorf("there is no page %v", least)
	}
}

// A threat without a test that holds its mitigation is a promise.
func TestEachThreatHasATest(t *testing.T) {
	text, err := os.ReadFile("../../docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	_, threats, _ := strings.Cut(string(text), "\n## Threats")
	threats, _, _ = strings.Cut(threats, "\n## ")
	rows := 0
	for line := range strings.Lines(threats) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.Contains(line, "---") || strings.TrimSpace(cells[1]) == "threat" {
			continue
		}
		rows++
		if !strings.Contains(cells[3], "`Test") && !strings.Contains(cells[3], "`Fuzz") {
			t.Errorf("no test: %s", cells[1])
		}
	}
	if rows < 40 {
		t.Errorf("only %d threats", rows)
	}
}

// tests are the names of all tests.
func tests(t *testing.T) map[string]bool {
	t.Helper()
	there := map[string]bool{}
	functions := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, function := range functions.FindAllStringSubmatch(string(source), -1) {
			there[function[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// A link from one page to another leads somewhere, and to a heading that is there.
func TestDocumentedLinksExist(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md", "../../SECURITY.md")
	links := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(text), -1) {
			to, heading, _ := strings.Cut(link[1], "#")
			if strings.Contains(to, "://") {
				continue
			}
			links++
			target := page
			if to != "" {
				target = filepath.Join(filepath.Dir(page), to)
			}
			content, err := os.ReadFile(target)
			if info, statErr := os.Stat(target); statErr != nil || err != nil && !info.IsDir() {
				t.Errorf("%s: %s is not there", page, link[1])
				continue
			}
			if heading != "" && !headings(string(content))[heading] {
				t.Errorf("%s: %s has no such heading", page, link[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links", links)
	}
}

// headings are the anchors that GitHub makes of a page's headings, and those that the
// page has besides.
func headings(page string) map[string]bool {
	found := map[string]bool{}
	for _, anchor := range regexp.MustCompile(`<a id="([^"]+)"></a>`).FindAllStringSubmatch(page, -1) {
		found[anchor[1]] = true
	}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		anchor := strings.ToLower(strings.TrimSpace(heading[1]))
		anchor = regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(anchor, "")
		found[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return found
}

// Go code in the documentation is that of examples and tests, which are compiled
// and run.
func TestDocumentedGoCodeIsCompiled(t *testing.T) {
	var there strings.Builder
	for _, pattern := range []string{"../../client/example_test.go", "../../client/brokertest/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			there.WriteString(unindented(string(text)))
		}
	}
	blocks := 0
	for _, document := range []string{"README.md", "docs/client.md"} {
		text, err := os.ReadFile(filepath.Join("../..", document))
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			blocks++
			if !strings.Contains(there.String(), unindented(block[1])) {
				t.Errorf("%s shows code that no example has:\n%s", document, block[1])
			}
		}
	}
	if blocks < 5 {
		t.Errorf("only %d blocks were found", blocks)
	}
}

// unindented is text as it reads wherever it stands.
func unindented(text string) string {
	var lines strings.Builder
	for line := range strings.Lines(text) {
		lines.WriteString(strings.TrimSpace(line) + "\n")
	}
	return lines.String()
}
