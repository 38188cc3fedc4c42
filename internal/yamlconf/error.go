package yamlconf

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

// Sort sorts by line.
func Sort(problems []Problem) {
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

// Findings are the results of reading a file other than its values. The empty path stands
// for the whole file.
type Findings struct {
	file     string
	lines    map[string]int // of each key and list item in the file, by path
	problems []Problem
	// Warnings report valid values that are probably a mistake.
	Warnings []Problem
}

// At returns a problem of the key at path, on the key's line.
func (f *Findings) At(path, format string, args ...any) Problem {
	message := fmt.Sprintf(format, args...)
	if path != "" {
		message = path + ": " + message
	}
	return Problem{f.file, max(f.lines[path], 1), message}
}

// Addf adds a problem of the key at path.
func (f *Findings) Addf(path, format string, args ...any) {
	f.problems = append(f.problems, f.At(path, format, args...))
}

// addLinef adds a problem that is not on the line of a key.
func (f *Findings) addLinef(line int, format string, args ...any) {
	f.problems = append(f.problems, Problem{f.file, max(line, 1), fmt.Sprintf(format, args...)})
}

// Warn adds a warning about the key at path.
func (f *Findings) Warn(path, message string) {
	f.Warnings = append(f.Warnings, f.At(path, "%s", message))
}

// Given reports whether the file has a key or list item at path.
func (f *Findings) Given(path string) bool { return f.lines[path] > 0 }

// Line returns the line of the key at path, or 0.
func (f *Findings) Line(path string) int { return f.lines[path] }

// Err returns all problems as an [*Error], or nil if there are none.
func (f *Findings) Err() error {
	if len(f.problems) == 0 {
		return nil
	}
	Sort(f.problems)
	return &Error{f.problems}
}

// Join returns the path of a key. A name with a dot is quoted, so that paths stay unique.
func Join(path, key string) string {
	if strings.Contains(key, ".") {
		key = `"` + key + `"`
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

// Item returns the path of a list item, counted from 0.
func Item(path string, index int) string { return path + "[" + strconv.Itoa(index) + "]" }
