package secret_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	testkit.WriteFile(t, path, content)
}

func open(t *testing.T, ref string) (*secret.Source, error) {
	t.Helper()
	parsed, err := secret.ParseRef(ref)
	if err != nil {
		t.Fatal(err)
	}
	return secret.Open(parsed)
}

func TestParseRefRefusesLiteralsWithoutRepeatingThem(t *testing.T) {
	for _, bad := range []string{"", "hunter2", "file:", "env:", "vault:x", "hunter2:file", "managed:x", "Managed"} {
		_, err := secret.ParseRef(bad)
		if err == nil {
			t.Errorf("ParseRef(%q) was accepted", bad)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message repeats what may be the secret: %v", err)
		}
	}
}

func TestRefReadsAsItIsWritten(t *testing.T) {
	for _, text := range []string{"file:/run/secrets/x", "env:X", "managed"} {
		ref, err := secret.ParseRef(text)
		if err != nil || ref.String() != text || ref.Managed() != (text == "managed") {
			t.Errorf("%s: %v, %v", text, ref, err)
		}
	}
}

func TestManagedSecretsHaveNoSource(t *testing.T) {
	if _, err := open(t, "managed"); err == nil || !strings.Contains(err.Error(), "clients only") {
		t.Errorf("opened a managed secret: %v", err)
	}
	if _, err := secret.Open(secret.Ref{}); err == nil {
		t.Error("opened what no reference names")
	}
}

func TestVersionIsNamedByItsValueAndTheKey(t *testing.T) {
	mac, other := secret.NewMAC(), secret.NewMAC()
	id := secret.NewVersion(mac, redact.New("one")).ID
	switch {
	case len(id) != 8:
		t.Errorf("ID %q", id)
	case secret.NewVersion(mac, redact.New("one")).ID != id:
		t.Error("the same value has two names")
	case secret.NewVersion(mac, redact.New("two")).ID == id:
		t.Error("two values have one name")
	case secret.NewVersion(other, redact.New("one")).ID == id:
		t.Error("the name does not depend on the key: it could be guessed from")
	}
}

func TestVersionsAndHistoriesDoNotPrintTheirValues(t *testing.T) {
	t.Setenv("TOKENBROKER_TEST_SECRET", "canary-secret")
	source, err := open(t, "env:TOKENBROKER_TEST_SECRET")
	if err != nil {
		t.Fatal(err)
	}
	h, err := secret.History{}.Stage(source.Current(), "test", now)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %v %+v %#v", source, source.Current(), source.Versions(), h, h.Versions, h)
	if strings.Contains(out, "canary-secret") {
		t.Errorf("printed: %s", out)
	}
}
