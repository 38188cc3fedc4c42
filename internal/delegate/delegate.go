// Package delegate requests tokens on behalf of subjects for one client. A request may need
// more than one exchange: a token of the actor, and an assertion that another client's IdP
// issues for the subject (two legs). Results of these steps are never handed out.
package delegate

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Client requests tokens on behalf of subjects. It is safe for concurrent use.
type Client struct {
	Name string
	IdP  *idp.Client
	// Own is the client's default request.
	Own idp.Request
	// Secrets is the secret of the client.
	Secrets *credential.Set
	// Counters order the client's purges.
	Counters *epoch.Counters
	// Actor supplies actor tokens. Nil: there is no actor.
	Actor Actor
	// FirstLeg returns the client whose assertion takes the place of the subject token, or
	// nil while it is not configured. Nil: the client has no first leg.
	FirstLeg func() *Client
}

// Config configures the exchanges of a client, besides its IdP. Zero: the IdP takes the
// client as the actor, there is one leg, and new secrets are proved by tokens of the client
// itself.
type Config struct {
	// SelfActor sends a token of the client itself as the actor token. ActorFile is the file
	// with an actor token. At most one of them is set.
	SelfActor bool
	ActorFile string
	// AssertionFrom is the client whose assertion takes the place of the subject token.
	AssertionFrom string
	// ProvesByUse is [credential.Config.ProvesByUse].
	ProvesByUse bool
}

// New completes a client by its configuration. find returns the client of a name, or nil.
func New(c Client, cfg Config, find func(name string) *Client) *Client {
	switch {
	case cfg.SelfActor:
		c.Actor = NewSelf(&c)
	case cfg.ActorFile != "":
		c.Actor = OpenFile(cfg.ActorFile)
	}
	if from := cfg.AssertionFrom; from != "" {
		c.FirstLeg = func() *Client { return find(from) }
	}
	return &c
}

// Actor is a source of actor tokens.
type Actor interface {
	// Source identifies the actor. It stays the same when only the bytes of the token
	// change, and does no I/O.
	Source() string
	// Token returns a token of the actor and its type. credential authenticates the client.
	Token(ctx context.Context, credential secret.Version) (Token, error)
}

// Source identifies everything besides the subject token and the request that the token
// depends on. It does no I/O.
func (c *Client) Source() []string {
	var parts []string
	if c.Actor != nil {
		parts = append(parts, "actor", c.Actor.Source())
	}
	if c.FirstLeg == nil {
		return parts
	}
	first := c.FirstLeg()
	if first == nil {
		return append(parts, "first leg")
	}
	fingerprint := first.IdP.Fingerprint()
	// A purge of the first leg ends the tokens that depend on it.
	parts = append(parts, "first leg", first.Name, hex.EncodeToString(fingerprint[:]), strconv.FormatUint(first.Counters.Epoch(), 10))
	return append(parts, first.Source()...)
}

// Exchanger returns the client that exchanges the subject token itself: of two legs the
// first.
func (c *Client) Exchanger() *idp.Client {
	if c.FirstLeg == nil {
		return c.IdP
	}
	if first := c.FirstLeg(); first != nil {
		return first.IdP
	}
	return c.IdP
}

// RefreshActor notices another actor in a file. c may be nil.
func (c *Client) RefreshActor() {
	if c == nil {
		return
	}
	if file, ok := c.Actor.(*File); ok {
		file.Refresh()
	}
}

// Request requests a token for the actor and the first leg that source identifies. Its
// errors are those of [idp.Client.Exchange], of which some concern an earlier step of the
// request.
func (c *Client) Request(ctx context.Context, credential secret.Version, source []string, subject idp.Subject, ask idp.Request) (token.Grant, error) {
	grant, err := c.request(ctx, credential, subject, ask)
	if err == nil && !slices.Equal(source, c.Source()) {
		err = idp.Unusable("the actor or the first leg of the exchange has changed meanwhile")
	}
	return grant, err
}

func (c *Client) request(ctx context.Context, credential secret.Version, subject idp.Subject, ask idp.Request) (token.Grant, error) {
	behalf := idp.Behalf{Subject: subject}
	if c.FirstLeg != nil {
		first := c.FirstLeg()
		if first == nil {
			return token.Grant{}, idp.Unusable("the client of the first leg is not configured any more")
		}
		assertion, err := first.assertion(ctx, subject, ask)
		if err != nil {
			return token.Grant{}, err
		}
		behalf.Subject = assertion
	}
	if c.Actor != nil {
		actor, err := c.Actor.Token(ctx, credential)
		if err != nil {
			return token.Grant{}, within("the actor token was not obtained", err, true)
		}
		behalf.Actor, behalf.ActorType = actor.Value, actor.Type
	}
	return c.IdP.Exchange(ctx, credential, behalf, ask)
}

// assertion requests the assertion of a first leg for the request of the second. The
// client's own scopes and resources have precedence, because the IdPs of the legs may not
// know the same ones.
func (c *Client) assertion(ctx context.Context, subject idp.Subject, ask idp.Request) (idp.Subject, error) {
	step := fmt.Sprintf("the assertion of the first leg (client %q) was not obtained", c.Name)
	own := c.Own
	if len(own.Scopes) == 0 {
		own.Scopes = ask.Scopes
	}
	if len(own.Resources) == 0 {
		own.Resources = ask.Resources
	}
	if v := c.Secrets.ToProve(time.Now()); v != nil {
		grant, err := c.requestLeg(ctx, v.Version, subject, own)
		if err == nil {
			c.Secrets.ActivateProven(v)
			return idp.Subject{Token: grant.Value, Type: grant.IssuedType}, nil
		}
	}
	credential, err := c.Secrets.ForIntrospection(ctx)
	if err != nil {
		return idp.Subject{}, within(step, err, false)
	}
	grant, err := c.requestLeg(ctx, credential, subject, own)
	if err != nil {
		return idp.Subject{}, within(step, err, false)
	}
	return idp.Subject{Token: grant.Value, Type: grant.IssuedType}, nil
}

// requestLeg requests an assertion. The secret of a first leg is followed like that of
// introspection: its refusal must not stop the requests of the second leg's secret.
func (c *Client) requestLeg(ctx context.Context, credential secret.Version, subject idp.Subject, own idp.Request) (token.Grant, error) {
	grant, err := c.request(ctx, credential, subject, own)
	c.Secrets.Introspected(credential.ID, err)
	return grant, err
}

// within returns the error of a step. Only with sameSecret it may be a verdict on the
// secret of the client whose request has the step.
func within(step string, err error, sameSecret bool) error {
	if fault, ok := errors.AsType[*idp.Error](err); ok {
		return fault.In(step, sameSecret)
	}
	if failure, ok := errors.AsType[*apierror.Error](err); ok {
		return idp.Unusable(step + ", because " + failure.Message)
	}
	return err
}

// SecretRefusal returns the error that refuses a secret, or nil if the secret is not the
// cause of a failed exchange. The IdP may mean the subject instead, in any spelling, so it
// must refuse the secret for a token of the client itself as well. unauthorized_client may mean that the client may not have such
// tokens: it is no verdict on a secret that has just obtained a token, or that proves
// itself by exchanges only.
func (c *Client) SecretRefusal(ctx context.Context, v *credential.Version, refusal error) error {
	code := idp.CodeOf(refusal)
	recently := c.Secrets.ProvenRecently(v)
	if idp.ClassOf(refusal) != idp.CredentialRefused && (code != unauthorized || recently || c.Secrets.ProvesByUse) {
		return nil
	}
	_, err := c.IdP.Fetch(ctx, v.Version, c.Own)
	if idp.ClassOf(err) != idp.CredentialRefused || idp.CodeOf(err) == unauthorized && (recently || c.Secrets.ProvesByUse) {
		return nil
	}
	return err
}

const unauthorized = "unauthorized_client"

// Doubted reports whether a secret that was not condemned may still be the cause of a
// refused exchange, so that another one has to be tried.
func (c *Client) Doubted(v *credential.Version, refusal error) bool {
	refused := idp.ClassOf(refusal) == idp.CredentialRefused || idp.CodeOf(refusal) == unauthorized
	return refused && c.Secrets.ProvesByUse && !c.Secrets.ProvenRecently(v)
}

// usable reports whether a token may be used in a request that begins now.
func usable(tok *token.Token, counters *epoch.Counters) bool {
	return tok != nil && tok.Epoch >= counters.Epoch() && tok.Usable(time.Now(), 0)
}
