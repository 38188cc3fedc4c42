package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const accessTokenType = "at+jwt"

// judge decides whether a token with these facts is good for what was asked,
// now. It is pure. The error is a [*Rejection], or [ErrNotPermitted].
func judge(f *Facts, c *IssuerConfig, req Request, now time.Time) error {
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
	if err := judgeAudience(f, accepted, req.Caller); err != nil {
		return err
	}
	for _, scope := range req.Scopes {
		if !slices.Contains(f.Scopes, scope) {
			return reject(InsufficientScope, "The token has not the scope %q.", scope)
		}
	}
	return nil
}

// judgeType keeps tokens that the same issuer signed for other ends from being
// taken for access tokens (RFC 9068 section 4, RFC 8725 section 3.11).
func judgeType(f *Facts, types []string, ofCaller bool) error {
	if f.opaque {
		return judgeTokenType(f, types)
	}
	typ := mediaType(f.typ)
	admitted := slices.ContainsFunc(types, func(t string) bool { return mediaType(t) == typ })
	switch {
	case !admitted && (typ != "" || !admitsUntyped(types)):
		return reject(WrongType, "The token's typ is %s; accepted for its issuer: %s.", shorten(f.typ), strings.Join(types, ", "))
	case typ == accessTokenType:
		return nil
	case f.purpose != "":
		return reject(WrongType, "The token is %s, not an access token.", f.purpose)
	case !f.access && !ofCaller:
		return reject(WrongType, "The token has no claim that only access tokens have, such as scope or client_id: it may be an ID token.")
	}
	return nil
}

func admitsUntyped(types []string) bool {
	return slices.ContainsFunc(types, func(t string) bool { return mediaType(t) == "jwt" })
}

// mediaType makes names of media types comparable (RFC 7515 section 4.1.9).
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
		return reject(Expired, "The token expired at %s.", stamp(f.ExpiresAt))
	case now.Before(f.NotBefore.Add(-c.Leeway)):
		return reject(NotYetValid, "The token is not valid before %s (nbf).", stamp(f.NotBefore))
	case issued.After(now.Add(c.Leeway)):
		return reject(NotYetValid, "The token was issued in the future, at %s (iat).", stamp(issued))
	case f.ExpiresAt.Sub(issued) > c.MaxLifetime:
		return reject(LifetimeTooLong, "The token lives longer than the %v that are allowed for its issuer.", c.MaxLifetime)
	case c.MaxAge > 0 && f.IssuedAt.IsZero():
		return reject(LifetimeTooLong, "The token does not say when it was issued (iat), and its age is limited to %v.", c.MaxAge)
	case c.MaxAge > 0 && now.Sub(issued) > c.MaxAge+c.Leeway:
		return reject(LifetimeTooLong, "The token is older than the %v that are allowed for its issuer.", c.MaxAge)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// acceptedAudiences are those that a token must be for one of: what is asked for,
// which must all be permitted, or those of the issuer that are.
func acceptedAudiences(c *IssuerConfig, req Request) ([]string, error) {
	permitted := req.Issuers[c.Issuer]
	not := func(audience string) bool {
		_, found := slices.BinarySearch(permitted, audience)
		return !found
	}
	switch {
	case len(req.Audience) > 0 && permitted != nil && slices.ContainsFunc(req.Audience, not):
		return nil, ErrNotPermitted
	case len(req.Audience) > 0:
		return req.Audience, nil
	case permitted == nil || !slices.ContainsFunc(c.Audiences, not):
		return c.Audiences, nil
	}
	accepted := slices.DeleteFunc(slices.Clone(c.Audiences), not)
	if len(accepted) == 0 {
		return nil, ErrNotPermitted
	}
	return accepted, nil
}

// judgeAudience accepts no audience that stands for a missing aud from a caller: the
// audience of a caller's token is what shows that the token is meant for the broker.
func judgeAudience(f *Facts, accepted []string, fromCaller bool) error {
	if len(f.Audience) == 0 || f.noAud && fromCaller {
		return reject(WrongAudience, "The token names no audience (aud); it must be for %s.", shortenAll(accepted))
	}
	for _, audience := range f.Audience {
		if slices.Contains(accepted, audience) {
			return nil
		}
	}
	return reject(WrongAudience, "The token is for %s; it must be for %s. Audiences are compared byte by byte.",
		shortenAll(f.Audience), shortenAll(accepted))
}

// shortenAll quotes the first few of a list, so that a message stays one.
func shortenAll(list []string) string {
	const most = 3
	quoted := make([]string, 0, most+1)
	for i, s := range list {
		if i == most {
			quoted = append(quoted, fmt.Sprintf("%d more", len(list)-most))
			break
		}
		quoted = append(quoted, shorten(s))
	}
	return strings.Join(quoted, ", ")
}

func shorten(s string) string {
	const most = 100
	if len(s) > most {
		return fmt.Sprintf("%q...", strings.ToValidUTF8(s[:most], ""))
	}
	return fmt.Sprintf("%q", s)
}
