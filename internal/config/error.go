package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Problem is one problem of a configuration file. It never repeats a value of the file: a
// misplaced value may be a secret.
type Problem struct {
	File string
	// Line counts from 1; 0 where the file could not be read at all.
	Line int
	// Message is a sentence that begins with the key and describes the fix.
	Message string
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Message
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
}

// Error has all problems of a configuration file, by line.
type Error struct{ Problems []Problem }

// Error has a line for each problem: FILE:LINE: sentence.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// findings are the results of reading a file other than its values.
type findings struct {
	file string
	// lines has the line of each key and each list item, by path. A key that was not
	// given is absent.
	lines    map[string]int
	problems []Problem
	warnings []Problem
}

func (f *findings) addf(line int, format string, args ...any) {
	f.problems = append(f.problems, Problem{f.file, max(line, 1), fmt.Sprintf(format, args...)})
}

// addAtf adds a problem of the key at path, on the key's line.
func (f *findings) addAtf(path, format string, args ...any) {
	f.addf(f.lines[path], "%s: "+format, append([]any{path}, args...)...)
}

// warnf and warnAt are addf and addAtf for valid values that are probably a mistake.
func (f *findings) warnf(line int, format string, args ...any) {
	f.warnings = append(f.warnings, Problem{f.file, max(line, 1), fmt.Sprintf(format, args...)})
}

func (f *findings) warnAt(path, message string) {
	f.warnf(f.lines[path], "%s: %s", path, message)
}

func (f *findings) given(path string) bool { return f.lines[path] > 0 }

func (f *findings) err() error {
	slices.SortStableFunc(f.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Message, b.Message))
	})
	return &Error{f.problems}
}

// join returns the path of a key. A name with a dot is quoted, so that paths stay unique.
func join(path, key string) string {
	if strings.Contains(key, ".") {
		key = `"` + key + `"`
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// item returns the path of a list item, counted from 0.
func item(path string, index int) string { return path + "[" + strconv.Itoa(index) + "]" }
