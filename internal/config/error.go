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

// sortProblems sorts by line.
func sortProblems(problems []Problem) {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Message, b.Message))
	})
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

// at returns a problem of the key at path, on the key's line. The empty path stands for the file.
func (f *findings) at(path, format string, args ...any) Problem {
	message := fmt.Sprintf(format, args...)
	if path != "" {
		message = path + ": " + message
	}
	return Problem{f.file, max(f.lines[path], 1), message}
}

// addf adds a problem of the key at path.
func (f *findings) addf(path, format string, args ...any) {
	f.problems = append(f.problems, f.at(path, format, args...))
}

// addLinef adds a problem that is not on the line of a key.
func (f *findings) addLinef(line int, format string, args ...any) {
	f.problems = append(f.problems, Problem{f.file, max(line, 1), fmt.Sprintf(format, args...)})
}

// warn is addf for valid values that are probably a mistake.
func (f *findings) warn(path, message string) {
	f.warnings = append(f.warnings, f.at(path, "%s", message))
}

// given reports whether the file has the key at path.
func (f *findings) given(path string) bool { return f.lines[path] > 0 }

// line returns the line of the key at path.
func (f *findings) line(path string) int { return f.lines[path] }

// err returns all problems as an [*Error]; nil if there is no problem.
func (f *findings) err() error {
	if len(f.problems) == 0 {
		return nil
	}
	sortProblems(f.problems)
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
