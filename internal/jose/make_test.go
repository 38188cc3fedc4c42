package jose_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// A key that was made signs assertions that verify with its published part, and the
// published part contains nothing of the private one.
func TestMakeSigningKey(t *testing.T) {
	for _, algorithm := range jose.MadeAlgorithms() {
		t.Run(algorithm, func(t *testing.T) {
			made, err := jose.MakeSigningKey(algorithm)
			if err != nil {
				t.Fatal(err)
			}
			key, err := jose.ParseSigningKey(made)
			if err != nil {
				t.Fatal(err)
			}
			public, err := key.PublicJWK()
			if err != nil {
				t.Fatal(err)
			}
			if key.Algorithm() != algorithm || key.ID() != key.Thumbprint() {
				t.Errorf("the key has the algorithm %q and the kid %q", key.Algorithm(), key.ID())
			}
			for _, private := range []string{`"d"`, `"p"`, `"q"`, `"dp"`, `"k"`} {
				if strings.Contains(public, private) {
					t.Errorf("the published key has %s", private)
				}
			}
			set, err := jose.ParseSet(fmt.Appendf(nil, `{"keys":[%s]}`, public))
			if err != nil || len(set.Skipped) > 0 {
				t.Fatal(err, set.Skipped)
			}
			found := set.Keys.Find(key.Thumbprint(), algorithm)
			if found == nil || found.Thumbprint() != key.Thumbprint() || !found.DeclaredAmong([]string{algorithm}) {
				t.Fatalf("the set has no key %q for %s: %s", key.Thumbprint(), algorithm, public)
			}
			signed, err := jose.Sign(key, jose.SigningHeader{Algorithm: algorithm}, map[string]string{"iss": "abc"})
			if err != nil {
				t.Fatal(err)
			}
			input, signature, _ := cutLast(signed.Reveal())
			raw, _ := base64.RawURLEncoding.DecodeString(signature)
			if err := jose.Verify(algorithm, found, []byte(input), raw); err != nil {
				t.Error(err)
			}
			another, err := jose.MakeSigningKey(algorithm)
			if err != nil || another.Equal(made) {
				t.Error("two keys are equal", err)
			}
		})
	}
}

func cutLast(compact string) (input, signature string, ok bool) {
	i := strings.LastIndexByte(compact, '.')
	return compact[:i], compact[i+1:], true
}

func TestMakeSigningKey_unsupported(t *testing.T) {
	if _, err := jose.MakeSigningKey("HS256"); err == nil || !strings.Contains(err.Error(), "ES256") {
		t.Errorf("%v", err)
	}
}
