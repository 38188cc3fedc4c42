package main

import (
	"io"
	"strings"
	"testing"
)

// A mistyped subcommand must not look like a success to a script.
func TestUnknownSubcommandIsAnError(t *testing.T) {
	for _, group := range []string{"policy", "revocations", "ring", "secret"} {
		root := newRoot()
		root.SetArgs([]string{group, "nosuch"})
		root.SetOut(io.Discard)
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), `unknown command "nosuch"`) {
			t.Errorf("%s nosuch: %v", group, err)
		}
		root = newRoot()
		root.SetArgs([]string{group})
		var help strings.Builder
		root.SetOut(&help)
		if err := root.Execute(); err != nil || !strings.Contains(help.String(), "Available Commands:") {
			t.Errorf("%s alone: %q, %v", group, help.String(), err)
		}
	}
}
