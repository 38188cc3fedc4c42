// Command zitadelop is an identity provider for tests: the OpenID provider library of
// ZITADEL (github.com/zitadel/oidc) with the client "orders", which uses the client
// credentials grant, exchanges access tokens of this provider (RFC 8693) and introspects
// tokens. The client "web" gets opaque tokens of the user "id1" for
// https://bff.example.com, and can revoke them.
//
//	zitadelop ADDRESS DIRECTORY
//
// It serves http://ADDRESS. The directory is its whole state and is read again for each
// request, so that a test changes the provider by writing files and can restart it:
//
//	secret  the secret of both clients
//	actor   if it exists, exchanges require an actor token
//	*.pem   RSA keys in PKCS #8. The last one by name signs; all are published.
package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// audience is the API that tokens are for, bff the service that exchanges tokens of users.
const (
	audience = "https://orders.example.com"
	bff      = "https://bff.example.com"
)

// The names of the clients.
const (
	ordersClient = "orders"
	webClient    = "web"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: zitadelop ADDRESS DIRECTORY")
		os.Exit(2) //nolint:forbidigo // the command line is wrong
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // here is where errors are returned to
	}
}

func serve(address, directory string) error {
	issuer := "http://" + address
	state := &state{storage.NewStorage(storage.NewUserStore(issuer)), directory}
	config := &op.Config{AuthMethodPost: true}
	_, _ = rand.Read(config.CryptoKey[:])
	provider, err := op.NewProvider(config, state, op.StaticIssuer(issuer), op.WithAllowInsecure())
	if err != nil {
		return err
	}
	server := &http.Server{Addr: address, Handler: provider, ReadHeaderTimeout: time.Minute}
	return server.ListenAndServe()
}

// state is the storage of the library's example with the keys and the client of the
// directory.
type state struct {
	*storage.Storage

	directory string
}

func (s *state) keys() ([]key, error) {
	names, err := filepath.Glob(filepath.Join(s.directory, "*.pem"))
	if err != nil {
		return nil, err
	}
	keys := make([]key, 0, len(names))
	for _, name := range names {
		data, err := os.ReadFile(name) //nolint:gosec // a file of the directory that was asked for
		if err != nil {
			return nil, err
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("%s is not a PEM file", name)
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		private, ok := parsed.(*rsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("%s is not an RSA key", name)
		}
		id := sha256.Sum256(block.Bytes)
		keys = append(keys, key{id: hex.EncodeToString(id[:8]), private: private})
	}
	if len(keys) == 0 {
		return nil, errors.New("the directory has no key")
	}
	return keys, nil
}

func (s *state) SigningKey(context.Context) (op.SigningKey, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, err
	}
	return signing{keys[len(keys)-1]}, nil
}

func (s *state) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256}, nil
}

func (s *state) KeySet(context.Context) ([]op.Key, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, err
	}
	set := make([]op.Key, 0, len(keys))
	for _, key := range keys {
		set = append(set, published{key})
	}
	return set, nil
}

func (s *state) ClientCredentials(_ context.Context, clientID, secret string) (op.Client, error) {
	known, err := os.ReadFile(filepath.Join(s.directory, "secret"))
	if err != nil {
		return nil, oidc.ErrServerError().WithParent(err)
	}
	if secret != string(known) {
		return nil, errors.New("wrong secret")
	}
	return s.GetClientByClientID(context.Background(), clientID)
}

func (s *state) ClientCredentialsTokenRequest(_ context.Context, clientID string, scopes []string) (op.TokenRequest, error) { //nolint:unparam // the library defines it
	if clientID == webClient {
		return &oidc.JWTTokenRequest{Subject: "id1", Audience: []string{bff, ordersClient}, Scopes: scopes}, nil
	}
	return &oidc.JWTTokenRequest{Subject: clientID, Audience: []string{audience}, Scopes: scopes}, nil
}

// SetIntrospectionFromToken adds members that the library's example leaves out.
func (s *state) SetIntrospectionFromToken(ctx context.Context, response *oidc.IntrospectionResponse, tokenID, subject, clientID string) error {
	if err := s.Storage.SetIntrospectionFromToken(ctx, response, tokenID, subject, clientID); err != nil {
		return err
	}
	response.Issuer, response.Audience, response.ClientID, response.TokenType = op.IssuerFromContext(ctx), oidc.Audience{bff}, webClient, oidc.BearerToken
	return nil
}

// RevokeToken revokes a token of the client credentials grant, for which the example stores
// no client.
func (s *state) RevokeToken(ctx context.Context, tokenID, userID, _ string) *oidc.Error {
	return s.Storage.RevokeToken(ctx, tokenID, userID, "")
}

// AuthorizeClientIDSecret authenticates the client of an exchange.
func (s *state) AuthorizeClientIDSecret(ctx context.Context, clientID, secret string) error {
	_, err := s.ClientCredentials(ctx, clientID, secret)
	return err
}

func (s *state) GetClientByClientID(_ context.Context, clientID string) (op.Client, error) { //nolint:ireturn // the library defines it
	switch clientID {
	case ordersClient:
		return client{storage.WebClient(clientID, ""), op.AccessTokenTypeJWT}, nil
	case webClient:
		return client{storage.WebClient(clientID, ""), op.AccessTokenTypeBearer}, nil
	default:
		return nil, errors.New("unknown client")
	}
}

// ValidateTokenExchangeRequest lets the client exchange an access token for another one. The
// library has verified the subject token.
func (s *state) ValidateTokenExchangeRequest(_ context.Context, request op.TokenExchangeRequest) error {
	if request.GetExchangeSubjectTokenType() != oidc.AccessTokenType || request.GetRequestedTokenType() != oidc.AccessTokenType {
		return oidc.ErrInvalidRequest().WithDescription("only access tokens are exchanged, for access tokens")
	}
	if _, err := os.Stat(filepath.Join(s.directory, "actor")); err == nil && request.GetExchangeActor() == "" {
		return oidc.ErrInvalidRequest().WithDescription("an actor token is required")
	}
	request.SetCurrentScopes(request.GetScopes())
	return nil
}

// GetPrivateClaimsFromTokenExchangeRequest names the actor: the subject of the actor token,
// or the client.
//
//nolint:unparam // the interface has the error
func (s *state) GetPrivateClaimsFromTokenExchangeRequest(_ context.Context, request op.TokenExchangeRequest) (map[string]any, error) {
	actor := map[string]any{"sub": request.GetClientID()}
	if subject := request.GetExchangeActor(); subject != "" {
		actor = map[string]any{"sub": subject, "presented_by": request.GetClientID()}
	}
	return map[string]any{"act": actor}, nil
}

// client is a client of the library's example with other grants and tokens.
type client struct {
	*storage.Client

	tokens op.AccessTokenType
}

func (client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials, oidc.GrantTypeTokenExchange}
}
func (c client) AccessTokenType() op.AccessTokenType { return c.tokens }

type key struct {
	id      string
	private *rsa.PrivateKey
}

func (k key) ID() string { return k.id }

type signing struct{ key }

func (signing) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (s signing) Key() any                                  { return s.private }

type published struct{ key }

func (published) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (published) Use() string                        { return "sig" }
func (p published) Key() any                         { return &p.private.PublicKey }
