package verify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

const accessTokenType = "at+jwt"

// judge decides whether a token with these facts satisfies the request at a time. It
// is a pure function. The error is a [*Rejection] or [ErrNotPermitted].
func judge(f *Facts, c *IssuerConfig, req Request, now time.Time) error {
	if req.IDTokenOf != "" {
		return cmp.Or(judgeIDToken(f, c, req.IDTokenOf), judgeTime(f, c, now))
	}
	if err := judgeType(f, c.Types, req.Caller); err != nil {
		return err
	}
	if err := judgeTime(f, c, now); err != nil {
		return err
	}
	accepted, err := acceptedAudiences(c, req)
	if err != nil {
		return err
	}
	if err := judgeAudience(f, accepted, req.Caller || req.RealAudience); err != nil {
		return err
	}
	for _, scope := range req.Scopes {
		if !slices.Contains(f.Scopes, scope) {
			return reject(InsufficientScope, "The token does not have the scope %q.", scope)
		}
	}
	return nil
}

// judgeType rejects tokens that the issuer signed for other purposes (RFC 9068 section
// 4, RFC 8725 section 3.11). A token that identifies a caller needs no claim that marks
// access tokens, because its audience is the broker.
func judgeType(f *Facts, types []string, fromCaller bool) error {
	if f.opaque {
		return judgeTokenType(f, types)
	}
	typ := mediaType(f.typ)
	admitted := slices.ContainsFunc(types, func(t string) bool { return mediaType(t) == typ })
	switch {
	case !admitted && (typ != "" || !admitsUntyped(types)):
		return reject(WrongType, "The token's typ is %s; accepted for its issuer: %s.", quote(f.typ), strings.Join(types, ", "))
	case typ == accessTokenType:
		return nil
	case f.otherPurpose != "":
		return reject(WrongType, "The token is %s, not an access token.", f.otherPurpose)
	case !f.hasAccessClaim && !fromCaller:
		return reject(WrongType, "The token has no claim that only access tokens have, such as scope or client_id: it may be an ID token.")
	}
	return nil
}

func admitsUntyped(types []string) bool {
	return slices.ContainsFunc(types, func(t string) bool { return mediaType(t) == "jwt" })
}

// mediaType normalizes the name of a media type (RFC 7515 section 4.1.9).
func mediaType(name string) string {
	return strings.TrimPrefix(strings.ToLower(name), "application/")
}

func judgeTime(f *Facts, c *IssuerConfig, now time.Time) error {
	issued := f.IssuedAt
	if issued.IsZero() {
		issued = now
	}
	switch {
	case !now.Before(f.ExpiresAt.Add(c.Leeway)):
		return reject(Expired, "The token expired at %s.", formatTime(f.ExpiresAt))
	case now.Before(f.NotBefore.Add(-c.Leeway)):
		return reject(NotYetValid, "The token is not valid before %s (nbf).", formatTime(f.NotBefore))
	case issued.After(now.Add(c.Leeway)):
		return reject(NotYetValid, "The token was issued in the future, at %s (iat).", formatTime(issued))
	case f.ExpiresAt.Sub(issued) > c.MaxLifetime:
		return reject(LifetimeTooLong, "The token's lifetime is longer than the %v allowed for its issuer.", c.MaxLifetime)
	case c.MaxAge > 0 && f.IssuedAt.IsZero():
		return reject(LifetimeTooLong, "The token has no iat claim, and tokens of its issuer may be at most %v old.", c.MaxAge)
	case c.MaxAge > 0 && now.Sub(issued) > c.MaxAge+c.Leeway:
		return reject(LifetimeTooLong, "The token is older than the %v allowed for its issuer.", c.MaxAge)
	}
	return nil
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// acceptedAudiences returns the audiences of which a token must have one: the request's,
// all of which must be permitted, or else the issuer's permitted ones.
func acceptedAudiences(c *IssuerConfig, req Request) ([]string, error) {
	permitted := req.Issuers[c.Issuer]
	forbidden := func(audience string) bool {
		_, ok := slices.BinarySearch(permitted, audience)
		return !ok
	}
	switch {
	case len(req.Audience) > 0 && permitted != nil && slices.ContainsFunc(req.Audience, forbidden):
		return nil, ErrNotPermitted
	case len(req.Audience) > 0:
		return req.Audience, nil
	case permitted == nil || !slices.ContainsFunc(c.Audiences, forbidden):
		return c.Audiences, nil
	}
	accepted := slices.DeleteFunc(slices.Clone(c.Audiences), forbidden)
	if len(accepted) == 0 {
		return nil, ErrNotPermitted
	}
	return accepted, nil
}

// judgeAudience can require a real aud claim: only the aud shows for whom the token was
// issued.
func judgeAudience(f *Facts, accepted []string, realAudience bool) error {
	if len(f.Audience) == 0 || f.noAudience && realAudience {
		return reject(WrongAudience, "The token names no audience (aud); it must be for %s.", quoteList(accepted))
	}
	for _, audience := range f.Audience {
		if slices.Contains(accepted, audience) {
			return nil
		}
	}
	return reject(WrongAudience, "The token is for %s; it must be for %s. Audiences are compared byte by byte.",
		quoteList(f.Audience), quoteList(accepted))
}

// quoteList quotes the first three texts of a list, to bound the length of messages.
func quoteList(list []string) string {
	const limit = 3
	quoted := make([]string, 0, limit+1)
	for i, s := range list {
		if i == limit {
			quoted = append(quoted, fmt.Sprintf("%d more", len(list)-limit))
			break
		}
		quoted = append(quoted, quote(s))
	}
	return strings.Join(quoted, ", ")
}

// quote quotes the first 100 bytes of a text.
func quote(s string) string {
	const limit = 100
	if len(s) > limit {
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:limit], ""))
	}
	return fmt.Sprintf("%q", s)
}
