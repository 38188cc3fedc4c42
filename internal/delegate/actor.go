package delegate

import (
	"context"
	"sync/atomic"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Token is an actor token.
type Token struct {
	Value redact.String
	// Type is an identifier of RFC 8693 section 3.
	Type string
}

// Self is an Actor: the client with a token of its own, for its default request. The
// tokens are kept in memory.
type Self struct {
	client *Client
	held   atomic.Pointer[token.Token]
	turn   chan struct{} // of the one request for a token
}

// NewSelf returns the Actor for client.
func NewSelf(client *Client) *Self { return &Self{client: client, turn: make(chan struct{}, 1)} }

// Source implements [Actor].
func (s *Self) Source() string { return "self" }

// Token implements [Actor].
func (s *Self) Token(ctx context.Context, credential secret.Version) (Token, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	held := s.held.Load()
	if !usable(held, s.client.Counters) {
		epoch := s.client.Counters.Epoch()
		grant, err := s.client.IdP.Fetch(ctx, credential, s.client.Own)
		if err != nil {
			return Token{}, err
		}
		held = token.New(grant, epoch, 0)
		s.held.Store(held)
	}
	return Token{held.Value, idp.TypeAccessToken}, nil
}

// File is an Actor: a JWT in a file, which another program renews.
type File struct {
	path   string
	source atomic.Pointer[string]
}

// OpenFile returns the Actor for a file. The file may be absent: then requests fail until
// it exists.
func OpenFile(path string) *File {
	f := &File{path: path}
	f.source.Store(new(string))
	f.Refresh()
	return f
}

// Refresh notices another identity in the file.
func (f *File) Refresh() { _, _ = f.read() }

// Source implements [Actor]. It has the issuer and the subject of the token that was read
// last.
func (f *File) Source() string { return *f.source.Load() }

// Token implements [Actor].
func (f *File) Token(context.Context, secret.Version) (Token, error) {
	value, err := f.read()
	if err != nil {
		return Token{}, idp.Unusable("the file " + f.path + " with the actor token " + err.Error())
	}
	return Token{value, idp.TypeJWTToken}, nil
}

func (f *File) read() (redact.String, error) {
	value, err := idp.ReadAssertion(f.path)
	if err != nil {
		return redact.String{}, err
	}
	source := "file " + identity(value)
	if source != f.Source() {
		f.source.Store(&source)
	}
	return value, nil
}

// identity returns the issuer and the subject of a JWT, each with its length.
func identity(value redact.String) string {
	compact, err := jose.Split(value)
	if err != nil {
		return ""
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		return ""
	}
	issuer, _, _ := claims.Text("iss")
	subject, _, _ := claims.Text("sub")
	return string(secret.AppendPart(secret.AppendPart(nil, issuer), subject))
}
