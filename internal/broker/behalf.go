package broker

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/delegate"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// DefaultMaxSubjects is the maximum number of tokens held on behalf of subjects. They
// never evict the clients' own tokens.
const DefaultMaxSubjects = 50_000

// newDelegate returns the exchanges of a client, or nil.
func (b *Broker) newDelegate(c *client, cfg delegate.Config) *delegate.Client {
	if !c.idp.Exchanges() {
		return nil
	}
	d := delegate.Client{Name: c.name, IdP: c.idp, Own: c.own, Secrets: c.secrets, Counters: c.counters}
	return delegate.New(d, cfg, func(name string) *delegate.Client {
		if first := b.client(name); first != nil {
			return first.delegate
		}
		return nil
	})
}

// Behalf is a verified subject token on whose behalf a caller requests a token.
type Behalf struct {
	Subject idp.Subject
	Facts   *verify.Facts
	// Actors returns the actors of the subject token for the audit log.
	Actors func() []string
	// Judge verifies the subject token again.
	Judge func(ctx context.Context) *apierror.Error
	// MayReceive reports whether the caller may receive the scopes that the IdP granted.
	MayReceive func(granted []string) bool
}

// subject is the subject of an entry. It keeps the raw token in memory only.
type subject struct {
	token  idp.Subject
	source []string // what else the token depends on
	facts  *verify.Facts
	actors []string
	// ends (Unix nanoseconds) is the end of the subject token by its latest verification.
	ends atomic.Int64
}

// Exchanging returns the client that exchanges the subject token in requests to a named
// client, and the default request. It returns nil if the client does not exchange for callers.
func (b *Broker) Exchanging(name string) (at *idp.Client, defaults idp.Request) {
	c := b.client(name)
	if c == nil || !c.exchanges() {
		return nil, idp.Request{}
	}
	return c.delegate.Exchanger(), c.own
}

func (c *client) exchanges() bool { return c.delegate != nil && !c.idp.IssuesAssertions() }

// VerifySubject verifies a subject token. A bad token is a result.
func (b *Broker) VerifySubject(ctx context.Context, caller *policy.Caller, presented redact.String, ask verify.Request) (verify.Result, *apierror.Error) {
	result, err := b.verifyUnrevoked(ctx, presented, ask)
	if err != nil {
		return verify.Result{}, b.undecided(ctx, caller, ask, err)
	}
	return result, nil
}

// GetOnBehalf is [Broker.Get] for an authorized request on behalf of a verified subject;
// full has the client's defaults filled in.
func (b *Broker) GetOnBehalf(ctx context.Context, caller *policy.Caller, ask Ask, full idp.Request, behalf Behalf) (Answer, *apierror.Error) {
	c := b.client(ask.Client)
	if c == nil || !c.exchanges() {
		return Answer{}, b.DenyToken(ctx, caller, ask.Client, full) // a reload removed it
	}
	e := b.entryOf(c, full, behalf)
	answer, err := b.answer(ctx, e, ask)
	if err != nil && !slices.Equal(e.subject.source, c.delegate.Source()) { // the actor changed
		e = b.entryOf(c, full, behalf)
		answer, err = b.answer(ctx, e, ask)
	}
	if err == nil && answer.Origin != OriginMemory {
		err = behalf.Judge(ctx) // the caller waited: the subject token may have ended or been revoked
	}
	if err == nil && !behalf.MayReceive(answer.Token.Scopes) {
		err = b.deniedScopes(ctx, caller, e, answer.Token)
	}
	if err == nil {
		err = b.recordGiven(ctx, caller, e, answer)
	}
	if err != nil {
		b.metrics.Failed.Add(1)
		return Answer{}, err
	}
	return b.counted(answer), nil
}

// entryOf returns the entry of a request on behalf of a subject.
func (b *Broker) entryOf(c *client, full idp.Request, behalf Behalf) *entry {
	source := c.delegate.Source()
	k := b.behalfKey(c, full, behalf.Subject, source)
	e := b.subjects.Get(k, func(e *entry) bool { return e.client == c }, func() *entry {
		e, facts := b.newEntry(c, k, full), *behalf.Facts
		facts.Claims = nil // the largest part, of which only the actors are needed
		e.subject = &subject{token: behalf.Subject, source: source, facts: &facts, actors: behalf.Actors()}
		return e
	})
	e.subject.ends.Store(behalf.Facts.ExpiresAt.UnixNano())
	return e
}

// behalfKey identifies the token for a request on behalf of a subject. It covers the
// subject token itself and not its claims: another token of the same user may have other
// rights. source identifies the actor and the first leg. The hash is keyed, because its
// input is a credential.
func (b *Broker) behalfKey(c *client, full idp.Request, s idp.Subject, source []string) idp.Key {
	request := full.Key(c.name)
	data := secret.AppendPart(make([]byte, 0, len(s.Token.Reveal())+256), "on behalf")
	for _, part := range [...]string{string(request[:]), s.Type, s.Token.Reveal()} {
		data = secret.AppendPart(data, part)
	}
	for _, part := range source {
		data = secret.AppendPart(data, part)
	}
	return b.mac(data)
}

// request requests the token of the entry from the IdP. A token on behalf of a subject
// ends no later than the subject token.
func (e *entry) request(ctx context.Context, v *credential.Version, ask idp.Request) (token.Grant, error) {
	if e.subject == nil {
		return e.client.idp.Fetch(ctx, v.Version, ask)
	}
	grant, err := e.client.delegate.Request(ctx, v.Version, e.subject.source, e.subject.token, ask)
	if left := e.subject.end().Sub(grant.RequestedAt); err == nil && left < grant.Lifetime {
		grant.Lifetime = max(left, 0)
	}
	return grant, err
}

func (s *subject) end() time.Time { return time.Unix(0, s.ends.Load()) }

// outlives reports whether the next token may end later than the held one.
func (e *entry) outlives(held *token.Token) bool {
	return e.subject == nil || e.subject.end().Sub(held.ExpiresAt) > time.Second
}

// refusal returns the error that refuses the secret of an attempt, or nil. With a subject
// the IdP may mean the subject, so a token of the client itself must be refused as well.
func (e *entry) refusal(ctx context.Context, a attempt) error {
	if e.subject != nil {
		return e.client.delegate.SecretRefusal(ctx, a.Version, a.err)
	}
	if a.refused() {
		return a.err
	}
	return nil
}
