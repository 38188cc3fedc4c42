package broker

import (
	"testing"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// The property of package exchange covers what a fleet shows. Here is each part of the
// key, also those that other measures cover as well.
func TestBehalfKeyCoversEachPart(t *testing.T) {
	type parts struct {
		client  string
		request idp.Request
		subject idp.Subject
		source  []string
	}
	subject := func(token, kind string) idp.Subject { return idp.Subject{Token: redact.New(token), Type: kind} }
	same := parts{"obo", idp.Request{Audience: "a", Resources: []string{"r"}, Scopes: []string{"s"}}, subject("token", "type"), nil}
	changes := map[string]func(*parts){
		"nothing":        func(*parts) {},
		"client":         func(p *parts) { p.client = "obo-2" },
		"audience":       func(p *parts) { p.request.Audience = "b" },
		"resources":      func(p *parts) { p.request.Resources = []string{"r", "q"} },
		"scopes":         func(p *parts) { p.request.Scopes = nil },
		"token":          func(p *parts) { p.subject = subject("tokeN", "type") },
		"type":           func(p *parts) { p.subject = subject("token", "typ") },
		"actor":          func(p *parts) { p.source = []string{"actor", "self"} },
		"another actor":  func(p *parts) { p.source = []string{"actor", "file"} },
		"first leg":      func(p *parts) { p.source = []string{"first leg", "a", "1"} },
		"its purges":     func(p *parts) { p.source = []string{"first leg", "a", "2"} },
		"where they end": func(p *parts) { p.subject = subject("etoken", "typ") },
	}
	b, other := &Broker{mac: secret.NewMAC()}, &Broker{mac: secret.NewMAC()}
	seen := map[idp.Key]string{}
	for name, change := range changes {
		p := same
		change(&p)
		k := b.behalfKey(&client{name: p.client}, p.request, p.subject, p.source)
		if before, ok := seen[k]; ok {
			t.Errorf("%s: the same key as %s", name, before)
		}
		seen[k] = name
		if k == other.behalfKey(&client{name: p.client}, p.request, p.subject, p.source) {
			t.Errorf("%s: the key does not depend on the key of the hash", name)
		}
	}
	if _, ok := seen[same.request.Key(same.client)]; ok {
		t.Error("a request without a subject has a key of one with a subject")
	}
}
