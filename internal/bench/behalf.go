package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// exchanger is the client that exchanges the tokens of users. The client before it, of the
// same IdP, has tokens of its own.
const exchanger = "for-user"

// subjectSize is the length of the user's token, at least.
const subjectSize = 1024

// measureBehalf drives one broker in turn for a cached token of a client, and for a cached token on
// behalf of a user whose token is in each request.
func (b *bench) measureBehalf(ctx context.Context) (text string, err error) {
	own := clients(1)
	idp, err := startProvider(ctx, b.dir, "RS256", append(own, devidp.Client{
		ID: exchanger, Scopes: []string{"read", "write"}, Audiences: []string{audience}, Exchange: &devidp.Exchange{SubjectAudiences: []string{audience}},
	}), way{})
	if err != nil {
		return "", err
	}
	defer idp.close()
	broker, err := b.startBroker(ctx, setting{idp: idp, clients: 2})
	if err != nil {
		return "", err
	}
	defer broker.stop()
	user := userToken(idp)
	path := filepath.Join(b.dir, "user-token")
	if err := os.WriteFile(path, []byte(user.Reveal()), 0o600); err != nil {
		return "", err
	}
	c := &contest{label: "GetToken", other: "own token", server: broker}
	service, exchanged := *c, *c
	service.workload = workload{name: caseGet, client: clientName(0)}
	exchanged.workload = workload{name: caseGet, client: exchanger, subject: path}
	for _, warm := range []contest{service, exchanged} {
		if _, err := b.drive(ctx, broker, warm.workload, min(b.length, time.Second)); err != nil {
			return "", err
		}
	}
	for round := range b.rounds {
		turns := []func() error{
			func() error { return b.measure(ctx, broker, &service, &c.echo) },
			func() error { return b.measure(ctx, broker, &exchanged, &c.broker) },
		}
		if round%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return "", err
			}
		}
	}
	return behalfTable(c, len(user.Reveal())), nil
}

// userToken mints a token of a user, which has the size of one with a few claims.
func userToken(idp *provider) redact.String {
	now := time.Now()
	claims := map[string]any{
		"iss": idp.Issuer(), "sub": "alice", "aud": audience, "client_id": "web", "scope": "openid", "iat": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
	}
	token := idp.Mint(claims)
	if missing := subjectSize - len(token.Reveal()); missing > 0 {
		claims["groups"] = strings.Repeat("g", missing*3/4)
		token = idp.Mint(claims)
	}
	return token
}

func behalfTable(c *contest, size int) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-18s %-7s %12s %9s %8s %8s  %s\n", "case", "token", "CPU us/call", "calls/s", "p50 us", "p99 us", "CPU ratio")
	ratios := c.ratios()
	text.WriteString(row(c.label, "own", c.echo) + "  1.00\n")
	fmt.Fprintf(&text, "%s  %.2f (rounds: %.2f to %.2f); p50 %.2f; the user's token has %d bytes\n", row(c.label, "user's", c.broker),
		median(ratios), slices.Min(ratios), slices.Max(ratios), medianOf(c.broker, p50)/medianOf(c.echo, p50), size)
	return text.String()
}

func p50(s sample) float64 { return s.p50 }
