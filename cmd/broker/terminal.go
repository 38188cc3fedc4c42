package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cezzis/tokenbroker/internal/escape"
)

// onTerminal reports whether a stream is a terminal.
func onTerminal(stream any) bool {
	if w, ok := stream.(*escape.Writer); ok {
		stream = w.Unwrap()
	}
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// widthOf returns how many columns the lines of a stream may have: COLUMNS, or the width of
// the terminal. 0: any number.
func widthOf(stream any) int {
	if columns, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && columns > 0 {
		return columns
	}
	if w, ok := stream.(*escape.Writer); ok {
		stream = w.Unwrap()
	}
	if file, ok := stream.(*os.File); ok {
		if columns, _, err := term.GetSize(int(file.Fd())); err == nil {
			return columns
		}
	}
	return 0
}

// wrapped breaks a text into lines of at most width columns, each indented by so many
// spaces except the first. A word that is too long stays whole.
func wrapped(text string, indent, width int) string {
	var out strings.Builder
	column := indent
	for i, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case width > 0 && column+1+length > width:
			out.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += length
	}
	return out.String()
}

// cut shortens each line of a text to width columns; 0: it does not.
func cut(text string, width int) string {
	if width <= 0 {
		return text
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if runes := []rune(line); len(runes) > width {
			lines[i] = string(runes[:width-1]) + "…"
		}
	}
	return strings.Join(lines, "\n")
}

// confirm prompts a person at a terminal for confirmation; a script gets no prompt. The
// prompt uses the terminal itself, because standard input may be a secret.
func confirm(cmd *cobra.Command, yes bool, question string) error {
	if yes || !onTerminal(cmd.ErrOrStderr()) {
		return nil
	}
	confirmed, err := promptYesNo(question)
	if err == nil && !confirmed {
		err = errors.New("cancelled; nothing was changed")
	}
	return err
}

func promptYesNo(question string) (yes bool, err error) {
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false, fmt.Errorf("no terminal for the confirmation (%w): use --yes", err)
	}
	defer func() { _ = terminal.Close() }()
	if _, err := io.WriteString(terminal, question+" [y/N] "); err != nil {
		return false, err
	}
	answer, err := bufio.NewReader(terminal).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	default:
		return false, nil
	}
}

// readHidden reads a line from the terminal without showing it.
func readHidden(prompt string) ([]byte, error) {
	_, _ = fmt.Fprint(os.Stderr, prompt)
	line, err := term.ReadPassword(int(os.Stdin.Fd()))
	_, _ = fmt.Fprintln(os.Stderr)
	return line, err
}
