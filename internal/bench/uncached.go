package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
)

// errAllPresented means that each token of the load was presented.
var errAllPresented = errors.New("all tokens were presented")

// eachOnce returns a function that returns each token once. It is safe for concurrent use.
func eachOnce(tokens []string) func() (string, error) {
	var next atomic.Int64
	return func() (string, error) {
		i := int(next.Add(1)) - 1
		if i >= len(tokens) {
			return "", errAllPresented
		}
		return tokens[i], nil
	}
}

// readTokens reads a file with a token on each line.
func readTokens(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	return strings.Fields(string(text)), err
}

// writeTokens writes a file of n different tokens of the IdP's first client.
func writeTokens(path string, idp *provider, n int) error {
	tokens := make([]string, n)
	var next atomic.Int64
	var signing sync.WaitGroup
	for range 2 {
		signing.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				tokens[i] = idp.mintFor(0)
			}
		})
	}
	signing.Wait()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	text := bufio.NewWriter(file)
	for _, token := range tokens {
		_, _ = text.WriteString(token + "\n") // Flush returns the error
	}
	return errors.Join(text.Flush(), file.Close())
}

// mintFor returns a new token as the token endpoint gives it to a client.
func (p *provider) mintFor(client int) string {
	now, of := time.Now().Unix(), p.clients[client]
	return p.Mint(map[string]any{
		"iss": p.Issuer(), "sub": of.ID, "client_id": of.ID, "aud": of.Audiences[0], "iat": now, "exp": now + int64((12 * time.Hour).Seconds()),
		"jti": rand.Text(), "scope": strings.Join(of.Scopes, " "),
	}).Reveal()
}

// compareUncached drives brokers with tokens that they have not seen before, beside
// servers that verify the signature of each and nothing else.
func (b *bench) compareUncached(ctx context.Context) (string, error) {
	var all []*contest
	for _, algorithm := range []string{"RS256", "ES256", "EdDSA"} {
		contests, err := b.measureUncached(ctx, algorithm)
		if err != nil {
			return "", err
		}
		all = append(all, contests...)
	}
	return fmt.Sprintf("every token new, %d in each round\n", b.tokens) + table(all...), nil
}

// measureUncached runs the contests with tokens that are signed with the algorithm.
func (b *bench) measureUncached(ctx context.Context, algorithm string) ([]*contest, error) {
	dir, err := os.MkdirTemp(b.dir, algorithm)
	if err != nil {
		return nil, err
	}
	idp, err := startProvider(ctx, dir, algorithm, clients(1), way{})
	if err != nil {
		return nil, err
	}
	defer idp.close()
	tokens, warm := filepath.Join(dir, "tokens"), filepath.Join(dir, "warm")
	if err := errors.Join(writeTokens(tokens, idp, b.tokens), writeTokens(warm, idp, b.tokens)); err != nil {
		return nil, err
	}
	bare, err := b.startBare(ctx, idp)
	if err != nil {
		return nil, err
	}
	defer bare.stop()
	contests := []*contest{{workload: workload{name: caseVerify}, label: caseVerify + ", " + algorithm}}
	if algorithm == "RS256" {
		contests = append(contests,
			&contest{workload: workload{name: caseCheck}, label: "ext_authz, " + algorithm},
			&contest{workload: workload{name: caseForward}, label: "/verify, " + algorithm},
		)
	}
	for _, c := range contests {
		c.client, c.tokens, c.other = clientName(0), tokens, "bare"
	}
	for round := range b.rounds {
		for _, c := range contests {
			if err := b.playUncached(ctx, c, round, idp, bare, warm); err != nil {
				return nil, err
			}
		}
	}
	return contests, nil
}

// startUncached starts a broker that verifies the tokens of an IdP, for gateways too.
func (b *bench) startUncached(ctx context.Context, idp *provider) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	return b.startBroker(ctx, setting{idp: idp, clients: 1, http: address})
}

// startBare starts an echo that verifies the signatures of the IdP's tokens. It learns the
// responses of a broker.
func (b *bench) startBare(ctx context.Context, idp *provider) (*server, error) {
	broker, err := b.startUncached(ctx, idp)
	if err != nil {
		return nil, err
	}
	defer broker.stop()
	return b.startEcho(ctx, broker, clientName(0), "-keys", idp.Issuer()+devidp.JWKSPath)
}

// playUncached measures one round, with a broker of its own: it has verified none of the
// tokens, but as many others, because a process that has just started also pays for its
// first memory.
func (b *bench) playUncached(ctx context.Context, c *contest, round int, idp *provider, bare *server, warm string) (err error) {
	if c.server, err = b.startUncached(ctx, idp); err != nil {
		return err
	}
	defer c.server.stop()
	if b.beside != "" {
		if bare, err = b.startBeside(ctx, c); err != nil {
			return err
		}
		defer bare.stop()
	}
	for _, s := range []*server{c.server, bare} {
		if _, err := b.drive(ctx, s, workload{name: c.name, client: c.client, tokens: warm}, b.length); err != nil {
			return err
		}
	}
	if err := b.playRound(ctx, c, round, bare); err != nil {
		return err
	}
	for _, samples := range [][]sample{c.echo, c.broker} {
		if calls := samples[len(samples)-1].calls; calls != b.tokens {
			return fmt.Errorf("%s: %d tokens of %d were presented", c.label, calls, b.tokens)
		}
	}
	return nil
}
