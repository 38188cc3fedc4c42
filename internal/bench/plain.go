package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
)

const plainCommand = "plain"

// plainOutcome is the CPU time of a plain client, in microseconds per fetch.
type plainOutcome struct {
	CPU float64 `json:"cpu"`
}

// plain fetches tokens from an IdP as a service without a broker does: a POST, io.ReadAll
// and encoding/json. It prints its CPU time as JSON, without that of opening connections.
func plain(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(plainCommand, flag.ContinueOnError)
	client := flags.String("client", "", "authenticate as the client `ID`")
	secret := flags.String("secret", "", "with the secret in `FILE`")
	fetches := flags.Int("fetches", 1, "fetch `N` tokens")
	ca := flags.String("ca", "", "trust the authority in `FILE`; empty: the system's")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return fmt.Errorf("usage: bench %s -client ID -secret FILE [-fetches 1] [-ca FILE] URL", plainCommand)
	}
	password, err := os.ReadFile(*secret)
	if err != nil {
		return err
	}
	authority, err := authorityIn(*ca)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		MaxConnsPerHost: callers, MaxIdleConnsPerHost: callers, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{RootCAs: authority, MinVersion: tls.VersionTLS12},
	}
	p := plainClient{http: &http.Client{Transport: transport}, url: flags.Arg(0), id: *client, secret: string(password)}
	if err := p.fetchAll(ctx, 4*callers); err != nil { // opens the connections
		return err
	}
	before, errBefore := ownCPU()
	err = p.fetchAll(ctx, *fetches)
	after, errAfter := ownCPU()
	if err := errors.Join(err, errBefore, errAfter); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(plainOutcome{CPU: float64((after - before).Microseconds()) / float64(*fetches)})
}

// authorityIn reads the certificate of an authority; nil: those of the system.
func authorityIn(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil //nolint:nilnil // crypto/tls then takes those of the system
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return pool, nil
}

type plainClient struct {
	http            *http.Client
	url, id, secret string
}

// fetchAll fetches a token for each of n requests, as many at once as the broker's callers
// have it fetch.
func (p plainClient) fetchAll(ctx context.Context, n int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callers)
	for i := range n {
		group.Go(func() error { return p.fetch(ctx, i) })
	}
	return group.Wait()
}

func (p plainClient) fetch(ctx context.Context, i int) error {
	asked := question(p.id, i)
	form := url.Values{"grant_type": {"client_credentials"}, "audience": {asked.GetAudience()}, "scope": {strings.Join(asked.GetScopes(), " ")}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.SetBasicAuth(url.QueryEscape(p.id), url.QueryEscape(p.secret))
	response, err := p.http.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	if answer.AccessToken == "" {
		return fmt.Errorf("the IdP answered %s", response.Status)
	}
	return nil
}
