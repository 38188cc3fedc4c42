package gateway

import (
	"encoding/json"
	"errors"
	"net/url"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// A header's text is one that every server takes as it is, and can be read back: so
// no two identities look the same.
func TestHeaderTextIsSafeAndReversible(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[ %\r\n\x00-\x20a-c]{0,8}`)).Draw(t, "text")
		encoded := headerText(text)
		for i, c := range []byte(encoded) {
			if c < ' ' || c > '~' || c == ' ' && (i == 0 || i == len(encoded)-1) {
				t.Fatalf("%q becomes %q", text, encoded)
			}
		}
		if back, err := url.PathUnescape(encoded); err != nil || back != text {
			t.Fatalf("%q becomes %q, which reads %q, %v", text, encoded, back, err)
		}
	})
}

func TestDenialsAreJSON(t *testing.T) {
	j := New(Config{Realm: "shop"})
	for code, d := range map[string]Decision{
		"unauthorized": *j.deny(401, "", "a"), InvalidToken: *j.deny(401, InvalidToken, "b"), InsufficientScope: *j.deny(403, InsufficientScope, "c"),
		"access_denied": j.Forbid("d"), "temporarily_unavailable": Undecided(errors.New("e")),
	} {
		var body struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		if err := json.Unmarshal(d.JSON(), &body); err != nil || body.Error != code || body.Description != d.Description {
			t.Errorf("%s: %v %+v", code, err, body)
		}
	}
	if wait := Undecided(&apierror.Error{Code: apierror.Unavailable, RetryAfter: time.Minute}).RetryAfter; wait != time.Minute {
		t.Errorf("RetryAfter %v", wait)
	}
}

func TestBrowsersGetText(t *testing.T) {
	for accept, want := range map[string]bool{"": true, "*/*": true, "application/json": true, "application/problem+json, text/html": true, "text/html,*/*;q=0.8": false, "text/plain": false} {
		if WantsJSON(accept) != want {
			t.Errorf("%q: JSON %v", accept, !want)
		}
	}
}
