//go:build unix

package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/secretsource"
)

// standIn prints a secret as the documentation of each command line says, if it is called
// with the arguments for it, and otherwise what it got.
const standIn = `#!/bin/sh
case "$1 $*" in
"secretsmanager secretsmanager get-secret-value --secret-id orders-api --query SecretString --output text") echo s3cret ;;
"secrets secrets versions access latest --secret=orders-api --project=example") printf s3cret ;;
"keyvault keyvault secret show --vault-name example --name orders-api --query value --output tsv") echo s3cret ;;
"read read --no-newline op://services/orders-api/credential") printf s3cret ;;
*) echo "unknown arguments: $*"; exit 2 ;;
esac
`

// The documented commands work with stand-ins for the command lines.
func TestDocumentedCommandsPrintTheSecret(t *testing.T) {
	page, err := os.ReadFile("../../docs/secret-sources.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "### Examples")
	_, text, _ = strings.Cut(text, "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	documented, err := config.Parse("secret-sources.md", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(documented.Clients) != 4 {
		t.Errorf("%d examples", len(documented.Clients))
	}
	path := filepath.Join(t.TempDir(), "stand-in")
	if err := os.WriteFile(path, []byte(standIn), 0o700); err != nil {
		t.Fatal(err)
	}
	for name := range documented.Clients {
		e := documented.Clients[name].Secret.Exec
		reader := &secretsource.Exec{Command: append([]string{path}, e.Command[1:]...), Timeout: e.Timeout, Environment: e.Environment}
		if got, err := reader.Read(t.Context()); err != nil || got.Secret.Reveal() != "s3cret" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
