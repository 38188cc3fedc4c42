package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

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
