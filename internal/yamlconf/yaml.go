package yamlconf

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

const noAliases = "anchors (&) and aliases (*) are not read: write the value out, or put a text that begins so in quotes"

// MaxSize is the maximum size of a file, in bytes. 10,000 entries need about 3 MiB.
const MaxSize = 16 << 20

// parse returns the file's single mapping. If it returns nil, it has added a problem.
func (d *decoder) parse(data []byte) *yaml.Node {
	if !d.isText(data) {
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		d.addLinef(1, "the file cannot be parsed as YAML")
		return nil
	}
	var document, second yaml.Node
	switch err := loader.Load(&document); {
	case errors.Is(err, io.EOF):
		d.addLinef(1, "the file is empty: %s", d.Empty)
		return nil
	case err != nil:
		d.addSyntax(err, data)
		return nil
	}
	switch err := loader.Load(&second); {
	case err == nil:
		d.addLinef(second.Line, "a second document begins here: the configuration is one document, without --- inside")
		return nil
	case !errors.Is(err, io.EOF):
		d.addSyntax(err, data)
		return nil
	}
	return d.rootMapping(&document)
}

func (d *decoder) rootMapping(document *yaml.Node) *yaml.Node {
	root := document
	if document.Kind == yaml.DocumentNode && len(document.Content) == 1 {
		root = document.Content[0]
	}
	switch {
	case root.Kind == yaml.MappingNode:
		return root
	case root.Tag == "!!null":
		d.addLinef(root.Line, "the file is empty: %s", d.Empty)
	default:
		d.addLinef(root.Line, "the file is expected to be %s, and is %s", d.Root, kindOf(root))
	}
	return nil
}

// isText reports content that the parser would reject without a line number.
func (d *decoder) isText(data []byte) bool {
	if len(data) > MaxSize {
		d.addLinef(1, "the file is larger than %d MiB: is it the configuration?", MaxSize>>20)
		return false
	}
	line := 1
	for rest := data; len(rest) > 0; {
		char, size := utf8.DecodeRune(rest)
		switch {
		case char == utf8.RuneError && size == 1:
			d.addLinef(line, "the text is not UTF-8 here: save the file as UTF-8")
			return false
		case char == '\n':
			line++
		case unicode.IsControl(char) && char != '\t' && char != '\r' && char != '\u0085':
			d.addLinef(line, `a control character: remove it, or write it as \x.. in double quotes`)
			return false
		}
		rest = rest[size:]
	}
	return true
}

// addSyntax reports an error of the parser in our own words: the parser's message may
// repeat content of the file.
func (d *decoder) addSyntax(err error, data []byte) {
	const fallback = "not valid YAML: check the indentation, quotes and brackets here and in the line before"
	syntax, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		d.addLinef(1, fallback)
		return
	}
	sentence := fallback
	for _, s := range syntaxSentences {
		if strings.HasPrefix(syntax.Message, s.prefix) {
			sentence = s.sentence
			break
		}
	}
	line := syntax.Mark.Line
	switch {
	case sentence == badStart && startsWithTab(data, syntax.Mark):
		sentence = tabs
	case sentence == notClosed && syntax.ContextMark.Line > 0:
		line = syntax.ContextMark.Line
	}
	d.addLinef(line, "%s", sentence)
}

const (
	tabs      = "a tab: indent with spaces"
	badStart  = "a text that begins with one of @ ` % | > must be in quotes"
	notClosed = "the quote or bracket that opens here is not closed as expected: close it, or check the commas inside"
)

// syntaxSentences maps the parser's messages to our own.
//
//nolint:gochecknoglobals // a table that nothing writes
var syntaxSentences = []struct{ prefix, sentence string }{
	{"found character that cannot start any token", badStart},
	{"found a tab character", tabs},
	{"found mixed spaces and tabs", tabs},
	{"mapping values are not allowed", `a colon makes a key here, where no key is possible: check the indentation, or put the text in quotes`},
	{"mapping keys are not allowed", "a key may not stand here: check the indentation"},
	{"block sequence entries are not allowed", "an item (-) may not stand here: begin the list in a line of its own, or check the indentation"},
	{"did not find expected ',' or", notClosed},
	{"found unexpected end of stream", notClosed},
	{"could not find expected ':'", "a key and its value are expected: is the colon missing, or the space after it?"},
	{"did not find expected key", "a key is expected: check the indentation, and the quotes in the line before"},
	{"did not find expected '-' indicator", "an item (-) of the list is expected: check the indentation"},
	{"found unknown escape character", `a backslash in double quotes begins an escape: double it, or use single quotes`},
	{"unknown anchor", noAliases},
	{"exceeded max depth", "nested too deeply"},
}

func startsWithTab(data []byte, mark yaml.Mark) bool {
	lines := bytes.SplitAfterN(data, []byte("\n"), mark.Line+1)
	if mark.Line < 1 || mark.Line > len(lines) {
		return false
	}
	line := lines[mark.Line-1]
	indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
	return bytes.ContainsRune(indent, '\t')
}

// kindOf names the kind of a node, for messages.
func kindOf(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	case n.Tag == "!!bool":
		return "true or false"
	case n.Tag == "!!int" || n.Tag == "!!float":
		return "a number"
	default:
		return "text"
	}
}
